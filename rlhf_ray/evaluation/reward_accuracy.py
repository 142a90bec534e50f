"""How often a reward model decides as people did: in all, and by kind, objective, length, category, certainty."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

import numpy as np

from rlhf_ray.evaluation.intervals import Interval, effective_size, indices, newcombe_interval, wilson_interval
from rlhf_ray.evaluation.reward_items import Decision
from rlhf_ray.evidence import KINDS
from rlhf_ray.strict import Strict

REWARD_BENCH = ("Chat", "Chat Hard", "Safety", "Reasoning")
"""The sections of RewardBench (Lambert et al. 2024, arXiv 2403.13787), in its order."""
_BUCKETS = 4


class Accuracy(Strict):
    """The share of decisions that the score gets right; one that it cannot tell counts half.

    `accuracy` and its Wilson interval `ci95` are None if all decisions are ties of the humans, which are left out and
    counted. The interval knows that decisions about one prompt depend on each other (`effective_size`).
    """

    name: str
    accuracy: float | None
    ci95: Interval | None
    decisions: int
    prompts: int
    score_ties: int
    human_ties: int


class Gap(Strict):
    """The accuracy of one group minus that of another, with its 95 % interval (Newcombe)."""

    value: float
    ci95: Interval


class CategoryTable(Strict):
    """Accuracy by category in RewardBench's shape; `mean` weighs all categories equally."""

    rows: tuple[Accuracy, ...]
    mean: float | None
    uncategorised: int
    """Decisions without a category, which are not in the table."""


class Certainty(Strict):
    """Accuracy by tercile of the ensemble's uncertainty: low, middle, high. An informative uncertainty has a `gap`
    (low minus high) whose interval lies above zero."""

    rows: tuple[Accuracy, ...]
    gap: Gap | None


def accuracy_of(name: str, group: Sequence[Decision]) -> Accuracy:
    """The accuracy over `group`, under `name`."""
    judged = [decision for decision in group if not decision.tie]
    right = np.array([decision.right for decision in judged], dtype=np.float64)
    ties = int((right == 0.5).sum())
    value: float | None = None
    ci95: Interval | None = None
    prompts = indices([decision.prompt for decision in judged])
    if judged:
        value, size = float(right.mean()), effective_size(right, prompts)
        ci95 = wilson_interval(value * size, size)
    return Accuracy(
        name=name,
        accuracy=value,
        ci95=ci95,
        decisions=len(judged),
        prompts=len(np.unique(prompts)),
        score_ties=ties,
        human_ties=len(group) - len(judged),
    )


def by(group: Sequence[Decision], name: Callable[[Decision], str | None], order: Sequence[str] = ()) -> list[Accuracy]:
    """The accuracy of each part that shares a name: those of `order` first, then by alphabet. None has no row."""
    parts: defaultdict[str, list[Decision]] = defaultdict(list)
    for decision in group:
        key = name(decision)
        if key is not None:
            parts[key].append(decision)
    names = [key for key in order if key in parts] + sorted(parts.keys() - set(order))
    return [accuracy_of(key, parts[key]) for key in names]


def by_kind(group: Sequence[Decision]) -> list[Accuracy]:
    """Pairs, rankings, ratings, thumbs: those that are there."""
    return by(group, lambda decision: decision.kind, KINDS)


def by_length(group: Sequence[Decision]) -> list[Accuracy]:
    """Quarters by the tokens of the longest answer; fewer where many are equally long."""
    lengths = np.array([decision.length for decision in group])
    edges = np.unique(np.quantile(lengths, np.linspace(0, 1, _BUCKETS + 1)[1:-1], method="higher"))
    bucket = np.searchsorted(edges, lengths, side="left")
    rows = []
    for number in np.unique(bucket):
        inside = lengths[bucket == number]
        low, high = int(inside.min()), int(inside.max())
        name = f"{low} tokens" if low == high else f"{low} to {high} tokens"
        rows.append(accuracy_of(name, [d for d, b in zip(group, bucket, strict=True) if b == number]))
    return rows


def by_category(group: Sequence[Decision]) -> CategoryTable | None:
    """The table by category, None if no decision has one."""
    rows = by(group, lambda decision: decision.category, REWARD_BENCH)
    known = [row.accuracy for row in rows if row.accuracy is not None]
    if not rows:
        return None
    left_out = sum(decision.category is None for decision in group)
    return CategoryTable(rows=tuple(rows), mean=float(np.mean(known)) if known else None, uncategorised=left_out)


def by_certainty(group: Sequence[Decision]) -> Certainty | None:
    """Terciles of uncertainty, None without an ensemble or with fewer than three decisions."""
    known = sorted((d for d in group if d.uncertainty is not None and not d.tie), key=lambda d: d.uncertainty or 0.0)
    if len(known) < 3:
        return None
    cuts = np.linspace(0, len(known), 4).round().astype(int)
    names = ("low uncertainty", "middle", "high uncertainty")
    rows = tuple(accuracy_of(name, known[cuts[i] : cuts[i + 1]]) for i, name in enumerate(names))
    return Certainty(rows=rows, gap=gap(rows[0], rows[2]))


def gap(first: Accuracy, second: Accuracy) -> Gap | None:
    """`first` minus `second`, None if one of them is not known."""
    if first.accuracy is None or second.accuracy is None or first.ci95 is None or second.ci95 is None:
        return None
    ci95 = newcombe_interval(first.accuracy, first.ci95, second.accuracy, second.ci95)
    return Gap(value=first.accuracy - second.accuracy, ci95=ci95)
