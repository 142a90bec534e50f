"""From one kind of evidence to another, for methods that take one kind only. What cannot be converted is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import combinations, groupby
from typing import Generic, TypeVar

from rlhf_ray.evidence import Demonstration, Item, Pair, PromptOnly, Ranking, Rating, Thumb

T = TypeVar("T")


class Converted(Generic[T]):
    """The converted items, made as they are asked for; they can be iterated over once."""

    left_out: dict[str, int]
    """How many items could not be converted, by reason; complete after the last item."""

    def __init__(self, items: Iterable[Item], convert: Callable[[Iterable[Item], Counter[str]], Iterator[T]]) -> None:
        counted: Counter[str] = Counter()
        self.left_out = counted
        self._items = convert(items, counted)

    def __iter__(self) -> Iterator[T]:
        return self._items


def as_pairs(items: Iterable[Item]) -> Converted[Pair]:
    """Pairs that are no ties. Of a ranking, all pairs of answers of unequal rank; of ratings of one prompt that follow
    each other, all pairs of unequal value under the same objective and annotator, with the difference as margin.

    The n pairs that come from one ranking, or one run of ratings, weigh 1/n of it each, so that a prompt with many
    answers counts no more than another (Ouyang et al. 2022, arXiv 2203.02155, section 3.5).
    """
    return Converted(items, _pairs)


def as_thumbs(items: Iterable[Item], rating_scale: tuple[float, float] = (1.0, 5.0)) -> Converted[Thumb]:
    """Thumbs; of a pair that is no tie, a good chosen and a bad rejected answer; ratings above the middle of
    `rating_scale` as good and those below it as bad."""
    middle = sum(rating_scale) / 2
    return Converted(items, lambda items, left_out: _thumbs(items, left_out, middle))


def as_demonstrations(items: Iterable[Item]) -> Converted[Demonstration]:
    """Demonstrations, chosen answers, the best answers of rankings, and good thumbs.

    An answer that several judgements of one row point to is given once.
    """
    return Converted(items, _demonstrations)


def _pairs(items: Iterable[Item], left_out: Counter[str]) -> Iterator[Pair]:
    for key, run in groupby(items, key=lambda item: item.prompt if isinstance(item, Rating) else None):
        if key is not None:
            yield from _rated_pairs((item for item in run if isinstance(item, Rating)), left_out)
            continue
        for item in run:
            if isinstance(item, Pair):
                if item.tie:
                    left_out["tied pairs"] += 1
                else:
                    yield item
            elif isinstance(item, Ranking):
                yield from _ranked_pairs(item, left_out)
            else:
                left_out[f"{item.kind}s"] += 1


def _ranked_pairs(ranking: Ranking, left_out: Counter[str]) -> list[Pair]:
    ordered = [
        (better, worse)
        for (better, high), (worse, low) in combinations(zip(ranking.answers, ranking.ranks, strict=True), 2)
        if high < low
    ]
    if not ordered:
        left_out["rankings that are one tie"] += 1
    label = replace(ranking.label, weight=ranking.label.weight / max(1, len(ordered)))
    return [Pair(ranking.prompt, better, worse, label) for better, worse in ordered]


def _rated_pairs(ratings: Iterable[Rating], left_out: Counter[str]) -> Iterator[Pair]:
    """Pairs of the ratings of one prompt."""
    groups: dict[tuple[str, str | None], list[Rating]] = {}
    for rating in ratings:
        groups.setdefault((rating.label.objective, rating.label.annotator), []).append(rating)
    for group in groups.values():
        ordered = [
            (a, b) if a.value > b.value else (b, a)
            for a, b in combinations(group, 2)
            if a.value != b.value and a.answer.strip() != b.answer.strip()
        ]
        used = {id(rating) for pair in ordered for rating in pair}
        unused = sum(id(rating) not in used for rating in group)
        if unused:
            left_out["ratings with no different one of the same prompt, objective and annotator"] += unused
        for better, worse in ordered:
            weight = (better.label.weight + worse.label.weight) / 2 / len(ordered)
            label = replace(better.label, weight=weight)
            yield Pair(better.prompt, better.answer, worse.answer, label, margin=better.value - worse.value)


def _thumbs(items: Iterable[Item], left_out: Counter[str], middle: float) -> Iterator[Thumb]:
    for item in items:
        if isinstance(item, Thumb):
            yield item
        elif isinstance(item, Pair) and not item.tie:
            yield Thumb(item.prompt, item.chosen, True, item.label)
            yield Thumb(item.prompt, item.rejected, False, item.label)
        elif isinstance(item, Rating) and item.value != middle:
            yield Thumb(item.prompt, item.answer, item.value > middle, item.label)
        elif isinstance(item, Pair):
            left_out["tied pairs"] += 1
        elif isinstance(item, Rating):
            left_out["ratings in the middle of the scale"] += 1
        else:
            left_out[f"{item.kind}s"] += 1


def _demonstrations(items: Iterable[Item], left_out: Counter[str]) -> Iterator[Demonstration]:
    where, given = "", set[str]()
    for item in items:
        place = item.where if isinstance(item, Demonstration | PromptOnly) else item.label.where
        if place != where:
            where, given = place, set()
        best = _best(item)
        if not best:
            left_out[_why_no_best(item)] += 1
        for answer in best:
            if answer in given:
                left_out["answers given before in the same row"] += 1
            else:
                given.add(answer)
                yield Demonstration(item.prompt, answer, place)


def _best(item: Item) -> tuple[str, ...]:
    """The answers of `item` that are worth imitating."""
    if isinstance(item, Demonstration):
        return (item.answer,)
    if isinstance(item, Pair):
        return () if item.tie else (item.chosen,)
    if isinstance(item, Ranking):
        best = tuple(answer for answer, rank in zip(item.answers, item.ranks, strict=True) if rank == 1)
        return () if len(best) == len(item.answers) else best
    return (item.answer,) if isinstance(item, Thumb) and item.good else ()


def _why_no_best(item: Item) -> str:
    if isinstance(item, Pair):
        return "tied pairs"
    if isinstance(item, Ranking):
        return "rankings that are one tie"
    return "bad thumbs" if isinstance(item, Thumb) else f"{item.kind}s"
