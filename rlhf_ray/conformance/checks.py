"""Checks of somebody's functions: random and nasty cases against the oracles, and what must not change a result."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from rlhf_ray.conformance import oracles
from rlhf_ray.conformance.comparison import Array, same

_NAN = float("nan")


def check_selected_logprobs(function: Callable[[Array, Array, float], Array], tolerance: float = 1e-5) -> None:
    """`function(logits [N, V], targets [N], temperature) -> [N]`: log softmax(logits / temperature) at the targets."""
    draw = np.random.default_rng(0)
    logits = draw.normal(0, 3, (6, 11))
    logits[0] *= 1e3  # exp would overflow
    logits[1, 4:] = -np.inf  # forbidden tokens
    logits[2] += 500.0  # a shift changes nothing
    targets = np.array([int(logits[0].argmax()), 0, 3, 10, 5, 7])
    for temperature in (1.0, 0.7, 1.9):
        rows = [[max(z, -1e300) for z in row] for row in logits.tolist()]
        want = [oracles.log_softmax(row, temperature)[t] for row, t in zip(rows, targets, strict=True)]
        same(function(logits, targets, temperature), want, tolerance, f"temperature {temperature}")


def check_top_p_logprobs(function: Callable[[Array, float, float], Array], tolerance: float = 1e-5) -> None:
    """`function(logits [N, V], temperature, top_p) -> [N, V]`: log-probabilities of what top-p sampling draws from."""
    logits = np.random.default_rng(1).normal(0, 2, (5, 9))
    for temperature, top_p in itertools.product((1.0, 0.6), (0.3, 0.9, 1.0)):
        want = [oracles.top_p_log_softmax(row, temperature, top_p) for row in logits.tolist()]
        same(function(logits, temperature, top_p), want, tolerance, f"temperature {temperature}, top-p {top_p}")


def check_advantages(function: Callable[[Array, Array, Array, float, float], Array], tolerance: float = 1e-5) -> None:
    """`function(rewards [B, T], values [B, T], mask [B, T], gamma, lam) -> [B, T]`: generalized advantages of the
    action tokens `mask`, 0 elsewhere. Between turns, and in the padding, rewards and values may be NaN."""
    draw = np.random.default_rng(2)
    rewards, values = draw.normal(size=(2, 6, 9))
    mask = draw.random((6, 9)) < 0.6
    mask[0] = True
    mask[1] = [False, True, True, False, False, True, True, False, False]  # an observation between two turns
    mask[2] = [True] + [False] * 8
    for gamma, lam in ((1.0, 0.95), (0.9, 0.5), (0.99, 1.0), (0.9, 0.0)):
        rows = zip(rewards.tolist(), values.tolist(), mask.tolist(), strict=True)
        want = [oracles.advantages(*row, gamma, lam) for row in rows]
        case = f"gamma {gamma}, lambda {lam}"
        same(function(rewards, values, mask, gamma, lam), want, tolerance, case)
        holes = np.where(mask, rewards, _NAN), np.where(mask, values, _NAN)
        same(function(*holes, mask, gamma, lam), want, tolerance, f"{case}, NaN outside the mask")
        more, longer, none = (np.pad(x, ((0, 0), (0, 3))) for x in (rewards, values, mask))
        padded = np.asarray(function(more, longer, none, gamma, lam))[:, :9]
        same(padded, want, tolerance, f"{case}, three more columns of padding")


def check_policy_loss(
    function: Callable[[Array, Array, Array, float, float | None], Array], tolerance: float = 1e-5
) -> None:
    """`function(logprobs [B, T], old_logprobs [B, T], advantages [B, T], clip_range, dual_clip) -> [B, T]`: minus PPO's
    clipped surrogate of each token."""
    draw = np.random.default_rng(3)
    old, advantages = draw.normal(-2, 1, (4, 50)), draw.normal(size=(4, 50))
    new = old + draw.normal(0, 0.6, (4, 50))
    new[0, :10], advantages[1, :10] = old[0, :10], 0.0
    for clip, dual in ((0.2, None), (0.1, 3.0), (0.5, 1.5)):
        tokens = zip(new.ravel(), old.ravel(), advantages.ravel(), strict=True)
        want = np.reshape([oracles.policy_token_loss(p, q, a, clip, dual) for p, q, a in tokens], new.shape)
        same(function(new, old, advantages, clip, dual), want, tolerance, f"clip range {clip}, dual clip {dual}")


def check_group_advantages(
    function: Callable[[Array, Array], Array],
    leave_one_out: bool = False,
    scale: bool | None = None,
    tolerance: float = 1e-5,
) -> None:
    """`function(rewards [B], groups [B]) -> [B]`: GRPO's or RLOO's (`leave_one_out`) advantage of an answer, divided by
    the group's deviation if `scale` (None: GRPO's is, RLOO's is not).
    Groups of equal rewards, and of one answer, are exactly 0; order of rows and names of groups mean nothing."""
    scale = not leave_one_out if scale is None else scale
    draw = np.random.default_rng(4)
    groups = np.repeat([0, 1, 2, 3, 4], [4, 4, 2, 3, 1])
    rewards = draw.normal(size=14)
    rewards[groups == 1] = 0.1 + 0.2  # equal, and no binary fraction
    order = draw.permutation(14)
    for case, r, g in (("as they are", rewards, groups), ("in another order", rewards[order], (7 - groups)[order])):
        want = oracles.group_advantages(r.tolist(), g.tolist(), leave_one_out, scale)
        found = np.asarray(function(r, g), dtype=float)
        same(found, want, tolerance, case)
        if (found[np.array(want) == 0.0] != 0.0).any():
            raise AssertionError(f"{case}: groups that say nothing must be exactly 0, found {found}")


def check_whitening(function: Callable[[Array, Array], Array], tolerance: float = 1e-4) -> None:
    """`function(x [B, T], mask [B, T]) -> [B, T]`: mean 0 and unbiased variance 1 over the mask, 0 outside."""
    draw = np.random.default_rng(5)
    x, mask = draw.normal(3, 2, (4, 6)), draw.random((4, 6)) < 0.5
    picked = x[mask]
    want = np.where(mask, (x - picked.mean()) / picked.std(ddof=1), 0.0)
    same(function(x, mask), want, tolerance, "plain")
    same(function(np.where(mask, x, _NAN), mask), want, tolerance, "NaN outside the mask")


def check_kl_penalty_gradient(function: Callable[[Array, Array], Array], tolerance: float = 1e-5) -> None:
    """`function(logits [V], ref_logits [V]) -> [V]`: the gradient, with respect to `logits`, of a KL penalty's mean
    over tokens drawn from softmax(logits), the draw held fixed. It must be that of KL(policy || reference)."""
    draw = np.random.default_rng(6)
    for case in range(4):
        logits, ref = draw.normal(0, 1.5, (2, 5))
        want = oracles.kl_gradient(logits.tolist(), ref.tolist())
        same(function(logits, ref), want, tolerance, f"case {case}")


def check_pair_loss(function: Callable[[Array, Array, float, str], Array], tolerance: float = 1e-5) -> None:
    """`function(chosen [P], rejected [P], beta, loss) -> [P]`: the preference loss, `loss` being sigmoid, hinge or ipo,
    from log(policy / reference) of the answers."""
    chosen, rejected = np.random.default_rng(7).normal(0, 20, (2, 30))
    for beta, loss in itertools.product((0.05, 1.0), ("sigmoid", "hinge", "ipo")):
        pairs = zip(chosen.tolist(), rejected.tolist(), strict=True)
        want = [oracles.pair_loss(c, r, beta, loss) for c, r in pairs]
        same(function(chosen, rejected, beta, loss), want, tolerance, f"{loss}, beta {beta}")


def check_conjugate_gradient(
    function: Callable[[Callable[[Array], Array], Array, int], Array], tolerance: float = 1e-4
) -> None:
    """`function(product, target [N], iterations) -> [N]`: x with product(x) = target, `product` being a positive
    definite matrix's; exact after N iterations."""
    draw = np.random.default_rng(8)
    for size in (1, 3, 6):
        root = draw.normal(size=(size, size))
        matrix, target = root @ root.T + np.eye(size), draw.normal(size=size)
        found = function(lambda x, m=matrix: m @ np.asarray(x, dtype=float), target, size + 2)  # type: ignore[misc]  # binds the matrix
        same(found, np.linalg.solve(matrix, target), tolerance, f"{size} unknowns")
