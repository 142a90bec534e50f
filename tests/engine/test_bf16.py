"""bfloat16 on a CPU, where it is slow but the same code: low precision in the arithmetic, float32 in what is kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_ray.models.tiny import tiny_model
from tests.builders import random_batch, run_config
from tests.distributed import on_ranks

ROWS, WIDTH, VOCABULARY = 8, 16, 256


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("models") / "tiny")


def _update(rank: int, tiny: Path, out: Path, role: str, dtype: str, stage: int, ranks: int) -> dict[str, Any]:
    """Two updates; what the second did, in which types, and what the model answered before them."""
    from rlhf_ray.actors.learner import CriticLearner, PolicyLearner

    settings = {"num_workers": ranks, "deepspeed": {"zero_stage": stage}}
    config = run_config(tiny, model={"dtype": dtype}, **{role: settings})
    learner: Any = (PolicyLearner if role == "policy" else CriticLearner)(config, tiny, out, None)
    computed: set[str] = set()
    for module in learner.engine.module.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _module, _inputs, output: computed.add(str(output.dtype)))
    batch = random_batch(ROWS, WIDTH, VOCABULARY)
    rows, answers = learner.logprobs(batch) if role == "policy" else learner.values(batch)
    before, _ = learner.engine.trainable_state()
    for step in range(2):  # a critic's head starts at zero, so its first update moves nothing else
        metrics = learner.update(batch, step, 0.1) if role == "policy" else learner.update(batch, step)
    after, moments = learner.engine.trainable_state()
    return {
        "computed": computed,
        "kept": {str(t.dtype) for t in (*before.values(), *moments.values(), *learner.engine.module.parameters())},
        "answers": answers[rows.argsort()].tolist(),
        "answered_in": str(answers.dtype),
        "metrics": metrics,
        "inherited": "DS_ACCELERATOR" in os.environ,
        "moved": min((float((after[name] - before[name]).abs().max()) for name in after), default=None),
        "head": str(dict(learner.engine.module.named_parameters()).get("head.weight", torch.zeros(0)).dtype),
    }


@pytest.mark.parametrize(("role", "stage", "ranks"), [("policy", 0, 1), ("critic", 0, 1), ("critic", 3, 2)])
def test_bfloat16_computes_low_and_keeps_float32(tiny: Path, tmp_path: Path, role: str, stage: int, ranks: int) -> None:
    answers = on_ranks(ranks, _update, tiny, tmp_path, role, "bfloat16", stage, ranks)
    assert answers[0]["moved"] > 1e-5, "rank 0 holds the whole state"
    for found in answers:
        assert "torch.bfloat16" in found["computed"]
        assert found["kept"] == {"torch.float32"} and found["head"] == "torch.float32"
        assert found["answered_in"] == "torch.float32"
        assert found["metrics"][f"{role}/updates"] == 1.0
        assert not found["inherited"], "a cluster started here would tell workers without a GPU to use one"


def test_bfloat16_log_probs_are_those_of_float32_but_for_rounding(tiny: Path, tmp_path: Path) -> None:
    low, full = (on_ranks(1, _update, tiny, tmp_path, "policy", dtype, 0, 1)[0] for dtype in ("bfloat16", "float32"))
    assert full["computed"] == {"torch.float32"}
    gap = (torch.tensor(low["answers"]) - torch.tensor(full["answers"])).abs().max()
    assert 0 < float(gap) < 0.05
