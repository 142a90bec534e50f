"""Online DPO on real DeepSpeed engines: any number of ranks gives one rank's update, and ties move nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlhf_ray import metrics as names
from rlhf_ray.models.tiny import tiny_model
from rlhf_ray.types import Batch
from tests.builders import random_batch, run_config
from tests.distributed import on_ranks

PROMPTS, WIDTH, VOCABULARY = 8, 24, 256


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def _config(tiny: Path, algorithm: dict[str, Any], ranks: int, stage: int) -> Any:
    policy = {"num_workers": ranks, "deepspeed": {"zero_stage": stage}, "microbatch_tokens": 64}
    return run_config(
        tiny,
        algorithm={"type": "online_dpo", "num_minibatches": 2, **algorithm},
        policy=policy,
        train={"prompts_per_step": PROMPTS},
    )


def _batch(config: Any, seed: int, ties: int) -> Batch:
    """Eight prompts with three answers each, of which the first `ties` prompts have equal rewards."""
    batch = random_batch(3 * PROMPTS, WIDTH, VOCABULARY, seed)
    rewards = torch.where(torch.arange(3 * PROMPTS) < 3 * ties, 0.5, batch.rewards)
    numbers = torch.arange(PROMPTS).repeat_interleave(3)
    pairs: Batch = config.algorithm.make().advantages(batch.with_(rewards=rewards), numbers)[0]
    return pairs


def _train(
    rank: int, tiny: Path, out: Path, algorithm: dict[str, Any], ranks: int, stage: int, ties: tuple[int, ...]
) -> list[dict[str, float]]:
    """One update for each of `ties`, the number of prompts without a preference; saved after each."""
    from rlhf_ray.actors.learner import PolicyLearner

    config = _config(tiny, algorithm, ranks, stage)
    learner = PolicyLearner(config, tiny, out, None)
    metrics = []
    for step, tied in enumerate(ties):
        metrics.append(learner.update(_batch(config, step, tied), step, config.algorithm.beta))
        learner.save(out / f"{ranks}-{stage}-{step}").result()
    return metrics


def _state(folder: Path, file: str) -> dict[str, torch.Tensor]:
    return load_file(folder / "state" / "policy" / f"{file}.safetensors")


@pytest.mark.parametrize(("loss", "stage"), [("sigmoid", 0), ("ipo", 3)])
def test_two_ranks_make_the_update_of_one(tiny: Path, tmp_path: Path, loss: str, stage: int) -> None:
    """Two minibatches of four pairs, three of the eight ties: ranks get unlike numbers of pairs, some none at all.

    Adam's first moment is a fixed sum of the gradients, and so shows a wrong denominator, which the weights hide."""
    algorithm = {"loss": loss, "beta": 0.2}
    (alone,) = on_ranks(1, _train, tiny, tmp_path, algorithm, 1, 0, (3,))[0]
    (shared,) = on_ranks(2, _train, tiny, tmp_path, algorithm, 2, stage, (3,))[0]
    assert alone["policy/updates"] == 2.0 and alone[names.POLICY_LOSS] > 0
    expected, found = _state(tmp_path / "1-0-0", "moments"), _state(tmp_path / f"2-{stage}-0", "moments")
    assert found.keys() == expected.keys()
    for name, moment in expected.items():
        limit = 1e-3 * float(moment.abs().max())
        torch.testing.assert_close(found[name], moment, atol=limit, rtol=0, msg=lambda text, n=name: f"{n}: {text}")
    for name, value in alone.items():
        assert shared[name] == pytest.approx(value, rel=2e-3, abs=1e-5), name


def test_a_step_of_ties_moves_nothing_although_adam_has_momentum(tiny: Path, tmp_path: Path) -> None:
    first, tied = on_ranks(1, _train, tiny, tmp_path, {}, 1, 0, (0, PROMPTS))[0]
    assert first["policy/updates"] == 2.0 and tied["policy/updates"] == 0.0
    assert tied["policy/parameters_without_gradient"] == tied["policy/skipped_updates"] == 0.0
    for file in ("trainable", "moments"):
        before, after = _state(tmp_path / "1-0-0", file), _state(tmp_path / "1-0-1", file)
        assert all(torch.equal(before[name], after[name]) for name in before)
