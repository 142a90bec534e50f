"""Pairs of answers: which two of a group make one, the losses that compare them, and what such a loss reports."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_ray import metrics as names
from rlhf_ray.algorithms.report import LossReport, ratio_deviation, report_of

TIE = 1e-6
"""Rewards that differ by less than this share of the larger one are equal: float32 keeps seven digits."""
Loss = Literal["sigmoid", "ipo", "hinge"]


def best_and_worst(
    rewards: Float[Tensor, " B"], prompts: Int[Tensor, " B"], usable: Bool[Tensor, " B"]
) -> tuple[Int[Tensor, " _"], Bool[Tensor, " _"]]:
    """The rows best, worst, best, worst, ... of the usable answers to each prompt, by the prompts' numbers, and for
    each prompt whether its best is better than its worst.

    Of equals the first is taken. A prompt whose answers cannot be used has its first row, twice.
    """
    index: list[Tensor] = []
    preferred: list[bool] = []
    for prompt in prompts.unique():
        rows = (prompts == prompt).nonzero().flatten()
        rows = rows[usable[rows]] if bool(usable[rows].any()) else rows[:1]
        best, worst = rows[rewards[rows].argmax()], rows[rewards[rows].argmin()]
        gap, size = rewards[best] - rewards[worst], torch.maximum(rewards[best].abs(), rewards[worst].abs())
        index += [best, worst]
        preferred.append(bool(gap > TIE * size))
    return torch.stack(index), torch.tensor(preferred)


def sequence_log_ratios(
    logprobs: Float[Tensor, "B T"], ref_logprobs: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, " B"]:
    """log(policy / reference) of each response in float32 (nats): the sum over its tokens, those of the mask."""
    return torch.where(mask, logprobs.float() - torch.where(mask, ref_logprobs.float(), 0.0), 0.0).sum(dim=1)


def pair_losses(
    delta: Float[Tensor, " P"], loss: Loss, beta: float, label_smoothing: float = 0.0
) -> Float[Tensor, " P"]:
    """The loss of each pair from the log-ratio of its chosen answer minus that of its rejected one.

    `sigmoid`: -log sigmoid(beta * delta) (Rafailov et al. 2023, arXiv 2305.18290, eq. 7), with the label flipped by a
    chance of `label_smoothing` (Mitchell 2023, "A note on DPO with noisy preferences", eq. 3); `hinge`:
    max(0, 1 - beta * delta) (SLiC; Zhao et al. 2023, arXiv 2305.10425); `ipo`: (delta - 1 / (2 beta))^2 (Azar et al.
    2023, arXiv 2310.12036, eq. 17), where delta is made of means over tokens, as its authors and TRL do, because sums
    would grow with the length and leave beta without a scale.
    """
    if loss == "ipo":
        return (delta - 1 / (2 * beta)).square()
    if loss == "hinge":
        return torch.relu(1 - beta * delta)
    logits = beta * delta
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)


@torch.no_grad()
def pairs_report(
    loss: Tensor,
    weights: Float[Tensor, " P"],
    rewards: Float[Tensor, " B"],
    new: Float[Tensor, "B T"],
    old: Float[Tensor, "B T"],
) -> LossReport:
    """The loss, weighted means of the pairs' implicit `rewards` (chosen, rejected, chosen, ...), and the largest
    |ratio - 1| of the tokens."""
    chosen, rejected = rewards[::2], rewards[1::2]
    sums = {
        names.POLICY_LOSS: loss,
        names.TRAIN_ACCURACY: (weights * (chosen > rejected)).sum(),
        names.TRAIN_MARGIN: (weights * (chosen - rejected)).sum(),
        names.CHOSEN_REWARD: (weights * chosen).sum(),
        names.REJECTED_REWARD: (weights * rejected).sum(),
    }
    return report_of(sums, {names.FIRST_RATIO: ratio_deviation(new, old)})
