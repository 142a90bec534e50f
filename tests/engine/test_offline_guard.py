"""Runs on fixed data, on ranks of a real DeepSpeed group: gradients that are not finite, a changed learning rate."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlhf_ray.config import SFTConfig
from rlhf_ray.config_file import dump_config
from rlhf_ray.models.tiny import tiny_model
from rlhf_ray.rundir.lines import read_lines
from tests.distributed import on_ranks

RATE = 1e-3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


def _config(tiny: Path, stage: int, **train: Any) -> SFTConfig:
    settings = {"batch_size": 4, "num_workers": 2, "max_steps": 5, "checkpoint_every": 1, "keep_checkpoints": 9}
    return SFTConfig.model_validate(
        {
            "name": "guard",
            "model": {"path": str(tiny)},
            "data": {"path": "demo", "limit": 40, "max_tokens": 100},
            "train": {"learning_rate": RATE, "deepspeed": {"zero_stage": stage}, **settings, **train},
        }
    )


def _train(rank: int, config: SFTConfig, tiny: Path, run_dir: Path, bad_steps: tuple[int, ...]) -> str:
    """Trains to the end, or from step 2 if that is committed; in `bad_steps` rank 1's loss is NaN. Returns the error
    that ended it, if one did."""
    from rlhf_ray.errors import RunError
    from rlhf_ray.offline.callbacks import Steering
    from rlhf_ray.offline.committed import STATE
    from rlhf_ray.offline.worker import kind_of
    from rlhf_ray.rundir.journal import RunDirectory

    trainer = kind_of(config, tiny, run_dir).trainer(RunDirectory.open(run_dir, 9) if rank == 0 else None)
    trainer.add_callback(Steering(trainer, config.train, run_dir))
    right = trainer.compute_loss

    def loss(*arguments: Any, **keywords: Any) -> Any:
        found = right(*arguments, **keywords)
        return found * float("nan") if rank == 1 and trainer.state.global_step + 1 in bad_steps else found

    trainer.compute_loss = loss
    state = run_dir / "checkpoints" / "step-000002" / STATE
    try:
        trainer.train(resume_from_checkpoint=str(state) if state.is_dir() else None)
    except RunError as error:
        return str(error)
    return ""


def _prepare(config: SFTConfig, tiny: Path, run_dir: Path) -> None:
    from rlhf_ray.offline.launch import encode
    from rlhf_ray.rundir.journal import RunDirectory

    RunDirectory.create(run_dir, dump_config(config), {})
    encode(config, tiny, run_dir)


def _state(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    folder = run_dir / "checkpoints" / f"step-{step:06d}" / "state" / "trainer"
    return load_file(folder / "trainable.safetensors") | load_file(folder / "moments.safetensors")


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_a_gradient_that_is_not_finite_updates_nothing(tiny: Path, tmp_path: Path, stage: int) -> None:
    config = _config(tiny, stage)
    _prepare(config, tiny, tmp_path / "run")
    assert on_ranks(2, _train, config, tiny, tmp_path / "run", (3,)) == ["", ""]
    before, bad, after = (_state(tmp_path / "run", step) for step in (2, 3, 4))
    assert all(torch.equal(bad[name], before[name]) for name in before)
    assert not all(torch.equal(after[name], bad[name]) for name in bad)
    assert all(torch.isfinite(tensor).all() for tensor in after.values())
    told = [event for event in read_lines(tmp_path / "run" / "events.jsonl") if event["kind"] == "skipped_update"]
    assert [event["step"] for event in told] == [3]


def test_gradients_that_stay_so_end_the_run(tiny: Path, tmp_path: Path) -> None:
    config = _config(tiny, 2)
    _prepare(config, tiny, tmp_path / "run")
    errors = on_ranks(2, _train, config, tiny, tmp_path / "run", (2, 3, 4))
    assert errors == ["step 4: a gradient was not finite, 3 times in a row; lower train.learning_rate"] * 2


def test_a_run_goes_on_with_the_learning_rate_that_it_is_given(tiny: Path, tmp_path: Path) -> None:
    """Half of it halves the step from the same moments and gradients."""
    config, run_dir = _config(tiny, 0), tmp_path / "run"
    _prepare(config, tiny, run_dir)
    on_ranks(2, _train, config, tiny, run_dir, ())
    before, whole = _state(run_dir, 2), _state(run_dir, 3)
    for rate in (RATE, RATE / 2):
        for step in (3, 4):
            shutil.rmtree(run_dir / "checkpoints" / f"step-{step:06d}")
        on_ranks(2, _train, _config(tiny, 0, learning_rate=rate), tiny, run_dir, ())
        again = _state(run_dir, 3)
        assert all(torch.equal(whole[key], again[key]) for key in whole) == (rate == RATE)
    for key in [key for key in before if "|" not in key]:
        torch.testing.assert_close(again[key] - before[key], (whole[key] - before[key]) / 2, rtol=1e-2, atol=1e-6)
