"""The plainest row that says what a row of any shape says: the keys that `rlhf-ray data check --fix` writes."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_ray.evidence import OVERALL, Demonstration, Item, Label, Pair, PromptOnly, Ranking, Rating


def canonical_row(items: Sequence[Item]) -> dict[str, object]:
    """One row for the items of one row, with the prompt as messages and the answers as texts.

    A pair has `chosen` and `rejected`; a tie, or a pair that several people judged, `response_a`, `response_b` and
    `choice` or `annotations`; a ranking `responses` with `ranks` or `rankings`; ratings of one answer `completion` with
    `rating` or `ratings`, of several `responses` with `ratings`; a thumb `completion` and `label`. `annotator`,
    `objective`, `weight` and `margin` are there if they say something.
    """
    first = items[0]
    row: dict[str, object] = {"prompt": [message.as_dict() for message in first.prompt]}
    if isinstance(first, PromptOnly):
        return row
    if isinstance(first, Demonstration):
        return row | {"completion": first.answer}
    if isinstance(first, Pair):
        row |= _pairs([item for item in items if isinstance(item, Pair)])
    elif isinstance(first, Ranking):
        row |= _rankings([item for item in items if isinstance(item, Ranking)])
    elif isinstance(first, Rating):
        row |= _ratings([item for item in items if isinstance(item, Rating)])
    else:
        row |= {"completion": first.answer, "label": first.good, **_named(first.label)}
    row |= {"category": first.label.category} if first.label.category is not None else {}
    return row | ({"weight": first.label.weight} if first.label.weight != 1 else {})


def _named(label: Label) -> dict[str, object]:
    """Annotator and objective, if they are not the usual none and overall."""
    row: dict[str, object] = {} if label.annotator is None else {"annotator": label.annotator}
    return row if label.objective == OVERALL else {**row, "objective": label.objective}


def _pairs(pairs: Sequence[Pair]) -> dict[str, object]:
    first = pairs[0]
    margin: dict[str, object] = {"margin": first.margin} if first.margin else {}
    if len(pairs) == 1 and not first.tie:
        return {"chosen": first.chosen, "rejected": first.rejected, **margin, **_named(first.label)}
    row: dict[str, object] = {"response_a": first.chosen, "response_b": first.rejected, **margin}
    choices = ["tie" if pair.tie else "a" if pair.chosen == first.chosen else "b" for pair in pairs]
    if len(pairs) == 1:
        return {**row, "choice": choices[0], **_named(first.label)}
    votes = zip(choices, pairs, strict=True)
    return {**row, "annotations": [{"choice": choice, **_named(pair.label)} for choice, pair in votes]}


def _rankings(rankings: Sequence[Ranking]) -> dict[str, object]:
    first = rankings[0]
    row: dict[str, object] = {"responses": list(first.answers)}
    if len(rankings) == 1:
        return {**row, "ranks": list(first.ranks), **_named(first.label)}
    entries = []
    for ranking in rankings:
        rank = dict(zip(ranking.answers, ranking.ranks, strict=True))
        entries.append({"ranks": [rank[answer] for answer in first.answers], **_named(ranking.label)})
    return {**row, "rankings": entries}


def _ratings(ratings: Sequence[Rating]) -> dict[str, object]:
    first = ratings[0]
    answers = list(dict.fromkeys(rating.answer for rating in ratings))
    annotators = {rating.label.annotator for rating in ratings}
    if len(ratings) == 1:
        return {"completion": first.answer, "rating": first.value, **_named(first.label)}
    by: dict[str, object] = {"annotator": first.label.annotator} if first.label.annotator is not None else {}
    if len(answers) > 1:
        values = [{r.label.objective: r.value for r in ratings if r.answer == answer} for answer in answers]
        return {"responses": answers, "ratings": values, **by}
    if len(annotators) == 1:
        return {"completion": answers[0], "ratings": {r.label.objective: r.value for r in ratings}, **by}
    # Annotators of a list are numbered from 1; null stands for one who did not judge.
    numbered = {rating.label.annotator: rating.value for rating in ratings}
    values_of = [numbered.get(f"annotator{i}") for i in range(1, _highest(annotators) + 1)]
    objective = {} if first.label.objective == OVERALL else {"objective": first.label.objective}
    return {"completion": answers[0], "ratings": values_of, **objective}


def _highest(annotators: set[str | None]) -> int:
    numbers = [(name or "").removeprefix("annotator") for name in annotators]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)
