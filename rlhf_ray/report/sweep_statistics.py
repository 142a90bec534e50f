"""Means over seeds, rank correlation, and what no other configuration beats in everything."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from rlhf_ray.evaluation.intervals import Interval, bootstrap

_FEWEST = 5  # configurations; the ranks of fewer are in one order too often by chance
_SEED = 0


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean of `count` values and its 95 % interval, None of one value."""

    value: float
    ci95: Interval | None
    count: int


@dataclass(frozen=True, slots=True)
class Correlation:
    """Spearman's rho over `count` configurations and its 95 % interval."""

    rho: float
    ci95: Interval
    count: int


def mean_of(values: Sequence[float]) -> Mean:
    """The mean and Student's t interval, `mean ± t(0.975, n - 1) s / sqrt(n)` (Student 1908). Needs one value."""
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # scipy ships no types

    count, mean = len(values), float(np.mean(values))
    if count < 2:
        return Mean(mean, None, count)
    half = float(stdtrit(count - 1, 0.975)) * float(np.std(values, ddof=1)) / math.sqrt(count)
    return Mean(mean, (mean - half, mean + half), count)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> Correlation | None:
    """Spearman's rho with a percentile interval from resampled pairs, the same at every call; None of fewer than five
    pairs, or where one of the two does not vary."""
    if len(x) < _FEWEST:
        return None
    one, other = np.array(x, dtype=np.float64), np.array(y, dtype=np.float64)
    rho = spearman(one, other)
    if math.isnan(rho):
        return None
    return Correlation(rho, bootstrap(len(one), lambda drawn: spearman(one[drawn], other[drawn]), _SEED), len(one))


def spearman(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"]) -> float:
    """Pearson's correlation of the ranks, ties at their mean rank (Spearman 1904); not a number where one of the two
    does not vary."""
    from scipy.stats import rankdata  # type: ignore[import-untyped]  # scipy ships no types

    one, other = (ranks - ranks.mean() for ranks in (rankdata(x), rankdata(y)))
    scale = math.sqrt(float(one @ one) * float(other @ other))
    return float(one @ other) / scale if scale > 0 else math.nan


def pareto_front(points: Float[np.ndarray, "n objectives"]) -> Bool[np.ndarray, " n"]:
    """Which points no other point beats: is as high in every objective and higher in one."""
    as_high = np.all(points[None] >= points[:, None], axis=2)  # [i, j]: j is as high as i everywhere
    higher = np.any(points[None] > points[:, None], axis=2)
    beaten: Bool[np.ndarray, " n"] = np.any(as_high & higher, axis=1)
    return ~beaten
