"""Rows that rank several answers or rate them on a scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_ray.data.fields import (
    BadRow,
    Row,
    as_json,
    as_list,
    as_number,
    as_row,
    as_text,
    as_whole,
    given,
    kind_of,
    label_of,
    name_of,
    refuse,
)
from rlhf_ray.data.messages import Messages, conversation, prompt_of
from rlhf_ray.evidence import Item, Label, Ranking, Rating

if TYPE_CHECKING:
    from rlhf_ray.data.feedback import FeedbackConfig

OBJECTIVES = (
    "helpfulness", "harmlessness", "honesty", "truthfulness", "correctness", "coherence", "complexity", "verbosity",
    "instruction_following", "conciseness", "creativity", "relevance", "safety",
)  # fmt: skip
"""Columns that are ratings by their name alone, as in HelpSteer2 (arXiv 2406.08673) and UltraFeedback (2310.01377)."""


@dataclass(frozen=True, slots=True)
class _Rate:
    """Makes the ratings of one answer."""

    row: Row
    where: str
    config: FeedbackConfig
    prompt: Messages
    answer: str

    def at(self, value: object, key: str, objective: str | None = None, annotator: str | None = None) -> Rating:
        """The rating `value`, if it lies on the scale; `BadRow` calls it `key`."""
        number = as_number(value, key)
        low, high, step = *self.config.rating_scale, self.config.rating_step
        steps = (number - low) / step
        if not low <= number <= high or abs(steps - round(steps)) > 1e-6:
            raise BadRow(
                f"{key} is {number:g}, which is not on the scale {low:g}, {low + step:g}, ..., {high:g}",
                "mend it, or set data.rating_scale and data.rating_step",
            )
        return Rating(self.prompt, self.answer, number, label_of(self.row, self.where, objective, annotator))

    def by_objective(self, values: object, prefix: str) -> list[Rating]:
        """One rating for each objective in `values`; null is none."""
        if not isinstance(values, Mapping):
            raise BadRow(f"{prefix}{kind_of(values)}", "give a number for each objective, or a list of one a person")
        named = {as_text(name, f"{prefix}the name of an objective"): value for name, value in values.items()}
        return [self.at(value, prefix + name, objective=name) for name, value in named.items() if value is not None]


def ranking(row: Row, where: str, _: FeedbackConfig) -> list[Item]:
    """K answers in an order: `ranking` (positions from 0, best first, ties in a list of their own) or `ranks` (1 is
    best, equal is a tie), or one of them for each annotator in `rankings`."""
    refuse(row, ("margin",), "belongs to pairs")
    prompt, answers = _responses(row)
    if len(answers) < 2:
        raise BadRow("responses has one answer", "a ranking needs two or more")
    texts = [answer.strip() for answer in answers]
    repeated = next((i for i, text in enumerate(texts) if text in texts[:i]), None)
    if repeated is not None:
        first = texts.index(texts[repeated])
        raise BadRow(f"responses {first} and {repeated} (from 0) are the same text", "remove one")
    keys = [key for key in ("ranking", "ranks", "rankings") if given(row, key)]
    if len(keys) > 1:
        raise BadRow(f"has both {keys[0]} and {keys[1]}", "keep one of them")
    if keys == ["rankings"]:
        return list(_rankings(row, where, prompt, answers))
    read = _ranks if keys == ["ranks"] else _ranks_of_order
    return [_best_first(prompt, answers, read(row[keys[0]], keys[0], len(answers)), label_of(row, where))]


def rating(row: Row, where: str, config: FeedbackConfig, prompt: Messages, answer: str) -> list[Item]:
    """One answer and its `rating`, its `ratings` by objective or by annotator, or columns named after objectives."""
    refuse(row, ("margin",), "belongs to pairs")
    if given(row, "rating") and given(row, "ratings"):
        raise BadRow("has both rating and ratings", "keep one of them")
    rate = _Rate(row, where, config, prompt, answer)
    items = [rate.at(row["rating"], "rating")] if given(row, "rating") else []
    if given(row, "ratings"):
        values = as_json(row["ratings"], "ratings")
        if isinstance(values, list):
            people = ((f"annotator{i}", value) for i, value in enumerate(values, start=1))
            items += [rate.at(value, f"ratings: {name}", annotator=name) for name, value in people if value is not None]
        else:
            items += rate.by_objective(values, "ratings: ")
    items += rate.by_objective({key: row[key] for key in OBJECTIVES if given(row, key)}, "")
    if not items:
        raise BadRow("ratings holds no rating", "add one or remove the row")
    return list(items)


def ratings_of_responses(row: Row, where: str, config: FeedbackConfig) -> list[Item]:
    """Several answers and `ratings`, one for each: a number, or numbers by objective."""
    refuse(row, ("margin",), "belongs to pairs")
    prompt, answers = _responses(row)
    values = as_list(row["ratings"], "ratings")
    if len(values) != len(answers):
        raise BadRow(f"ratings has {len(values)} entries for {len(answers)} responses", "give one each")
    items: list[Item] = []
    for i, (answer, value) in enumerate(zip(answers, values, strict=True)):
        key = f"rating {i} (from 0)"
        rate = _Rate(row, where, config, prompt, answer)
        items += rate.by_objective(value, f"{key}: ") if isinstance(value, Mapping) else [rate.at(value, key)]
    return items


def _responses(row: Row) -> tuple[Messages, list[str]]:
    prompt = prompt_of(row)
    answers = []
    for i, value in enumerate(as_list(row["responses"], "responses")):
        before, answer = conversation(value, f"response {i} (from 0)", prompt)
        if before != prompt:
            raise BadRow(f"response {i} (from 0) begins with messages that prompt lacks", "add them to prompt")
        answers.append(answer)
    return prompt, answers


def _rankings(row: Row, where: str, prompt: Messages, answers: Sequence[str]) -> Iterator[Ranking]:
    """One ranking for each entry of `rankings`: a list of positions, or an object with the annotator's name."""
    for number, value in enumerate(as_list(row["rankings"], "rankings"), start=1):
        key = f"rankings, entry {number}"
        entry = as_row(value if isinstance(value, Mapping) else {"ranking": value})
        keys = [name for name in ("ranking", "ranks") if given(entry, name)]
        if len(keys) != 1:
            raise BadRow(f"{key} has {len(keys)} of ranking and ranks", "give one of them")
        named, about = given(entry, "annotator"), given(entry, "objective")
        annotator = name_of(entry["annotator"], f"{key}: annotator") if named else f"annotator{number}"
        objective = as_text(entry["objective"], f"{key}: objective") if about else None
        read = _ranks if keys == ["ranks"] else _ranks_of_order
        ranks = read(entry[keys[0]], f"{key}: {keys[0]}", len(answers))
        yield _best_first(prompt, answers, ranks, label_of(row, where, objective, annotator))


def _ranks(value: object, key: str, count: int) -> list[int]:
    """The given ranks, 1 for the best, without the gaps that ties may leave (1, 1, 3 becomes 1, 1, 2)."""
    ranks = [as_whole(rank, key) for rank in as_list(value, key)]
    if len(ranks) != count:
        raise BadRow(f"{key} has {len(ranks)} entries for {count} responses", "give one each")
    order = sorted(set(ranks))
    after_ties = all(rank == 1 + sum(other < rank for other in ranks) for rank in order)
    if order != list(range(1, len(order) + 1)) and not after_ties:
        raise BadRow(f"{key} is {ranks}", "count from 1 for the best without gaps (1, 1, 3 is fine after a tie)")
    return [order.index(rank) + 1 for rank in ranks]


def _ranks_of_order(value: object, key: str, count: int) -> list[int]:
    """The rank of each answer in a list of positions, best first; equal ones stand in a list of their own."""
    ranks: dict[int, int] = {}
    for rank, tied in enumerate(as_list(value, key), start=1):
        for position in as_list(tied, key) if isinstance(tied, list) else [tied]:
            index = as_whole(position, key)
            if not 0 <= index < count:
                raise BadRow(f"{key} names response {index}", f"with {count} responses, count from 0 to {count - 1}")
            if index in ranks:
                raise BadRow(f"{key} names response {index} twice", "name each once")
            ranks[index] = rank
    missing = [str(i) for i in range(count) if i not in ranks]
    if missing:
        raise BadRow(f"{key} leaves out response {', '.join(missing)} (counted from 0)", "name each once")
    return [ranks[i] for i in range(count)]


def _best_first(prompt: Messages, answers: Sequence[str], ranks: Sequence[int], label: Label) -> Ranking:
    order = sorted(range(len(answers)), key=lambda i: ranks[i])
    return Ranking(prompt, tuple(answers[i] for i in order), tuple(ranks[i] for i in order), label)
