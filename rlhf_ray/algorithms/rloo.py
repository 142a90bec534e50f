"""RLOO: REINFORCE whose baseline is the mean reward of the other answers to the same prompt."""

from __future__ import annotations

from typing import ClassVar, Literal

from jaxtyping import Float, Int
from torch import Tensor

from rlhf_ray.algorithms.aggregation import Aggregation
from rlhf_ray.algorithms.groups import over_tokens, relative_to_group
from rlhf_ray.algorithms.policy_gradient import Estimate, PolicyGradient
from rlhf_ray.algorithms.policy_gradient_config import PolicyGradientConfig
from rlhf_ray.types import Batch


class RLOOConfig(PolicyGradientConfig):
    """REINFORCE leave-one-out (Ahmadian et al. 2024, arXiv 2402.14740, section 2.3)."""

    min_samples: ClassVar[int] = 2

    type: Literal["rloo"] = "rloo"
    aggregation: Aggregation = "sequence_mean"

    def make(self) -> RLOO:
        """The algorithm of this config."""
        return RLOO(self)


class RLOO(PolicyGradient[RLOOConfig]):
    """REINFORCE leave-one-out. The answer as a whole is one action: every token has the same advantage."""

    def estimate(self, batch: Batch, rewards: Float[Tensor, "B T"], prompts: Int[Tensor, " B"]) -> Estimate:
        """The batch with, on every token, the answer's reward (KL included) less the mean of the group's others."""
        scores = relative_to_group(rewards.sum(dim=1), prompts, batch.loss_mask.any(dim=1), "leave_one_out")
        return batch.with_(advantages=over_tokens(scores, batch.loss_mask)), {}
