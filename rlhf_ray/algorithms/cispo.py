"""CISPO: GRPO whose ratio is clipped as a constant weight, so that no token loses its gradient."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor

from rlhf_ray.algorithms import ops
from rlhf_ray.algorithms.aggregation import Aggregation
from rlhf_ray.algorithms.grpo import GRPO, GRPOConfig
from rlhf_ray.algorithms.policy_gradient import TokenLosses


class CISPOConfig(GRPOConfig):
    """Clipped importance-sampling weights (MiniMax 2025, arXiv 2506.13585, section 3.1)."""

    type: Literal["cispo"] = "cispo"  # type: ignore[assignment]  # another member of the union
    clip_range: PositiveFloat | None = 1.0
    """How far below 1 a weight may be: 1 is no lower bound, as published."""
    clip_range_high: PositiveFloat | None = 5.0
    aggregation: Aggregation = "token_mean"

    def make(self) -> CISPO:
        """The algorithm of this config."""
        return CISPO(self)


class CISPO(GRPO):
    """The policy gradient weighted by a ratio that is clipped and held constant (eq. 4 and 5)."""

    def token_losses(self, logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> TokenLosses:
        """-weight * advantage * log-probability, and where the weight was clipped."""
        ratio = torch.exp(ops.log_ratio(logprobs, old)).detach()
        low, high = self.config.clip_range, self.config.clip_range_high or self.config.clip_range
        weight = ratio if low is None or high is None else ratio.clamp(1 - low, 1 + high)
        return -weight * advantages * logprobs, weight != ratio
