"""Whether a score's probabilities are true: reliability bins, expected calibration error, Brier score, temperature."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from rlhf_ray.evaluation.reward_items import Decision
from rlhf_ray.strict import Strict

_BINS = 10
_PER_BIN = 20  # with fewer, a bin's share is mostly noise
_SIMULATIONS = 500


class Bin(Strict):
    """The mean predicted probability of a bin, the observed share, and how many decisions it holds."""

    predicted: float
    observed: float
    count: int


class Calibration(Strict):
    """How well probabilities fit outcomes.

    `ece` is the expected calibration error over equal-mass `bins` (Guo et al. 2017, arXiv 1706.04599; Nguyen and
    O'Connor 2015). It is above zero for a perfect model too: in 95 % of draws of outcomes from these very
    probabilities it is below `ece_if_calibrated`. `brier` is the mean squared error of the probability (a coin: 0.25).
    `temperature` divides the scores so that their likelihood is highest: above 1 the model is too sure of itself. It is
    None where no finite one exists: not one decision is wrong, or the scores point the wrong way.
    """

    decisions: int
    ece: float
    ece_if_calibrated: float
    brier: float
    temperature: float | None
    bins: tuple[Bin, ...]


def calibrate_pairs(group: Sequence[Decision], seed: int) -> Calibration | None:
    """Of pairs and rankings: P(better) = sigmoid(score difference), as Bradley-Terry and Plackett-Luce have it (and
    Davidson's model of ties, for a pair that is none).

    Which answer is better is known, so the event of a bin is that the answer with the higher score is the better one:
    probabilities are from 0.5 to 1, and equal scores are half right. None without such decisions.
    """
    margins = _margins(group, ("pair", "ranking"))
    right = np.where(margins == 0, 0.5, (margins > 0).astype(np.float64))
    return _calibration(_sigmoid(np.abs(margins)), right, margins, seed)


def calibrate_thumbs(group: Sequence[Decision], seed: int) -> Calibration | None:
    """Of thumbs: P(good) = sigmoid(score + bias). None without thumbs."""
    thumbs = [decision for decision in group if decision.kind == "thumb"]
    good = np.array([decision.good for decision in thumbs], dtype=np.float64)
    margins = _margins(thumbs, ("thumb",))
    return _calibration(_sigmoid(np.where(good > 0, margins, -margins)), good, margins, seed)


def reliability_bins(predicted: Float[np.ndarray, " n"], observed: Float[np.ndarray, " n"]) -> list[Bin]:
    """Bins of equal mass by predicted probability: one for every 20 decisions, 1 at least and 10 at most."""
    order = np.argsort(predicted, kind="stable")
    parts = np.array_split(order, max(1, min(_BINS, len(order) // _PER_BIN)))
    return [
        Bin(predicted=float(predicted[part].mean()), observed=float(observed[part].mean()), count=len(part))
        for part in parts
    ]


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """The mean over decisions of |observed - predicted| of their bin."""
    return sum(b.count * abs(b.observed - b.predicted) for b in bins) / sum(b.count for b in bins)


def best_temperature(margins: Float[np.ndarray, " n"]) -> float | None:
    """The T that maximises the mean of log sigmoid(margin / T), None if it is not finite and positive.

    The likelihood is concave in 1 / T, so the root of its derivative is the one maximum.
    """
    from scipy.optimize import brentq  # type: ignore[import-untyped]  # scipy ships no types

    def slope(inverse: float) -> float:
        return float((margins * _sigmoid(-inverse * margins)).mean())

    if len(margins) == 0 or slope(0.0) <= 0 or not (margins < 0).any():
        return None
    high = 1.0 / float(np.abs(margins).max())
    while slope(high) > 0:
        high *= 2
    return 1.0 / float(brentq(slope, 0.0, high, rtol=1e-10))


def _calibration(
    predicted: Float[np.ndarray, " n"],
    observed: Float[np.ndarray, " n"],
    margins: Float[np.ndarray, " n"],
    seed: int,
) -> Calibration | None:
    if len(predicted) == 0:
        return None
    bins = reliability_bins(predicted, observed)
    random = np.random.default_rng(seed)
    drawn = [
        expected_calibration_error(reliability_bins(predicted, (random.random(len(predicted)) < predicted) * 1.0))
        for _ in range(_SIMULATIONS)
    ]
    return Calibration(
        decisions=len(predicted),
        ece=expected_calibration_error(bins),
        ece_if_calibrated=float(np.percentile(drawn, 95)),
        brier=float(((1 - _sigmoid(margins)) ** 2).mean()),
        temperature=best_temperature(margins),
        bins=tuple(bins),
    )


def _margins(group: Sequence[Decision], kinds: tuple[str, ...]) -> Float[np.ndarray, " n"]:
    return np.array([d.margin for d in group if d.kind in kinds and not d.tie], dtype=np.float64)


def _sigmoid(x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return 0.5 * (1 + np.tanh(0.5 * x))  # exp would overflow
