"""Scored evidence, and the single decisions in it that a score gets right or wrong."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from rlhf_ray.errors import RunError
from rlhf_ray.evidence import Evidence, Kind, Pair, Ranking, Rating, Thumb

if TYPE_CHECKING:  # types.py loads torch, which a reader of an evaluation does not need
    from rlhf_ray.types import Message


@dataclass(frozen=True, slots=True)
class ScoredItem:
    """One piece of evidence and the model's view of its answers, in the order of `evidence.answers`.

    `scores` are those of the evidence's objective, before any conservative penalty; `lengths` are in tokens;
    `uncertainty` is an ensemble's standard deviation of each score; `category` is for the table by category;
    `thumb_bias` is what the model adds to the score before it says whether a thumb goes up. Raises `RunError` naming
    the row if a score is not a finite number, `ValueError` if the numbers do not fit the answers.
    """

    evidence: Evidence
    scores: tuple[float, ...]
    lengths: tuple[int, ...]
    uncertainty: tuple[float, ...] | None = None
    category: str | None = None
    thumb_bias: float = 0.0

    def __post_init__(self) -> None:
        where, count = self.evidence.label.where, len(self.evidence.answers)
        sizes = [len(self.scores), len(self.lengths), count if self.uncertainty is None else len(self.uncertainty)]
        if sizes != [count] * 3:
            raise ValueError(f"{where}: {count} answers, but {sizes} scores, lengths and uncertainties")
        if not all(map(math.isfinite, (*self.scores, *(self.uncertainty or ()), self.thumb_bias))):
            raise RunError(
                f"{where}: the model's scores {list(self.scores)} are not all finite numbers, so the model cannot be "
                "judged; its training diverged: lower learning_rate"
            )


@dataclass(frozen=True, slots=True)
class Decision:
    """A judgement with two outcomes: which of two answers is better, or whether one answer is good.

    `margin` is how far the score lies on the human's side: the better answer's score minus the worse one's; for a thumb
    its score plus the model's bias, negated if the answer is bad. In a `tie` people saw no difference, and the order
    means nothing.
    """

    kind: Kind
    objective: str
    annotator: str | None
    category: str | None
    prompt: tuple[Message, ...]
    answers: tuple[str, ...]
    """Better, worse; or the one answer of a thumb."""
    margin: float
    length: int
    """Tokens of the longest answer."""
    length_difference: int
    """Tokens of the better minus the worse answer; 0 for a thumb."""
    uncertainty: float | None
    """Of the margin: the root of the summed squares of its answers' uncertainties."""
    good: bool = True
    """Of a thumb."""
    tie: bool = False

    @property
    def right(self) -> float:
        """1 if the score agrees with the human, 0 if not, 0.5 if it cannot tell. Of a tie it means nothing."""
        return 0.5 if self.margin == 0 else float(self.margin > 0)


@dataclass(frozen=True, slots=True)
class _Answer:
    text: str
    score: float
    length: int
    uncertainty: float | None
    value: float
    """What people think of it, higher is better."""


def decisions(items: Sequence[ScoredItem]) -> list[Decision]:
    """All decisions: a pair or a thumb is one, a ranking of K answers gives K (K - 1) / 2, and so do ratings of K
    different answers to one prompt by one annotator for one objective (equal ratings are ties)."""
    found: list[Decision] = []
    ratings: defaultdict[tuple[object, ...], list[ScoredItem]] = defaultdict(list)
    for item in items:
        if isinstance(item.evidence, Rating):
            ratings[rating_group(item)].append(item)
        elif isinstance(item.evidence, Thumb):
            found.append(_thumb(item, item.evidence.good))
        else:
            found += _comparisons(item, _answers(item, _values(item.evidence)))
    for group in ratings.values():
        rated = [answer for item in group for answer in _answers(item, _values(item.evidence))]
        found += _comparisons(group[0], rated)
    return found


def rating_group(item: ScoredItem) -> tuple[object, ...]:
    """What ratings must share to be compared with each other."""
    return (item.evidence.prompt, item.evidence.label.objective, item.evidence.label.annotator)


def _values(evidence: Evidence) -> tuple[float, ...]:
    """Numbers whose order is the human's order of the answers, higher is better."""
    if isinstance(evidence, Pair):
        return (0.0, 0.0) if evidence.tie else (1.0, 0.0)
    if isinstance(evidence, Ranking):
        return tuple(-float(rank) for rank in evidence.ranks)
    return (evidence.value,) if isinstance(evidence, Rating) else (float(evidence.good),)


def _answers(item: ScoredItem, values: Sequence[float]) -> Iterator[_Answer]:
    uncertainty = item.uncertainty or (None,) * len(values)
    yield from map(_Answer, item.evidence.answers, item.scores, item.lengths, uncertainty, values)


def _comparisons(item: ScoredItem, answers: Iterator[_Answer] | Sequence[_Answer]) -> list[Decision]:
    found = []
    for one, other in combinations(answers, 2):
        if one.text == other.text:
            continue  # the same answer rated twice: no score could tell the two apart
        better, worse = (one, other) if one.value >= other.value else (other, one)
        found.append(
            Decision(
                kind=item.evidence.kind,
                objective=item.evidence.label.objective,
                annotator=item.evidence.label.annotator,
                category=item.category,
                prompt=item.evidence.prompt,
                answers=(better.text, worse.text),
                margin=better.score - worse.score,
                length=max(one.length, other.length),
                length_difference=better.length - worse.length,
                uncertainty=_joint(one.uncertainty, other.uncertainty),
                tie=one.value == other.value,
            )
        )
    return found


def _joint(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else math.hypot(one, other)


def _thumb(item: ScoredItem, good: bool) -> Decision:
    score = item.scores[0] + item.thumb_bias
    return Decision(
        kind="thumb",
        objective=item.evidence.label.objective,
        annotator=item.evidence.label.annotator,
        category=item.category,
        prompt=item.evidence.prompt,
        answers=item.evidence.answers,
        margin=score if good else -score,
        length=item.lengths[0],
        length_difference=0,
        uncertainty=None if item.uncertainty is None else item.uncertainty[0],
        good=good,
    )
