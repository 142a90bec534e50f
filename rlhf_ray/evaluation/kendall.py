"""Rank correlation of scores with people's rankings and ratings: Kendall's tau-b."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from rlhf_ray.evaluation.intervals import Interval, bootstrap, bootstrap_ratio, indices
from rlhf_ray.evaluation.reward_items import ScoredItem, rating_group
from rlhf_ray.evidence import Ranking, Rating
from rlhf_ray.strict import Strict

_POOLED_SAMPLES = 500  # each is a sort of all ratings


class KendallTau(Strict):
    """Kendall's tau-b (Kendall 1945) of scores and judgements, for one kind and objective.

    `scope` is `prompt`: the mean over `groups`, each the answers to one prompt by one annotator; or `all`: one tau over
    the ratings of all prompts. `ci95` is the bootstrap interval over prompts. A group that people find all equal says
    nothing and is in `left_out`; scores that are all equal get 0. `groups` of scope `all` counts ratings.
    """

    kind: Literal["ranking", "rating"]
    objective: str
    scope: Literal["prompt", "all"]
    tau: float
    ci95: Interval
    groups: int
    prompts: int
    left_out: int


def tau_b(scores: Sequence[float], values: Sequence[float]) -> float | None:
    """Kendall's tau-b from -1 to 1; None if `values` (higher is better) are all equal, 0 if `scores` are."""
    from scipy.stats import kendalltau  # type: ignore[import-untyped]  # scipy ships no types

    if len(set(values)) < 2:
        return None
    return float(kendalltau(scores, values).statistic) if len(set(scores)) > 1 else 0.0


def kendall(items: Sequence[ScoredItem], seed: int) -> list[KendallTau]:
    """The rows that the items allow: rankings, ratings within prompts, ratings over all prompts; by objective."""
    rows = []
    rankings: defaultdict[str, list[tuple[object, list[float], list[float]]]] = defaultdict(list)
    rated: defaultdict[str, list[ScoredItem]] = defaultdict(list)
    for item in items:
        evidence, objective = item.evidence, item.evidence.label.objective
        if isinstance(evidence, Ranking):
            rankings[objective].append((evidence.prompt, list(item.scores), [-float(rank) for rank in evidence.ranks]))
        elif isinstance(evidence, Rating):
            rated[objective].append(item)
    for objective, groups in sorted(rankings.items()):
        rows.append(_within("ranking", objective, groups, seed))
    for objective, ratings in sorted(rated.items()):
        rows += [_within("rating", objective, _groups(ratings), seed), _pooled(objective, ratings, seed)]
    return [row for row in rows if row is not None]


def _groups(ratings: Sequence[ScoredItem]) -> list[tuple[object, list[float], list[float]]]:
    """(prompt, scores, values) of ratings that can be compared."""
    groups: defaultdict[tuple[object, ...], tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for item in ratings:
        scores, values = groups[rating_group(item)]
        scores.append(item.scores[0])
        values.append(_value(item))
    return [(key[0], scores, values) for key, (scores, values) in groups.items() if len(scores) > 1]


def _within(
    kind: Literal["ranking", "rating"],
    objective: str,
    groups: Sequence[tuple[object, list[float], list[float]]],
    seed: int,
) -> KendallTau | None:
    taus = [(prompt, tau) for prompt, scores, values in groups if (tau := tau_b(scores, values)) is not None]
    if not taus:
        return None
    prompts = indices([prompt for prompt, _ in taus])
    values = np.array([tau for _, tau in taus])
    sums, counts = np.bincount(prompts, weights=values), np.bincount(prompts).astype(np.float64)
    return KendallTau(
        kind=kind,
        objective=objective,
        scope="prompt",
        tau=float(values.mean()),
        ci95=bootstrap_ratio(sums, counts, seed),
        groups=len(taus),
        prompts=len(counts),
        left_out=len(groups) - len(taus),
    )


def _pooled(objective: str, ratings: Sequence[ScoredItem], seed: int) -> KendallTau | None:
    scores = np.array([item.scores[0] for item in ratings])
    values = np.array([_value(item) for item in ratings])
    prompts = indices([item.evidence.prompt for item in ratings])
    order = np.argsort(prompts, kind="stable")
    rows = np.split(order, np.cumsum(np.bincount(prompts))[:-1])
    tau = tau_b(scores.tolist(), values.tolist())
    if tau is None or len(rows) < 2:
        return None

    def drawn_tau(drawn: Int[np.ndarray, " p"]) -> float:
        chosen = np.concatenate([rows[prompt] for prompt in drawn])
        found = tau_b(_list(scores[chosen]), _list(values[chosen]))
        return float("nan") if found is None else found

    return KendallTau(
        kind="rating",
        objective=objective,
        scope="all",
        tau=tau,
        ci95=bootstrap(len(rows), drawn_tau, seed, _POOLED_SAMPLES),
        groups=len(ratings),
        prompts=len(rows),
        left_out=0,
    )


def _value(item: ScoredItem) -> float:
    assert isinstance(item.evidence, Rating)
    return item.evidence.value


def _list(values: Float[np.ndarray, " n"]) -> list[float]:
    return [float(value) for value in values]
