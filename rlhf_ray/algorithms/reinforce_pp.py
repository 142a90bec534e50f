"""REINFORCE++ and its baseline form: whitened over the whole batch, without a critic."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from rlhf_ray.algorithms import ops
from rlhf_ray.algorithms.groups import over_tokens, relative_to_group, returns_to_go
from rlhf_ray.algorithms.policy_gradient import Estimate, PolicyGradient
from rlhf_ray.algorithms.policy_gradient_config import PolicyGradientConfig
from rlhf_ray.types import Batch


class REINFORCEPlusPlusConfig(PolicyGradientConfig):
    """REINFORCE++ (Hu et al. 2025, arXiv 2501.03262): token-level KL in the reward, returns, PPO's clipping."""

    type: Literal["reinforce_pp"] = "reinforce_pp"
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0

    def make(self) -> REINFORCEPlusPlus:
        """The algorithm of this config."""
        return REINFORCEPlusPlus(self)


class REINFORCEPlusPlus(PolicyGradient[REINFORCEPlusPlusConfig]):
    """Every token's return, whitened."""

    def estimate(self, batch: Batch, rewards: Float[Tensor, "B T"], prompts: Int[Tensor, " B"]) -> Estimate:
        """The batch with whitened returns."""
        returns = returns_to_go(rewards, batch.response_mask, self.config.gamma)
        return batch.with_(advantages=ops.whiten(returns, batch.loss_mask)), {}


class REINFORCEPlusPlusBaselineConfig(PolicyGradientConfig):
    """REINFORCE++-baseline (the same paper, section 3.2): the group's mean is the baseline, the KL is in the loss."""

    min_samples: ClassVar[int] = 2

    type: Literal["reinforce_pp_baseline"] = "reinforce_pp_baseline"
    kl_placement: Literal["reward", "loss"] = "loss"

    def make(self) -> REINFORCEPlusPlusBaseline:
        """The algorithm of this config."""
        return REINFORCEPlusPlusBaseline(self)


class REINFORCEPlusPlusBaseline(PolicyGradient[REINFORCEPlusPlusBaselineConfig]):
    """The answer's reward relative to its group on every token, whitened over the batch instead of the group."""

    def estimate(self, batch: Batch, rewards: Float[Tensor, "B T"], prompts: Int[Tensor, " B"]) -> Estimate:
        """The batch with whitened advantages."""
        scores = relative_to_group(rewards.sum(dim=1), prompts, batch.loss_mask.any(dim=1), "mean")
        return batch.with_(advantages=ops.whiten(over_tokens(scores, batch.loss_mask), batch.loss_mask)), {}
