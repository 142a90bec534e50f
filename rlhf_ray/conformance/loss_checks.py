"""Checks of somebody's losses: of tokens, answers, pairs, rankings and ratings, and of how they become one number."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

from rlhf_ray.conformance import oracles
from rlhf_ray.conformance.comparison import Array, same, true

_NAN = float("nan")


def check_policy_gradient(
    function: Callable[[Array, Array, Array, float, float | None], Array], tolerance: float = 1e-5
) -> None:
    """`function(logprobs [N], old_logprobs [N], advantages [N], clip_range, dual_clip) -> [N]`: the derivative of the
    sum of the token losses of `check_policy_loss` with respect to `logprobs`."""
    draw = np.random.default_rng(10)
    old, advantages = draw.normal(-2, 1, 80), draw.normal(size=80)
    new = old + draw.normal(0, 0.7, 80)
    for clip, dual in ((0.2, None), (0.1, 3.0), (0.5, 1.5)):
        tokens = zip(new, old, advantages, strict=True)
        want = [oracles.policy_token_gradient(p, q, a, clip, dual) for p, q, a in tokens]
        same(function(new, old, advantages, clip, dual), want, tolerance, f"clip range {clip}, dual clip {dual}")
    extreme = np.array([0.0, 0.0]), np.array([-800.0, -800.0]), np.array([1.0, -1.0])
    found = np.asarray(function(*extreme, 0.2, None), dtype=float)
    true(bool(np.isfinite(found).all()), f"a log-ratio of 800: the gradient is {found}, not finite")


def check_sequence_policy_loss(
    function: Callable[[Array, Array, Array, Array, float, float], Array], tolerance: float = 1e-5
) -> None:
    """`function(logprobs [B, T], old_logprobs [B, T], advantages [B], mask [B, T], low, high) -> [B]`: GSPO's loss of
    each answer. Outside the mask log-probabilities may be NaN."""
    draw = np.random.default_rng(11)
    mask = draw.random((8, 7)) < 0.6
    mask[:, 2] = True
    old = np.where(mask, draw.normal(-2, 1, mask.shape), _NAN)
    new = old + draw.normal(0, 0.3, mask.shape)
    advantages = draw.normal(size=8)
    for low, high in ((0.05, 0.1), (0.3, 0.3)):
        rows = zip(new, old, advantages, mask, strict=True)
        want = [oracles.sequence_policy_loss(p[m].tolist(), q[m].tolist(), a, low, high) for p, q, a, m in rows]
        same(function(new, old, advantages, mask, low, high), want, tolerance, f"clip range {low} and {high}")


def check_clipped_weight_gradient(
    function: Callable[[Array, Array, Array, float, float], Array], tolerance: float = 1e-5
) -> None:
    """`function(logprobs [N], old_logprobs [N], advantages [N], low, high) -> [N]`: the derivative of the sum of
    CISPO's token losses with respect to `logprobs`; clipped tokens keep theirs."""
    draw = np.random.default_rng(12)
    old, advantages = draw.normal(-2, 1, 60), draw.normal(size=60)
    new = old + draw.normal(0, 0.7, 60)
    for low, high in ((1.0, 0.5), (0.2, 0.3)):
        tokens = zip(new, old, advantages, strict=True)
        want = [oracles.clipped_weight_gradient(p, q, a, low, high) for p, q, a in tokens]
        same(function(new, old, advantages, low, high), want, tolerance, f"bounds {low} and {high}")


def check_value_loss(function: Callable[[Array, Array, Array, float | None], Array], tolerance: float = 1e-5) -> None:
    """`function(values [N], old_values [N], returns [N], clip_range) -> [N]`: half the larger squared error."""
    values, old, returns = np.random.default_rng(13).normal(size=(3, 80))
    for clip in (None, 0.2, 1.0):
        tokens = zip(values, old, returns, strict=True)
        want = [oracles.value_token_loss(v, o, r, clip) for v, o, r in tokens]
        same(function(values, old, returns, clip), want, tolerance, f"clip range {clip}")


def check_aggregation(
    function: Callable[[Array, Array], Array], how: str, length: int = 1, tolerance: float = 1e-5
) -> None:
    """`function(losses [B, T], mask [B, T]) -> scalar`: the loss of a minibatch as `oracles.aggregated` defines `how`.
    Losses outside the mask may be NaN, answers without a token count nowhere, and an empty mask gives 0."""
    draw = np.random.default_rng(14)
    mask = np.arange(9) < draw.integers(1, 10, (6, 1))
    mask[:, 0], mask[1, 2] = False, False
    mask[3] = False
    losses = np.where(mask, draw.normal(size=mask.shape), _NAN)
    for case, m in (("an answer without a token", mask), ("nothing left", np.zeros_like(mask))):
        want = oracles.aggregated(losses.tolist(), m.tolist(), how, length)
        same(function(np.where(m, losses, _NAN), m), want, tolerance, f"{how}, {case}")


def check_smoothed_pair_loss(function: Callable[[Array, Array, float, float], Array], tolerance: float = 1e-5) -> None:
    """`function(chosen [P], rejected [P], beta, smoothing) -> [P]`: conservative DPO from log(policy / reference)."""
    chosen, rejected = np.random.default_rng(15).normal(0, 10, (2, 30))
    for beta, smoothing in itertools.product((0.1, 1.0), (0.0, 0.1, 0.4)):
        pairs = zip(chosen.tolist(), rejected.tolist(), strict=True)
        want = [oracles.smoothed_pair_loss(c, r, beta, smoothing) for c, r in pairs]
        same(function(chosen, rejected, beta, smoothing), want, tolerance, f"beta {beta}, smoothing {smoothing}")


def check_comparison_loss(
    function: Callable[[Array, Array, Array, Array, float], Array], tolerance: float = 1e-5
) -> None:
    """`function(better [N], worse [N], margin [N], tie [N], nu) -> [N]`: -log p(better wins), or of a tie. With nu = 0
    it is Bradley-Terry, and there are no ties."""
    draw = np.random.default_rng(16)
    better, worse = draw.normal(0, 2, (2, 20))
    margin = draw.random(20)
    for nu in (0.0, 0.3, 2.0):
        tie = (np.arange(20) % 3 == 0) & (nu > 0)
        rows = zip(better, worse, margin, tie, strict=True)
        want = [-math.log(oracles.comparison_probabilities(b, w, m, nu)[2 if t else 0]) for b, w, m, t in rows]
        same(function(better, worse, margin, tie, nu), want, tolerance, f"nu {nu}")


def check_ranking_loss(function: Callable[[Array, Array, Array], Array], tolerance: float = 1e-5) -> None:
    """`function(scores [N, K], ranks [N, K], present [N, K]) -> [N]`: -log p(ranking) of Plackett and Luce, rank 1
    being the best. Answers that are not present may have any score; those of equal rank do not compete."""
    scores = np.random.default_rng(17).normal(0, 1.5, (6, 4))
    strict = np.array(list(itertools.permutations(range(1, 5))))
    many = np.repeat(scores[:1], len(strict), axis=0)
    found = np.asarray(function(many, strict, np.ones(strict.shape, dtype=bool)), dtype=float)
    want = [-math.log(oracles.ranking_probability(scores[0], ranks)) for ranks in strict.tolist()]
    same(found, want, tolerance, "every order of four answers")
    same(np.exp(-found).sum(), 1.0, 10 * tolerance, "the probabilities of every order of four answers add up to")
    ranks = np.array([[1, 1, 2, 3], [2, 1, 2, 1], [1, 2, 2, 2], [3, 2, 1, 1], [1, 1, 1, 1], [1, 2, 9, 9]])
    present = np.ones(ranks.shape, dtype=bool)
    present[5, 2:] = present[3, 3] = False
    rows = zip(scores, ranks, present, strict=True)
    want = [-math.log(oracles.ranking_probability(s[p], r[p].tolist())) for s, r, p in rows]
    same(function(np.where(present, scores, _NAN), ranks, present), want, tolerance, "ties, and NaN where nothing is")


def check_rating_loss(function: Callable[[Array, Array, Array], Array], tolerance: float = 1e-5) -> None:
    """`function(scores [N], levels [N], thresholds [T]) -> [N]`: -log p(level) of cumulative logits; levels are 0 to
    T."""
    draw = np.random.default_rng(18)
    for thresholds in (np.array([-1.0, 0.1, 0.9, 2.5]), np.array([0.3])):
        levels = np.arange(12) % (len(thresholds) + 1)
        scores = draw.normal(0, 2, 12)
        pairs = zip(scores, levels.tolist(), strict=True)
        want = [-math.log(oracles.level_probability(s, k, thresholds.tolist())) for s, k in pairs]
        same(function(scores, levels, thresholds), want, tolerance, f"{len(thresholds) + 1} levels")
        everything = np.arange(len(thresholds) + 1)
        found = np.asarray(function(np.full(len(everything), 0.7), everything, thresholds), dtype=float)
        same(np.exp(-found).sum(), 1.0, 10 * tolerance, "the probabilities of all levels add up to")
