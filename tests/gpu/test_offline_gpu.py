"""Offline training on a GPU, under Ray Train and DeepSpeed as on CPU: bfloat16 agrees with float32 on the CPU."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from rlhf_ray.cluster import launch_offline
from rlhf_ray.config import AnyOfflineConfig, PreferenceConfig, RewardModelConfig
from rlhf_ray.data.synthetic import create_preference_data
from rlhf_ray.models.tiny import tiny_encoder, tiny_model
from rlhf_ray.rundir.lines import read_lines

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch.cuda sees no GPU on this machine"),
]
TRAIN = {"batch_size": 8, "learning_rate": 1e-3, "max_steps": 6}
DPO = {"data": {"path": "demo", "limit": 60, "max_tokens": 200}, "lora": {"rank": 4}}


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    hidden = {"env_vars": {"RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1"}}  # a worker with 0 GPUs must not see any
    ray.init(include_dashboard=False, log_to_driver=False, runtime_env=hidden)
    yield
    ray.shutdown()


def _losses(config: AnyOfflineConfig, run: Path) -> list[float]:
    summary = launch_offline(config, run, False, "test")
    assert summary["finished"] and summary["steps"] == 6
    return [float(str(line["train/loss"])) for line in read_lines(run / "metrics.jsonl")]


def _places(base: dict[str, Any], tmp_path: Path, config: Any, zero_stage: int) -> None:
    """The same run on the CPU in float32 and on the GPU in float32 and bfloat16."""
    gpu = {**TRAIN, "gpus_per_worker": 1.0, "deepspeed": {"zero_stage": zero_stage}}
    dtypes = {"gpu-float32": "float32", "gpu-bfloat16": "bfloat16", "cpu": "float32"}
    losses = {}
    for name, dtype in dtypes.items():
        model = {"path": base["path"], "dtype": dtype}
        tree = {**base["run"], "name": name, "model": model, "train": TRAIN if name == "cpu" else gpu}
        losses[name] = _losses(config.model_validate(tree), tmp_path / name)
    assert losses["gpu-float32"] == pytest.approx(losses["cpu"], abs=2e-3)
    assert losses["gpu-bfloat16"] == pytest.approx(losses["cpu"], abs=0.03)


@pytest.mark.parametrize("zero_stage", [0, 2])
def test_dpo_with_adapters(tmp_path: Path, zero_stage: int) -> None:
    base = {"path": str(tiny_model(tmp_path / "tiny")), "run": DPO}
    _places(base, tmp_path, PreferenceConfig, zero_stage)


def test_a_reward_model_from_mixed_evidence(tmp_path: Path) -> None:
    file = tmp_path / "mixed.jsonl"
    rows = create_preference_data(60, kind="mixed", label_noise=0.1, seed=3)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = {"data": {"path": str(file), "max_tokens": 100}}
    _places({"path": str(tiny_encoder(tmp_path / "tiny")), "run": run}, tmp_path, RewardModelConfig, 2)
