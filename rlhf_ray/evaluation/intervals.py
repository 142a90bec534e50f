"""How sure a figure is: intervals of proportions, of their differences, and of means over prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float, Int

Interval = tuple[float, float]
BOOTSTRAP_SAMPLES = 2000


def wilson_interval(successes: float, trials: float, z: float = 1.96) -> Interval:
    """The Wilson score interval of a proportion, 95 % by default (Wilson 1927; Brown, Cai and DasGupta 2001).

    Both may be fractions: half successes, or an `effective_size`. Raises `ValueError` without trials.
    """
    if not trials > 0 or not 0 <= successes <= trials:
        raise ValueError(f"{successes:g} successes in {trials:g} trials are no proportion")
    p, z2 = successes / trials, z * z
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = z / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def newcombe_interval(first: float, first_ci: Interval, second: float, second_ci: Interval) -> Interval:
    """The interval of `first - second`, two independent proportions, from their Wilson intervals (Newcombe 1998,
    method 10)."""
    low = math.hypot(first - first_ci[0], second_ci[1] - second)
    high = math.hypot(first_ci[1] - first, second - second_ci[0])
    return first - second - low, first - second + high


def effective_size(right: Float[np.ndarray, " n"], prompts: Int[np.ndarray, " n"]) -> float:
    """How many independent answers the n dependent ones are worth, between 1 and n (Korn and Graubard 1998).

    Answers about one prompt hang together, and a ranking of K gives K (K - 1) / 2 of them. The size is the one whose
    binomial variance equals the variance between prompts; n where there is one answer a prompt. Where all answers are
    equal that cannot be estimated, and it is the number of prompts.
    """
    _, index = np.unique(prompts, return_inverse=True)
    groups, mean = int(index.max()) + 1, float(right.mean())
    if groups == 1 or mean in (0.0, 1.0):
        return float(groups)
    sums = np.bincount(index, weights=right - mean)
    variance = float((sums**2).sum()) / len(right) ** 2
    if np.bincount(index).max() > 1:
        variance *= groups / (groups - 1)  # few prompts show too little of their own spread
    return min(float(len(right)), max(1.0, mean * (1 - mean) / variance)) if variance > 0 else float(groups)


def bootstrap_ratio(numerators: Float[np.ndarray, " p"], denominators: Float[np.ndarray, " p"], seed: int) -> Interval:
    """The 95 % percentile interval of `sum(numerators) / sum(denominators)` over resampled prompts, one number of
    each a prompt (Efron and Tibshirani 1993, chapter 13)."""
    return bootstrap(len(numerators), lambda drawn: numerators[drawn].sum() / denominators[drawn].sum(), seed)


def bootstrap(
    count: int, statistic: Callable[[Int[np.ndarray, " p"]], float], seed: int, samples: int = BOOTSTRAP_SAMPLES
) -> Interval:
    """The 95 % percentile interval of `statistic`, which gets `count` indices of prompts drawn with replacement.

    Draws for which it is not a number (nothing varies) are left out.
    """
    random = np.random.default_rng(seed)
    values = [float(statistic(random.integers(0, count, count))) for _ in range(samples)]
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def indices(keys: Sequence[object]) -> Int[np.ndarray, " n"]:
    """The keys as numbers from 0, in order of appearance; equal keys get equal numbers."""
    seen: dict[object, int] = {}
    return np.array([seen.setdefault(key, len(seen)) for key in keys], dtype=np.int64)
