"""Coefficients that follow a measurement, each value from the start of the run instead of from the one before."""

from __future__ import annotations

import math

from rlhf_ray.conformance.comparison import Row


def adaptive_coefs(coef: float, target: float, horizon: int, kls: Row, num_sequences: int) -> list[float]:
    """The coefficient after each update, each from the start: coef * prod(1 + clip(kl/target - 1) n/horizon)."""
    factors = [1 + max(-0.2, min(0.2, kl / target - 1)) * num_sequences / horizon for kl in kls]
    return [coef * math.prod(factors[: i + 1]) for i in range(len(kls))]


def holt(kls: Row, smoothing: float) -> tuple[float, float]:
    """Level and trend after the last of `kls` (Holt 1957): the first is the level, and there is no trend yet."""
    if len(kls) == 1:
        return kls[0], 0.0
    level, trend = holt(kls[:-1], smoothing)
    now = smoothing * (level + trend) + (1 - smoothing) * kls[-1]
    return now, smoothing * trend + (1 - smoothing) * (now - level)


def predicted_errors(kls: Row, target: float, horizon: float, smoothing: float) -> list[float]:
    """After each measurement the KL that is predicted `horizon` steps ahead, over the target, less 1."""
    ends = [holt(kls[: i + 1], smoothing) for i in range(len(kls))]
    return [(level + horizon * trend) / target - 1 for level, trend in ends]


def gap_betas(beta: float, alpha: float, momentum: float, gaps: Row, bounds: tuple[float, float]) -> list[float]:
    """beta * (1 + alpha * (gap - average of earlier gaps)) of each batch, within `bounds` (Wu et al. 2024, arXiv
    2407.08639, eq. 6 and 8). `gaps` are of log-ratios; the average starts at the first gap."""
    scaled = [beta * gap for gap in gaps]
    found = []
    for i, gap in enumerate(scaled):
        mean = scaled[0] * momentum**i + sum((1 - momentum) * momentum ** (i - 1 - j) * scaled[j] for j in range(i))
        found.append(min(max(beta * (1 + alpha * (gap - mean)), bounds[0]), bounds[1]))
    return found


def prices(price: float, rate: float, budget: float, costs: Row, bounds: tuple[float, float]) -> list[float]:
    """The price of a unit of cost in each step: the one before times exp(rate * (cost - budget)), within `bounds`."""
    found = [price]
    for cost in costs[:-1]:
        found.append(min(max(found[-1] * math.exp(rate * (cost - budget)), bounds[0]), bounds[1]))
    return found
