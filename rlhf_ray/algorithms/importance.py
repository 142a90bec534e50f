"""What the engine sampled, weighed as if the learner's old policy had: truncated importance sampling."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_ray import metrics as names
from rlhf_ray.algorithms import ops
from rlhf_ray.ports import Metrics
from rlhf_ray.types import Batch, present


def truncated_importance(batch: Batch, level: Literal["token", "sequence"], cap: float) -> Float[Tensor, "B T"]:
    """`min(p_old / p_engine, cap)` of each response token, or of the whole response in all its tokens; 1 elsewhere.

    Ionides 2008 ("Truncated importance sampling"); between learner and engine: Yao et al. 2025, "Your efficient RL
    framework secretly brings you off-policy RL training". With stale rollouts it is the first factor of decoupled PPO
    (Fu et al. 2025, AReaL, arXiv 2505.24298, equation 5), whose second is the ratio in the loss.
    """
    log_ratio = ops.log_ratio(present(batch.old_logprobs, "old_logprobs"), batch.rollout_logprobs)
    log_ratio = torch.where(batch.response_mask, log_ratio, 0.0)
    if level == "sequence":
        log_ratio = log_ratio.sum(dim=1, keepdim=True).clamp(max=ops.MAX_LOG_RATIO).expand_as(log_ratio)
    return torch.where(batch.response_mask, log_ratio.exp().clamp(max=cap), 1.0)


def importance_metrics(batch: Batch, weights: Float[Tensor, "B T"], cap: float) -> Metrics:
    """Of the response tokens: the mean weight, and the share at the cap."""
    return {
        names.IMPORTANCE_MEAN: float(ops.masked_mean(weights, batch.response_mask)),
        names.IMPORTANCE_CUT: float(ops.masked_mean((weights >= cap).float(), batch.response_mask)),
    }
