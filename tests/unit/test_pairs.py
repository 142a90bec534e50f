"""Pairs of answers: their losses by hand, and which two of a group make one."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_ray.algorithms.pairs import best_and_worst, pair_losses
from tests.unit.test_dpo import PROMPTS, make_batch


def test_pair_losses_by_hand() -> None:
    delta = torch.tensor([2.0, -3.0, 0.0, 12.0])
    log1p = [math.log1p(math.exp(-x)) for x in (1.0, -1.5, 0.0, 6.0)]  # -log sigmoid(0.5 * delta)
    assert pair_losses(delta, "sigmoid", 0.5).tolist() == pytest.approx(log1p, rel=1e-6)
    smoothed = [0.9 * loss + 0.1 * (loss + x) for loss, x in zip(log1p, (1.0, -1.5, 0.0, 6.0), strict=True)]
    assert pair_losses(delta, "sigmoid", 0.5, 0.1).tolist() == pytest.approx(smoothed, rel=1e-6)
    assert pair_losses(delta, "hinge", 0.5).tolist() == [0.0, 2.5, 1.0, 0.0]
    assert pair_losses(delta, "ipo", 0.5).tolist() == [1.0, 16.0, 1.0, 121.0]  # (delta - 1)^2


def test_the_best_and_the_worst_of_each_prompt_make_its_pair() -> None:
    batch = make_batch()
    index, preferred = best_and_worst(batch.rewards, PROMPTS, batch.loss_mask.any(dim=1))
    # Of prompt 1 all answers are worth the same; of prompt 3 the better one was cut off, so one remains; of 4 as well.
    assert index.tolist() == [2, 1, 3, 3, 6, 7, 9, 9, 11, 11]
    assert preferred.tolist() == [True, False, True, False, False]


def test_a_prompt_of_which_nothing_can_be_used_keeps_its_place() -> None:
    usable = torch.tensor([False, False, True, True])
    index, preferred = best_and_worst(torch.tensor([1.0, 2.0, 5.0, 3.0]), torch.tensor([0, 0, 1, 1]), usable)
    assert index.tolist() == [0, 0, 2, 3] and preferred.tolist() == [False, True]


@pytest.mark.parametrize(
    ("rewards", "preferred"),
    [
        ([0.7, 0.7], False),
        ([0.7, 0.7 * (1 + 1e-7)], False),  # what float32 rounding leaves of equal rewards
        ([0.7, 0.7001], True),
        ([0.0, 0.0], False),
        ([1e-9, 2e-9], True),  # a reward may have any scale
        ([-3.0, -3.001], True),
    ],
)
def test_equal_rewards_are_no_preference(rewards: list[float], preferred: bool) -> None:
    both = torch.ones(2, dtype=torch.bool)
    assert best_and_worst(torch.tensor(rewards), torch.tensor([5, 5]), both)[1].tolist() == [preferred]
