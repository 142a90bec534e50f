"""PPO: advantages from a critic, the clipped surrogate for the policy, and the critic's own loss."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, PositiveFloat
from torch import Tensor

from rlhf_ray import metrics as names
from rlhf_ray.algorithms import ops
from rlhf_ray.algorithms.policy_gradient import Estimate, PolicyGradient
from rlhf_ray.algorithms.policy_gradient_config import PolicyGradientConfig
from rlhf_ray.algorithms.report import LossReport, report_of
from rlhf_ray.types import Batch, present


class PPOConfig(PolicyGradientConfig):
    """Proximal policy optimization (Schulman et al. 2017, arXiv 1707.06347) with a KL penalty to the reference."""

    needs_critic: ClassVar[bool] = True

    type: Literal["ppo"] = "ppo"
    value_clip_range: PositiveFloat | None = 0.5
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    whiten_advantages: bool = True

    def make(self) -> PPO:
        """The algorithm of this config."""
        return PPO(self)


class PPO(PolicyGradient[PPOConfig]):
    """Proximal policy optimization with generalized advantage estimation."""

    def estimate(self, batch: Batch, rewards: Float[Tensor, "B T"], prompts: Int[Tensor, " B"]) -> Estimate:
        """The batch with `advantages` and `returns`, and the explained variance of its `values` where it is defined.
        Rows that the loss mask leaves out keep out of it and of the whitening. `prompts` are nothing to PPO."""
        values = present(batch.values, "values").float()
        advantages, returns = ops.gae(rewards, values, batch.response_mask, self.config.gamma, self.config.gae_lambda)
        if self.config.whiten_advantages:
            advantages = ops.whiten(advantages, batch.loss_mask)
        explained = float(ops.explained_variance(values, returns, batch.loss_mask))
        found = {} if math.isnan(explained) else {names.CRITIC_EXPLAINED_VARIANCE: explained}
        return batch.with_(advantages=advantages, returns=returns), found

    def value_loss(
        self, values: Float[Tensor, "B T"], batch: Batch, weights: Float[Tensor, "B T"]
    ) -> tuple[Float[Tensor, ""], LossReport]:
        """The critic's loss on a microbatch, a weighted sum over tokens like `policy_loss`."""
        mask = batch.loss_mask & (weights > 0)
        weights = torch.where(mask, weights, 0.0)
        losses, clipped = ops.clipped_value_loss(
            torch.where(mask, values, 0.0),
            torch.where(mask, present(batch.values, "values"), 0.0),
            torch.where(mask, present(batch.returns, "returns"), 0.0),
            self.config.value_clip_range,
        )
        loss = (weights * losses).sum()
        means = {names.CRITIC_CLIP_FRACTION: (weights * clipped).sum()}
        return loss, report_of({names.CRITIC_LOSS: loss}, {}, means, weights.sum())
