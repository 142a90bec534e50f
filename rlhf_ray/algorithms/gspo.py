"""GSPO: GRPO with one ratio for each answer as a whole."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor

from rlhf_ray.algorithms.grpo import GRPO, GRPOConfig
from rlhf_ray.algorithms.policy_gradient import TokenLosses


class GSPOConfig(GRPOConfig):
    """Group sequence policy optimization (Zheng et al. 2025, arXiv 2507.18071)."""

    type: Literal["gspo"] = "gspo"  # type: ignore[assignment]  # another member of the union
    clip_range: PositiveFloat | None = 3e-4
    clip_range_high: PositiveFloat | None = 4e-4

    def make(self) -> GSPO:
        """The algorithm of this config."""
        return GSPO(self)


class GSPO(GRPO):
    """One ratio an answer: the geometric mean of its tokens' ratios (eq. 7), clipped as a whole (eq. 5)."""

    def token_losses(self, logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> TokenLosses:
        """Each token has its answer's loss, so that the mean over its tokens is that loss."""
        mean = (logprobs - old).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
        return super().token_losses(mean.expand_as(logprobs), torch.zeros_like(old), advantages, mask)
