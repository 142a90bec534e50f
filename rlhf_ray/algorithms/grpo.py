"""GRPO and its relatives: no critic, an answer is as good as it beats the other answers to its prompt."""

from __future__ import annotations

from typing import ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor

from rlhf_ray.algorithms.aggregation import Aggregation
from rlhf_ray.algorithms.groups import over_tokens, relative_to_group
from rlhf_ray.algorithms.policy_gradient import Estimate, PolicyGradient
from rlhf_ray.algorithms.policy_gradient_config import PolicyGradientConfig
from rlhf_ray.types import Batch


class GRPOConfig(PolicyGradientConfig):
    """Group-relative policy optimization (Shao et al. 2024, arXiv 2402.03300).

    Dr. GRPO (Liu et al. 2025, arXiv 2503.20783) is `scale_by_std: false` with `aggregation: constant` and
    `aggregation_length: <rollout.max_new_tokens>`; DAPO (Yu et al. 2025, arXiv 2503.14476) is `aggregation: token_mean`
    with `clip_range_high: 0.28`.
    """

    min_samples: ClassVar[int] = 2

    type: Literal["grpo"] = "grpo"
    aggregation: Aggregation = "length_normalised"
    kl_placement: Literal["reward", "loss"] = "loss"
    scale_by_std: bool = True
    """Divide by the standard deviation of the group's rewards; it weighs prompts that are nearly solved or nearly
    hopeless more (Dr. GRPO, section 3.1)."""

    def make(self) -> GRPO:
        """The algorithm of this config."""
        return GRPO(self)


class GRPO(PolicyGradient[GRPOConfig]):
    """Group-relative policy optimization."""

    def estimate(self, batch: Batch, rewards: Float[Tensor, "B T"], prompts: Int[Tensor, " B"]) -> Estimate:
        """The batch with, on every token of an answer, its reward relative to its group (eq. 3 and section 4.1.2)."""
        usable = batch.loss_mask.any(dim=1)
        scores = relative_to_group(rewards.sum(dim=1), prompts, usable, "mean", self.config.scale_by_std)
        return batch.with_(advantages=over_tokens(scores, batch.loss_mask)), {}
