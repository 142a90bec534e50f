"""The estimate of memory: which weights of which role count how often. The factors are `benchmarks/memory.py`'s."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_folders import run_config

from rlhf_ray import footprint, resources
from rlhf_ray.config import RunConfig
from rlhf_ray.footprint import estimated_gib

GIB = 2**30
WEIGHTS = 10**9


@pytest.fixture(autouse=True)
def one_gigaweight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every model; two blocks, width 8, 100 tokens in the vocabulary."""
    shape = {"hidden_size": 8, "num_hidden_layers": 2, "vocab_size": 100}
    for module in (footprint, resources):
        monkeypatch.setattr(module, "parameters", lambda path: WEIGHTS)
    monkeypatch.setattr(footprint, "model_config", lambda folder: shape)


def floats_a_weight(config: RunConfig, role: str) -> float:
    """Rounded: libraries and activations are small beside a billion weights, once a process's share is taken off."""
    learner = config.learners[role]
    return round((estimated_gib(config)[role] - 0.47 * learner.num_workers) * GIB / WEIGHTS / 4, 2)


@pytest.mark.parametrize(
    ("changes", "policy", "critic"),
    [
        # weights, gradients, two moments; at a commit those without gradients, and merged
        ({}, 4 + 3 + 1, 4 + 3),
        ({"lora": {"rank": 4}}, 1 + 2, 1),  # the base; merged, and once more
        ({"num_workers": 2}, 8 + 4, 8 + 3),
        ({"num_workers": 2, "deepspeed": {"zero_stage": 1}}, 2 * 2 + 2 + 4, 2 * 2 + 2 + 3),
        ({"num_workers": 2, "deepspeed": {"zero_stage": 2}}, 2 * 1 + 1 + 2 + 4, 2 * 1 + 1 + 2 + 3),
        ({"num_workers": 2, "deepspeed": {"zero_stage": 3}}, 4 + 4, 4 + 3),
        ({"num_workers": 2, "deepspeed": {"zero_stage": 3}, "lora": {"rank": 4}}, 1 + 2, 1),
    ],
)
def test_learners(tmp_path: Path, changes: dict[str, Any], policy: float, critic: float) -> None:
    config = run_config(tmp_path, policy=changes, critic=changes)
    assert floats_a_weight(config, "policy") == policy
    assert floats_a_weight(config, "critic") == critic


def test_activations(tmp_path: Path) -> None:
    """Of a microbatch, or of the batch if that is smaller; with checkpointing a block at a time."""
    settings = {"prompts": {"path": "demo", "max_prompt_tokens": 60}, "rollout": {"max_new_tokens": 20}}
    train = {"prompts_per_step": 1000}

    def of(tokens: int, prompts: int = 1000, checkpointing: bool = False) -> float:
        """Beside so many weights that a commit is what the rest comes on top of."""
        policy = {"microbatch_tokens": tokens, "gradient_checkpointing": checkpointing}
        config = run_config(tmp_path, policy=policy, train=train | {"prompts_per_step": prompts}, **settings)
        return estimated_gib(config)["policy"] * GIB

    logits = 3 * 0.25 * 100  # three times those of the answers, a quarter of the tokens
    blocks = 8 * 2 * 29
    assert of(5000) - of(1000) == pytest.approx(0.2 * 4 * 4000 * (blocks + logits))
    assert of(5000, prompts=20) - of(1000) == pytest.approx(0.2 * 4 * 600 * (blocks + logits))
    less = of(5000, checkpointing=True) - of(1000, checkpointing=True)
    assert less == pytest.approx(0.2 * 4 * 4000 * (8 * (2 + 29) + logits))


def test_activations_that_are_larger_than_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "parameters", lambda path: 10)
    monkeypatch.setattr(footprint, "model_config", lambda folder: {"hidden_size": 8, "num_hidden_layers": 2})
    config = run_config(tmp_path, critic={"microbatch_tokens": 100, "num_workers": 2})
    most = 4 * 100 * 8 * 2 * 29
    asked = 2 * most + 2 * 4 * 4 * 10 + 0.2 * 4 * 3 * 10
    assert (estimated_gib(config)["critic"] - 2 * 0.47) * GIB == pytest.approx(asked, rel=1e-6)


def test_roles_on_gpus_and_roles_that_a_run_lacks(tmp_path: Path) -> None:
    config = run_config(tmp_path, policy={"gpus_per_worker": 1}, rollout={"gpus": 1}, reference={"replicas": 2})
    found = estimated_gib(config)
    assert "policy" not in found and "rollout" not in found and found["policy inbox"] == 0.9
    assert found["reference"] == pytest.approx(2 * (0.47 + 4 * WEIGHTS / GIB), abs=1e-3)
    without = run_config(tmp_path, algorithm={"type": "online_dpo"}, rollout={"samples_per_prompt": 2})
    assert not [role for role in estimated_gib(without) if role.startswith("critic")]


def test_engines(tmp_path: Path) -> None:
    one = estimated_gib(run_config(tmp_path, rollout={"kv_cache_gib": 1}))["rollout"]
    assert one == pytest.approx(1.52 + 1 + 2 * 4 * WEIGHTS / GIB)
    two = run_config(tmp_path, rollout={"engines": 2, "engine": "torch", "kv_cache_gib": 1})
    assert estimated_gib(two)["rollout"] == pytest.approx(2 * (0.47 + 4 * WEIGHTS / GIB))
