"""TRPO's update under DeepSpeed on one rank and on two: one step, inside the trust region, or none at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlhf_ray import metrics as names
from rlhf_ray.models.tiny import tiny_model
from tests.builders import random_batch, run_config
from tests.distributed import on_ranks

MAX_KL = 0.02


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def _update(rank: int, tiny: Path, out: Path, ranks: int, stage: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Two updates: the metrics of both, and the weights before and after; what was saved loads again."""
    from rlhf_ray.actors.learner import PolicyLearner

    policy = {"num_workers": ranks, "deepspeed": {"zero_stage": stage}, "lora": {"rank": 2}, "microbatch_tokens": 64}
    config = run_config(tiny, algorithm={"type": "trpo", "max_kl": MAX_KL, **settings}, policy=policy)
    learner = PolicyLearner(config, tiny, out, None)
    batch = random_batch(12, 24, 256)
    before, _ = learner.engine.trainable_state()
    metrics = [learner.update(batch, step, 0.1) for step in (1, 2)]
    after, moments = learner.engine.trainable_state()
    learner.save(out / f"saved-{ranks}-{stage}").result()
    kept = {"before": before, "after": after}  # as arrays: tensors would travel as files of a process that has ended
    arrays = {key: {name: weight.numpy() for name, weight in value.items()} for key, value in kept.items()}
    return {"metrics": metrics, "moments": len(moments), **arrays}


def test_one_step_within_the_region_alike_on_one_rank_and_on_two(tiny: Path, tmp_path: Path) -> None:
    found = {
        (ranks, stage): on_ranks(ranks, _update, tiny, tmp_path, ranks, stage, {})
        for ranks, stage in ((1, 0), (2, 0), (2, 2))
    }
    (alone,) = found[1, 0]
    for metrics in alone["metrics"]:
        assert metrics["policy/updates"] == 1.0 and 0 < metrics[names.STEP_FRACTION] <= 1
        assert 0 < metrics[names.POLICY_KL_TO_OLD] <= MAX_KL
    assert alone["metrics"][0][names.FIRST_RATIO] > 0.01, "the random batch was not sampled from this policy"
    assert alone["metrics"][1][names.POLICY_LOSS] < alone["metrics"][0][names.POLICY_LOSS]
    assert "after 2 training steps" in (tmp_path / "saved-1-0" / "policy" / "README.md").read_text()
    assert any((alone["before"][name] != alone["after"][name]).any() for name in alone["before"])
    for (ranks, stage), answers in found.items():
        assert answers[0]["moments"] == 0
        for name, weight in alone["after"].items():
            moved = np.abs(weight - alone["before"][name]).max()
            gap = np.abs(weight - answers[0]["after"][name]).max()
            assert gap <= 0.02 * moved + 1e-6, (ranks, stage, name)
        for answer in answers:
            assert answer["metrics"][0] == pytest.approx(alone["metrics"][0], rel=0.01, abs=1e-4)


def test_without_a_good_step_the_weights_are_what_they_were(tiny: Path, tmp_path: Path) -> None:
    # One try, at the full step: damping makes the model of the KL so wrong that it is far outside.
    settings = {"max_kl": 3.0, "line_search_steps": 1, "fisher_fraction": 1.0}
    (found,) = on_ranks(1, _update, tiny, tmp_path, 1, 0, settings)
    first = found["metrics"][0]
    if first["policy/updates"]:  # it was inside after all
        assert first[names.POLICY_KL_TO_OLD] <= 3.0
        pytest.fail("the step that should have been refused was taken: make it larger")
    assert first[names.STEP_FRACTION] == 0.0
    for name, weight in found["before"].items():
        assert np.array_equal(weight, found["after"][name]), name
