"""Evidence with scores, as the tests of the evaluation build it."""

from __future__ import annotations

from rlhf_ray.evaluation.reward_items import ScoredItem
from rlhf_ray.evidence import OVERALL, Label, Pair, Ranking, Rating, Thumb
from rlhf_ray.types import Message


def prompt(name: object) -> tuple[Message, ...]:
    return (Message("user", f"question {name}"),)


def label(row: object = 1, objective: str = OVERALL, annotator: str | None = None) -> Label:
    return Label(f"file.jsonl row {row}", objective, annotator)


def pair(
    name: object,
    chosen: float,
    rejected: float,
    lengths: tuple[int, int] = (10, 10),
    tie: bool = False,
    answers: tuple[str, str] = ("good", "bad"),
    annotator: str | None = None,
    objective: str = OVERALL,
    category: str | None = None,
    uncertainty: tuple[float, float] | None = None,
) -> ScoredItem:
    evidence = Pair(prompt(name), *answers, label(name, objective, annotator), tie=tie)
    return ScoredItem(evidence, (chosen, rejected), lengths, uncertainty, category)


def thumb(name: object, good: bool, score: float, bias: float = 0.0, annotator: str | None = None) -> ScoredItem:
    return ScoredItem(
        Thumb(prompt(name), "text", good, label(name, annotator=annotator)), (score,), (5,), None, None, bias
    )


def rating(name: object, answer: str, value: float, score: float, annotator: str | None = None) -> ScoredItem:
    return ScoredItem(Rating(prompt(name), answer, value, label(name, annotator=annotator)), (score,), (len(answer),))


def ranking(name: object, ranks: tuple[int, ...], scores: tuple[float, ...]) -> ScoredItem:
    answers = tuple(f"answer {index}" for index in range(len(ranks)))
    return ScoredItem(Ranking(prompt(name), answers, ranks, label(name)), scores, tuple(range(1, len(ranks) + 1)))
