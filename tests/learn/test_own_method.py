"""A new method is one file with its config and class, and one line in the union of `config/online.py`.

Here both are in the test: the file's content, and a config whose union has the line.
"""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from rlhf_ray import metrics as names
from rlhf_ray import online_pipelines
from rlhf_ray.algorithms.groups import returns_to_go
from rlhf_ray.algorithms.policy_gradient import Estimate, PolicyGradient
from rlhf_ray.algorithms.policy_gradient_config import PolicyGradientConfig
from rlhf_ray.config import RunConfig
from rlhf_ray.config.online import AlgorithmConfig
from rlhf_ray.errors import UserError
from rlhf_ray.models.tiny import tiny_model
from rlhf_ray.online_pipelines import PolicyOptimizationPipeline
from rlhf_ray.types import Batch
from tests.builders import share_of_vowels


class BestConfig(PolicyGradientConfig):
    """Fine-tuning on the better half of the answers (reward-ranked fine-tuning, arXiv 2304.06767, over the batch)."""

    min_samples: ClassVar[int] = 2

    type: Literal["best"] = "best"
    share: Annotated[float, Field(gt=0, le=1)] = 0.5

    def make(self) -> Best:
        """The algorithm of this config."""
        return Best(self)


class Best(PolicyGradient[BestConfig]):
    """Advantage 1 for the best answers of a step, 0 for the others."""

    def estimate(self, batch: Batch, rewards: Float[Tensor, "B T"], prompts: Int[Tensor, " B"]) -> Estimate:
        """The batch with those advantages."""
        totals = returns_to_go(rewards, batch.response_mask, 1.0)[:, :1]
        good = batch.rewards >= batch.rewards.quantile(1 - self.config.share)
        return batch.with_(advantages=good[:, None].float().expand_as(rewards)), {"best/cut": float(totals.mean())}


class WithBest(RunConfig):
    """The union with one member more."""

    algorithm: BestConfig | AlgorithmConfig


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(online_pipelines, "RunConfig", WithBest)
    return str(tiny_model(tmp_path / "tiny"))


def _vowels(prompt: str, answer: str) -> float:
    return share_of_vowels(prompt, answer, None)


def test_the_loop_runs_a_method_that_it_does_not_know(tiny: str) -> None:
    settings = {"learning_rate": 3e-3, "max_new_tokens": 12, "num_minibatches": 4, "kl_coef": 0.0, "share": 0.25}
    steps = PolicyOptimizationPipeline(tiny, _vowels, "best", **settings).train_epoch(["name sun", "find tree"] * 4, 15)  # type: ignore[arg-type]  # settings of any type
    rewards = [step[names.REWARD_MEAN] for step in steps]
    assert rewards[0] < 0.35 and statistics.fmean(rewards[-3:]) > 0.6, rewards
    assert "best/cut" in steps[0], "metrics of its own"


def test_its_settings_are_checked_like_those_of_the_others(tiny: str) -> None:
    with pytest.raises(UserError, match="share"):
        PolicyOptimizationPipeline(tiny, _vowels, "best", share=2.0)
    with pytest.raises(UserError, match="samples_per_prompt"):
        PolicyOptimizationPipeline(tiny, _vowels, "best", samples_per_prompt=1)
