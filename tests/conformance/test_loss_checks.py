"""The losses of this package pass the public checks, and each well-known mistake fails them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rlhf_ray import conformance
from rlhf_ray.algorithms import ops
from rlhf_ray.algorithms.aggregation import loss_weights
from rlhf_ray.algorithms.evidence_loss import pair_loss, ranking_loss, rating_loss
from rlhf_ray.algorithms.pairs import pair_losses
from tests.conformance.methods import method

Array = Any


def t(x: Array) -> Tensor:
    return torch.as_tensor(np.asarray(x))


def gradient_of(losses: Callable[[Tensor], Tensor], at: Array) -> Tensor:
    leaf = t(at).clone().requires_grad_()
    torch.autograd.backward(losses(leaf).sum())
    assert leaf.grad is not None
    return leaf.grad


def surrogate_gradient(new: Array, old: Array, advantages: Array, clip: float, dual: float | None) -> Tensor:
    return gradient_of(lambda p: ops.clipped_policy_loss(p, t(old), t(advantages), clip, dual)[0], new)


def gspo(new: Array, old: Array, advantages: Array, mask: Array, low: float, high: float) -> Tensor:
    algorithm = method("gspo", clip_range=low, clip_range_high=high)
    inside = t(mask)
    arguments = [torch.where(inside, x, 0.0) for x in (t(new), t(old), t(advantages)[:, None])]
    losses, _ = algorithm.token_losses(*arguments, inside)
    return torch.where(inside, losses, 0.0).sum(dim=1) / inside.sum(dim=1)


def cispo(new: Array, old: Array, advantages: Array, low: float, high: float) -> Tensor:
    algorithm = method("cispo", clip_range=low, clip_range_high=high)
    mask = torch.ones(new.shape, dtype=torch.bool)
    return gradient_of(lambda p: algorithm.token_losses(p, t(old), t(advantages), mask)[0], new)


def aggregated(losses: Array, mask: Array, how: Any, length: int | None) -> Tensor:
    weights = loss_weights(t(mask), how, length)
    return (torch.where(t(mask), t(losses), 0.0) * weights).sum()


def comparison(better: Array, worse: Array, margin: Array, tie: Array, nu: float) -> Tensor:
    log_nu = torch.tensor(math.log(nu)) if nu else None
    return pair_loss(t(better), t(worse), t(margin), t(tie), log_nu)


def rating(scores: Array, levels: Array, thresholds: Array) -> Tensor:
    return rating_loss(t(scores), t(levels), t(thresholds).expand(len(scores), -1))


def test_the_gradient_of_the_clipped_surrogate_conforms() -> None:
    conformance.check_policy_gradient(surrogate_gradient)


def test_the_loss_of_whole_answers_conforms() -> None:
    conformance.check_sequence_policy_loss(gspo)


def test_the_gradient_of_clipped_weights_conforms() -> None:
    conformance.check_clipped_weight_gradient(cispo)


def test_the_value_loss_conforms() -> None:
    conformance.check_value_loss(lambda v, old, ret, clip: ops.clipped_value_loss(t(v), t(old), t(ret), clip)[0])


@pytest.mark.parametrize("how", ["token_mean", "sequence_mean", "length_normalised", "constant"])
def test_every_aggregation_conforms(how: str) -> None:
    length = 20 if how == "constant" else None
    conformance.check_aggregation(lambda x, m: aggregated(x, m, how, length), how, length or 1)


def test_conservative_dpo_conforms() -> None:
    conformance.check_smoothed_pair_loss(lambda c, r, beta, eps: pair_losses(t(c) - t(r), "sigmoid", beta, eps))


def test_comparisons_with_ties_and_margins_conform() -> None:
    conformance.check_comparison_loss(comparison)


def test_rankings_conform() -> None:
    conformance.check_ranking_loss(lambda scores, ranks, there: ranking_loss(t(scores), t(ranks), t(there)))


def test_ratings_conform() -> None:
    conformance.check_rating_loss(rating)


def naive_ratio_gradient(new: Array, old: Array, advantages: Array, clip: float, dual: float | None) -> Array:
    ratio = np.exp(new - old)
    held = np.where(advantages >= 0, ratio > 1 + clip, (ratio < 1 - clip) | (ratio > (dual or np.inf)))
    return np.where(held, 0.0, -ratio * advantages)


MISTAKES: dict[str, Callable[[], None]] = {
    "a clip on both sides": lambda: conformance.check_policy_gradient(
        lambda p, q, a, clip, _: np.where(np.abs(np.exp(p - q) - 1) > clip, 0.0, -np.exp(p - q) * a)
    ),
    "an exponential without a bound": lambda: conformance.check_policy_gradient(naive_ratio_gradient),
    "a product instead of a mean of ratios": lambda: conformance.check_sequence_policy_loss(
        lambda p, q, a, m, low, high: gspo(p * m.sum(1)[:, None], q * m.sum(1)[:, None], a, m, low, high)
    ),
    "a ratio of padding": lambda: conformance.check_sequence_policy_loss(
        lambda p, q, a, m, low, high: gspo(p, q, a, np.ones_like(m), low, high)
    ),
    "PPO's gradient for CISPO": lambda: conformance.check_clipped_weight_gradient(
        lambda p, q, a, low, high: surrogate_gradient(p, q, a, high, None)
    ),
    "value clipping by the smaller error": lambda: conformance.check_value_loss(
        lambda v, o, r, clip: 0.5 * np.minimum((v - r) ** 2, (o + np.clip(v - o, -(clip or 9), clip or 9) - r) ** 2)
    ),
    "a value loss without its half": lambda: conformance.check_value_loss(
        lambda v, o, r, clip: 2 * ops.clipped_value_loss(t(v), t(o), t(r), clip)[0]
    ),
    "padding in the denominator": lambda: conformance.check_aggregation(
        lambda x, m: np.where(m, x, 0.0).mean(), "token_mean"
    ),
    "answers without a token in the denominator": lambda: conformance.check_aggregation(
        lambda x, m: np.where(m, x, 0.0).sum() / len(x), "sequence_mean"
    ),
    "smoothing that keeps the sign": lambda: conformance.check_smoothed_pair_loss(
        lambda c, r, beta, eps: (1 - eps) * pair_losses(t(c) - t(r), "sigmoid", beta)
    ),
    "a margin that helps": lambda: conformance.check_comparison_loss(
        lambda b, w, m, tie, nu: comparison(b, w, -m, tie, nu)
    ),
    "answers of equal rank as rivals": lambda: conformance.check_ranking_loss(
        lambda s, ranks, there: ranking_loss(t(s), t(np.argsort(np.argsort(ranks, axis=1), axis=1)), t(there))
    ),
    "a ranking read from the end": lambda: conformance.check_ranking_loss(
        lambda s, ranks, there: ranking_loss(t(s), -t(ranks), t(there))
    ),
    "levels read from the end": lambda: conformance.check_rating_loss(
        lambda s, levels, thresholds: rating(s, len(thresholds) - levels, thresholds)
    ),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the mistakes overflow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_fails_with_the_case_that_shows_it(mistake: str) -> None:
    with pytest.raises(AssertionError, match=r"^[^:]+: "):
        MISTAKES[mistake]()


def test_shapes_are_compared_before_numbers() -> None:
    with pytest.raises(AssertionError, match=r"expected the shape \(80,\), got \(\)"):
        conformance.check_value_loss(partial(lambda *_: 0.0))
