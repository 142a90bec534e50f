"""Ray Train with DeepSpeed computes what one process computes: losses and gradients on one rank and on two.

A run commits Adam's moments after its first step, in which the learning rate is still 0: the first moment is then the
clipped gradient of the first batch times 0.1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig as DPOArguments
from trl import DPOTrainer

from rlhf_ray.cluster import connected, launch_offline
from rlhf_ray.config import PlacementConfig, PreferenceConfig, RewardModelConfig
from rlhf_ray.data.length_buckets import LengthBuckets
from rlhf_ray.data.synthetic import create_preference_data
from rlhf_ray.models.tiny import tiny_encoder, tiny_model
from rlhf_ray.offline.tables import read_table
from rlhf_ray.rundir.lines import read_lines

BATCH, BETA = 8, 0.1
TRAIN = {"batch_size": BATCH, "learning_rate": 1e-3, "max_steps": 2, "checkpoint_every": 1, "cpus_per_worker": 0.5}


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    with connected(PlacementConfig(), cpus=2):
        yield


def _gradient(run: Path) -> dict[str, Tensor]:
    moments = load_file(run / "checkpoints" / "step-000001" / "state" / "trainer" / "moments.safetensors")
    return {name.split("|")[0]: moment / 0.1 for name, moment in moments.items() if name.endswith("|exp_avg")}


def _close(one: dict[str, Tensor], other: dict[str, Tensor], tolerance: float) -> None:
    """Relative to each tensor's largest entry, as float32 sums differ in their order."""
    assert one.keys() == other.keys()
    for name, value in one.items():
        scale = float(value.abs().max().clamp(min=1e-6))
        assert float((value - other[name]).abs().max()) < tolerance * scale, name


def test_dpo_is_plain_trls_on_one_rank_and_on_two(tmp_path: Path) -> None:
    tiny = tiny_model(tmp_path / "tiny")
    base = {"name": "toy", "model": {"path": str(tiny)}, "data": {"path": "demo", "limit": 60, "max_tokens": 200}}
    method = {"type": "dpo", "beta": BETA}
    summaries = {}
    for ranks, stage, micro in ((1, 0, None), (2, 2, 2)):
        train = {**TRAIN, "num_workers": ranks, "deepspeed": {"zero_stage": stage}, "microbatch_size": micro}
        config = PreferenceConfig.model_validate({**base, "method": method, "train": train})
        launch_offline(config, tmp_path / f"ranks-{ranks}", False, "test")
        summaries[ranks] = read_lines(tmp_path / f"ranks-{ranks}" / "metrics.jsonl")

    rows = read_table(tmp_path / "ranks-1" / "data" / "train.arrow")
    order = list(LengthBuckets(rows["length"][:], BATCH, 0))
    loss, gradient = _plain(tiny, rows.select(order[:BATCH]), tmp_path)
    for ranks in (1, 2):
        _close(gradient, _gradient(tmp_path / f"ranks-{ranks}"), 1e-5 if ranks == 1 else 1e-4)
        assert summaries[ranks][0]["train/loss"] == pytest.approx(loss, abs=1e-5)
    assert summaries[1][1]["train/loss"] == pytest.approx(float(str(summaries[2][1]["train/loss"])), abs=1e-5)


class _Plain(DPOTrainer):  # type: ignore[misc]  # untyped
    def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
        return dataset


def _plain(tiny: Path, rows: Any, tmp_path: Path) -> tuple[float, dict[str, Tensor]]:
    """Loss and clipped gradient of TRL's trainer in this process, of one batch."""
    arguments = DPOArguments(
        output_dir=str(tmp_path / "plain"), use_cpu=True, bf16=False, report_to=[], beta=BETA,
        gradient_checkpointing=False,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(tiny)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    trainer = _Plain(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    batch = trainer._prepare_inputs(trainer.data_collator(list(rows)))
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    found = {name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None}
    torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
    return float(loss.detach()), found


def test_the_mixed_loss_has_one_gradient_on_one_rank_and_on_two(tmp_path: Path) -> None:
    file = tmp_path / "mixed.jsonl"
    rows = create_preference_data(60, kind="mixed", label_noise=0.1, seed=3)
    rows += create_preference_data(20, kind="thumbs", seed=4)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny = tiny_encoder(tmp_path / "tiny")
    base = {
        "name": "toy",
        "model": {"path": str(tiny)},
        "data": {"path": str(file), "max_tokens": 100},
        "ensemble": {"members": 2},
        "loss_weights": {"pair": 2.0, "ranking": 1.0, "rating": 0.5, "thumb": 1.0},
    }
    for ranks, stage, micro in ((1, 0, None), (2, 2, 2)):
        train = {**TRAIN, "num_workers": ranks, "deepspeed": {"zero_stage": stage}, "microbatch_size": micro}
        config = RewardModelConfig.model_validate({**base, "train": train})
        launch_offline(config, tmp_path / f"ranks-{ranks}", False, "test")
    one, two = (_gradient(tmp_path / f"ranks-{ranks}") for ranks in (1, 2))
    _close(one, two, 1e-4)
    losses = [read_lines(tmp_path / f"ranks-{ranks}" / "metrics.jsonl")[0]["train/loss"] for ranks in (1, 2)]
    assert losses[0] == pytest.approx(float(str(losses[1])), abs=1e-5)
