"""Whether a reward model pays for length, and how good it is where length cannot help it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float

from rlhf_ray.evaluation.intervals import Interval, bootstrap, indices
from rlhf_ray.evaluation.reward_accuracy import Accuracy, Gap, accuracy_of, gap
from rlhf_ray.evaluation.reward_items import Decision
from rlhf_ray.strict import Strict

_POINTS = 400
_PENALTY = 100.0  # scikit-learn's C: weak, but it keeps the weights finite where the data is separable


class LengthBias(Strict):
    """How score and length hang together in comparisons (pairs, rankings, ratings), lengths in tokens.

    `pearson` and `spearman` correlate score difference with length difference, every comparison seen from both sides,
    so that they do not depend on who was right: above zero, the longer answer gets the higher score. `longer_right`,
    `shorter_right` and `equal_length` split the accuracy by which answer people preferred; `gap` is the first minus the
    second, `balanced` their mean, which is 50 % for a model that only counts tokens; `always_longer` is the accuracy of
    that model on this data.

    `length_controlled` is the accuracy of the part of the score difference that length does not explain (the residual
    of its regression on length difference). `score_weight` and `length_weight` are what a logistic regression of the
    human choice makes of that part and of length, per standard deviation: with a `score_weight` near zero the score
    knows little but length (the idea of length-controlled win rates, Dubois et al. 2024, arXiv 2404.04475).

    `points` are (length difference, score difference), better minus worse, of 400 comparisons at most.
    """

    pearson: float | None
    pearson_ci95: Interval | None
    spearman: float | None
    longer_right: Accuracy
    shorter_right: Accuracy
    equal_length: Accuracy
    gap: Gap | None
    balanced: float | None
    always_longer: float
    length_controlled: Accuracy
    score_weight: float
    length_weight: float
    points: tuple[tuple[int, float], ...]


def length_bias(group: Sequence[Decision], seed: int) -> LengthBias | None:
    """The figures over all comparisons, None if there is none or all are between answers of equal length."""
    judged = [decision for decision in group if decision.kind != "thumb" and not decision.tie]
    scores = np.array([decision.margin for decision in judged], dtype=np.float64)
    lengths = np.array([decision.length_difference for decision in judged], dtype=np.float64)
    if not lengths.any():
        return None
    varies = bool(scores.any())
    residual = scores - lengths * float(scores @ lengths) / float(lengths @ lengths)
    weights = logistic_weights(residual, lengths)
    longer = accuracy_of("longer answer is better", [d for d in judged if d.length_difference > 0])
    shorter = accuracy_of("shorter answer is better", [d for d in judged if d.length_difference < 0])
    known = [part.accuracy for part in (longer, shorter) if part.accuracy is not None]
    controlled = [replace(decision, margin=float(rest)) for decision, rest in zip(judged, residual, strict=True)]
    return LengthBias(
        pearson=both_sides_pearson(scores, lengths) if varies else None,
        pearson_ci95=_pearson_interval(judged, scores, lengths, seed) if varies else None,
        spearman=_both_sides_spearman(scores, lengths) if varies else None,
        longer_right=longer,
        shorter_right=shorter,
        equal_length=accuracy_of("equally long", [d for d in judged if d.length_difference == 0]),
        gap=gap(longer, shorter),
        balanced=sum(known) / 2 if len(known) == 2 else None,
        always_longer=float(np.where(lengths == 0, 0.5, lengths > 0).mean()),
        length_controlled=accuracy_of("without what length explains", controlled),
        score_weight=weights[0],
        length_weight=weights[1],
        points=_points(scores, lengths, seed),
    )


def both_sides_pearson(scores: Float[np.ndarray, " n"], lengths: Float[np.ndarray, " n"]) -> float:
    """Pearson's correlation with every comparison seen from both sides, where both means are zero; NaN if one of them
    does not vary."""
    scale = float(np.sqrt((scores @ scores) * (lengths @ lengths)))
    return float(scores @ lengths) / scale if scale > 0 else float("nan")


def logistic_weights(residual: Float[np.ndarray, " n"], lengths: Float[np.ndarray, " n"]) -> tuple[float, float]:
    """The weights of score (its residual) and length, each per standard deviation, in the logistic regression of the
    human choice. No intercept: the order of the two answers means nothing."""
    from sklearn.linear_model import LogisticRegression  # type: ignore[import-untyped]  # ships no types

    features = np.stack([residual, lengths], axis=1)
    spread = np.sqrt((features**2).mean(axis=0))
    features = features / np.where(spread > 0, spread, 1.0)
    both = np.concatenate([features, -features])
    chosen = np.repeat([1, 0], len(features))
    fitted = LogisticRegression(C=_PENALTY, fit_intercept=False, tol=1e-8, max_iter=1000).fit(both, chosen)
    return float(fitted.coef_[0, 0]), float(fitted.coef_[0, 1])


def _both_sides_spearman(scores: Float[np.ndarray, " n"], lengths: Float[np.ndarray, " n"]) -> float:
    from scipy.stats import spearmanr  # type: ignore[import-untyped]  # scipy ships no types

    return float(spearmanr(np.concatenate([scores, -scores]), np.concatenate([lengths, -lengths])).statistic)


def _pearson_interval(
    judged: Sequence[Decision], scores: Float[np.ndarray, " n"], lengths: Float[np.ndarray, " n"], seed: int
) -> Interval | None:
    prompts = indices([decision.prompt for decision in judged])
    if prompts.max() == 0:
        return None
    cross, square_s, square_l = (
        np.bincount(prompts, weights=product) for product in (scores * lengths, scores**2, lengths**2)
    )

    def drawn_pearson(drawn: np.ndarray) -> float:
        scale = float(np.sqrt(square_s[drawn].sum() * square_l[drawn].sum()))
        return float(cross[drawn].sum()) / scale if scale > 0 else float("nan")

    return bootstrap(len(cross), drawn_pearson, seed)


def _points(
    scores: Float[np.ndarray, " n"], lengths: Float[np.ndarray, " n"], seed: int
) -> tuple[tuple[int, float], ...]:
    chosen = np.sort(np.random.default_rng(seed).permutation(len(scores))[:_POINTS])
    return tuple((int(lengths[index]), float(scores[index])) for index in chosen)
