"""Rewards relative to those of the other answers to the same prompt."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

TIE = 1e-6
"""Rewards that spread by less than this share of the largest are equal: float32 keeps seven digits, and the standard
deviation of equal rewards is a rounding error that must not be divided by."""


def relative_to_group(
    scores: Float[Tensor, " B"],
    groups: Int[Tensor, " B"],
    usable: Bool[Tensor, " B"],
    baseline: Literal["mean", "leave_one_out"],
    scale: bool = False,
) -> Float[Tensor, " B"]:
    """Each usable row's score less its group's mean, or less the mean of the other rows of the group; 0 elsewhere.

    With `scale` divided by the group's standard deviation (unbiased). Rows that are not usable are in no statistic. A
    group with one usable row, or whose scores are all equal, says nothing: exactly 0.
    """
    found = torch.zeros_like(scores, dtype=torch.float64)
    for group in groups[usable].unique():
        rows = ((groups == group) & usable).nonzero().flatten()
        values, count = scores[rows].double(), len(rows)
        if count < 2 or values.max() - values.min() <= TIE * values.abs().max():
            continue
        centred = values - values.mean()
        if baseline == "leave_one_out":
            centred = centred * count / (count - 1)  # r_i - mean of the others
        found[rows] = centred / values.std() if scale else centred
    return found.to(scores.dtype)


def over_tokens(scores: Float[Tensor, " B"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Each row's score on every token of the mask, 0 elsewhere."""
    return torch.where(mask, scores[:, None], 0.0)


def returns_to_go(rewards: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], gamma: float) -> Float[Tensor, "B T"]:
    """The discounted sum of rewards from each token of the mask on; 0 elsewhere.

    Other tokens between them (a user's turn, a tool's output) are passed over: neither discounted nor read.
    """
    found = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    for t in range(rewards.shape[1] - 1, -1, -1):
        here = mask[:, t]
        running = torch.where(here, torch.where(here, rewards[:, t], 0.0) + gamma * running, running)
        found[:, t] = torch.where(here, running, 0.0)
    return found
