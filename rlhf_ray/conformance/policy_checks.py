"""Checks of what a policy is moved by: KL estimators and their gradients, trust regions, coefficients that adapt."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

from rlhf_ray.conformance import oracles
from rlhf_ray.conformance.comparison import Array, same, true


def check_kl_estimator(function: Callable[[Array, Array], Array], estimator: str, tolerance: float = 1e-5) -> None:
    """`function(logprobs [N], ref_logprobs [N]) -> [N]`: `k1`, `k2` or `k3` of sampled tokens. k1 and k3 are unbiased,
    k3 is never negative, and near 0 neither is a rounding error."""
    draw = np.random.default_rng(30)
    logprobs, ref = -draw.exponential(2.0, (2, 40))
    want = [oracles.kl_estimate(p, q, estimator) for p, q in zip(logprobs, ref, strict=True)]
    same(function(logprobs, ref), want, tolerance, "drawn at random")
    if estimator == "k2":
        return
    for case in range(3):
        z, ref_z = draw.normal(0, 1.5, (2, 5)).tolist()
        p, q = np.array(oracles.log_softmax(z)), np.array(oracles.log_softmax(ref_z))
        mean = float((np.exp(p) * np.asarray(function(p, q), dtype=float)).sum())
        same(mean, oracles.kl_divergence(z, ref_z), 10 * tolerance, f"the mean over the policy's tokens, case {case}")
    if estimator == "k3":
        near = np.asarray(function(logprobs, logprobs + 1e-3), dtype=float)
        true(bool((near >= 0).all()), f"k3 near 0 is negative: {near.min()}")


def check_sequence_gradient(
    function: Callable[[Array, Array, Array, Array, float], Array], tolerance: float = 1e-4
) -> None:
    """`function(table, ref_table, sequences [S, T], rewards [S], coef) -> like table`: the mean, over sequences drawn
    from the policy, of the gradient of a policy-gradient method's loss without clipping, in the first update, with the
    KL to the reference in the reward. It must be minus the gradient of E[reward - coef * KL], exactly.

    The policy is a table of logits: row v is what follows token v, the last row what comes first. S is every sequence
    of two tokens of three, each of which has to be weighed with its probability (groups with that of the group).
    """
    draw, length = np.random.default_rng(31), 2
    everything = np.array(oracles.sequences(3, length))
    for coef in (0.0, 1.0, 0.3):
        table, ref = draw.normal(0, 1, (2, 4, 3))
        rewards = draw.normal(size=len(everything))
        want = -oracles.expected_return_gradient(table, ref, rewards.tolist(), length, coef)
        same(function(table, ref, everything, rewards, coef), want, tolerance, f"KL coefficient {coef}")
    silent = np.zeros(len(everything))
    want = -oracles.expected_return_gradient(table, ref, silent.tolist(), length, 1.0)
    same(function(table, ref, everything, silent, 1.0), want, tolerance, "the KL alone")


def check_trust_region_step(
    function: Callable[[Array, Array, Array, Array, float, float, int], Array], tolerance: float = 1e-3
) -> None:
    """`function(features [N, D], theta [D, V], actions [N], advantages [N], max_kl, damping, halvings) -> theta`: one
    TRPO step of the policy softmax(features @ theta), down the loss -mean(ratio * advantage). It is the natural step of
    the dense Fisher matrix, halved until the loss is lower and the KL at most `max_kl`; else `theta` as it was."""
    taken = set()
    for seed, spread, max_kl, damping, halvings in (
        (32, 1, 1e-4, 0.1, 10), (32, 1, 0.01, 0.01, 10), (32, 1, 3.0, 1e-3, 10), (32, 1, 3.0, 1e-3, 1),
        (61, 2, 3.0, 1e-3, 10),  # the whole step is within the region, but the loss is lower only at a quarter
    ):  # fmt: skip
        draw = np.random.default_rng(seed)
        features, theta = draw.normal(size=(7, 3)), spread * draw.normal(size=(3, 4))
        actions, advantages = draw.integers(0, 4, 7), draw.normal(size=7)
        want, fraction = _trust_region_step(features, theta, actions, advantages, max_kl, damping, halvings)
        found = function(features, theta, actions, advantages, max_kl, damping, halvings)
        case = f"trust region {max_kl}, damping {damping}, {halvings} halvings ({fraction:g} of the step)"
        scale = np.abs(want - theta).max() or 1.0
        same((np.asarray(found, dtype=float) - theta) / scale, (want - theta) / scale, tolerance, case)
        taken.add(fraction)
    true({0.0, 1.0} < taken, f"the cases must take, halve and refuse steps, not {taken}")


def _trust_region_step(
    features: Array, theta: Array, actions: Array, advantages: Array, max_kl: float, damping: float, halvings: int
) -> tuple[Array, float]:
    """The new parameters, and the share of the step that was taken."""
    count, words = len(features), theta.shape[1]
    weights = np.full(count, 1 / count)
    start = oracles.softmax(features @ theta)
    chosen = start[np.arange(count), actions]
    jacobian = np.zeros((count, words, theta.size))
    for word in range(words):
        jacobian[:, word, word::words] = features
    slope = np.eye(words)[actions] - start  # of log p(action)
    gradient = -np.einsum("n,nv,nvp->p", advantages * weights, slope, jacobian)

    def logits(step: Array) -> Array:
        return features @ (theta + step.reshape(theta.shape))

    def loss(step: Array) -> float:
        ratio = oracles.softmax(logits(step))[np.arange(count), actions] / chosen
        return -float((weights * ratio * advantages).sum())

    def kl(step: Array) -> float:
        return oracles.mean_kl(features @ theta, logits(step), weights)

    fisher = oracles.fisher_matrix(features @ theta, jacobian, weights)
    step = oracles.natural_step(gradient, fisher, damping, max_kl)
    fraction = oracles.line_search(step, loss, kl, max_kl, halvings)
    return theta + (fraction * step).reshape(theta.shape), fraction


def check_kl_controller(function: Callable[[float, float, int, Array, int], Array], tolerance: float = 1e-9) -> None:
    """`function(coef, target, horizon, kls [S], num_sequences) -> [S]`: the coefficient after each measured KL (nats
    per sequence), by proportional control (Ziegler et al. 2019, section 2.2); `horizon` counts sequences."""
    kls = np.array([6.0, 6.6, 30.0, 0.0, 5.4, 100.0, -2.0])
    for horizon, number in ((1000, 64), (10_000, 512)):
        want = oracles.adaptive_coefs(0.1, 6.0, horizon, kls.tolist(), number)
        same(function(0.1, 6.0, horizon, kls, number), want, tolerance, f"horizon {horizon}, {number} sequences")


def check_kl_target(
    function: Callable[[float, float, float, float, float, float, float, Array], Array], tolerance: float = 1e-9
) -> None:
    """`function(beta, target, gain, horizon, band, smoothing, max_change, kls [S]) -> [S]`: beta after each KL, times
    exp(gain * predicted error) by at most `max_change` either way, not at all within `band` of the target."""
    draw = np.random.default_rng(33)
    kls = np.concatenate([np.linspace(0.1, 4.0, 12), draw.uniform(1.5, 2.5, 8), [30.0, 0.0, 2.0]])
    for gain, horizon, band, smoothing in itertools.product((0.1, 0.5), (0.0, 3.0), (0.0, 0.2), (0.0, 0.6)):
        beta, want = 0.1, []
        for error in oracles.predicted_errors(kls.tolist(), 2.0, horizon, smoothing):
            change = min(max(math.exp(gain * error), 1 / 1.3), 1.3)
            beta *= change if abs(error) > band else 1.0
            want.append(beta)
        found = function(0.1, 2.0, gain, horizon, band, smoothing, 1.3, kls)
        same(found, want, tolerance, f"gain {gain}, horizon {horizon}, band {band}, smoothing {smoothing}")
