"""TRPO's step with the Fisher matrix written out (Schulman et al. 2015, arXiv 1502.05477, section 6, appendix C).

N states (positions of action tokens) with weights that add up to 1, V tokens, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def softmax(logits: Floats) -> Floats:
    """Along the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    found: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return found


def fisher_matrix(logits: Floats, jacobian: Floats, weights: Floats) -> Floats:
    """`[P, P]`: the weighted sum over states of J' (diag(p) - p p') J, from logits `[N, V]` and their derivatives
    `jacobian` `[N, V, P]`."""
    found = np.zeros((jacobian.shape[2],) * 2)
    for p, slopes, weight in zip(softmax(logits), jacobian, weights, strict=True):
        found += weight * slopes.T @ (np.diag(p) - np.outer(p, p)) @ slopes
    return found


def natural_step(loss_gradient: Floats, fisher: Floats, damping: float, max_kl: float) -> Floats:
    """The step `[P]` down the natural gradient at whose end the quadratic model of the KL, damping included, is
    `max_kl`."""
    damped = fisher + damping * np.eye(len(fisher))
    direction = np.linalg.solve(damped, -loss_gradient)
    found: Floats = direction * np.sqrt(2 * max_kl / (direction @ damped @ direction))
    return found


def mean_kl(old_logits: Floats, new_logits: Floats, weights: Floats) -> float:
    """The weighted sum over states of KL(old || new), nats."""
    old, new = softmax(old_logits), softmax(new_logits)
    return float((weights * (old * (np.log(old) - np.log(new))).sum(axis=1)).sum())


def line_search(
    step: Floats, loss: Callable[[Floats], float], kl: Callable[[Floats], float], max_kl: float, halvings: int
) -> float:
    """The share of `step` that is taken: the first of 1, 1/2, 1/4, ... (`halvings` of them) that lowers the loss and
    stays within `max_kl`; 0 if none does."""
    for fraction in (0.5**i for i in range(halvings)):
        if loss(fraction * step) < loss(np.zeros_like(step)) and kl(fraction * step) <= max_kl:
            return fraction
    return 0.0
