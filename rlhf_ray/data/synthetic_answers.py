"""Answers of a wanted quality about household topics, and the traits that one can count in their text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_ray.data.synthetic_text import CLOSINGS, FILLER, LINKS, OPENINGS, TOPICS, Topic
from rlhf_ray.evidence import OVERALL

OBJECTIVES = {
    OVERALL: (0.3, 0.2, 0.2, 0.2, 0.1),
    "helpfulness": (0.5, 0.5, 0.0, 0.0, 0.0),
    "honesty": (0.0, 0.0, 1.0, 0.0, 0.0),
    "courtesy": (0.0, 0.0, 0.0, 1.0, 0.0),
}
"""Of each objective, the weights of the traits in the order of `Traits`."""
SPREAD = 0.5
"""Deviation of the wanted traits around the wanted quality."""
_DRAWS = 8
_WARMEST = len(OPENINGS) + len(CLOSINGS) - 2
_MOST_FILLER = 4
_MOST_STRAYING = 3


@dataclass(frozen=True, slots=True)
class Traits:
    """Five traits of an answer, each in [0, 1]; see `synthetic` for what they count."""

    relevance: float
    completeness: float
    accuracy: float
    courtesy: float
    concision: float

    def value(self, objective: str = OVERALL) -> float:
        """What `objective` makes of them, in [0, 1]; of `overall` it is called the quality."""
        traits = (self.relevance, self.completeness, self.accuracy, self.courtesy, self.concision)
        return sum((weight * trait for weight, trait in zip(OBJECTIVES[objective], traits, strict=True)), start=0.0)


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer's text and what it is worth."""

    text: str
    traits: Traits


@dataclass(frozen=True, slots=True)
class _Plan:
    """How many sentences of each sort an answer has, and its tone, from 0 to `_WARMEST`."""

    steps: int
    right: int
    straying: int
    filler: int
    warmth: int

    def traits(self, topic: Topic) -> Traits:
        return Traits(
            self.steps / max(self.steps + self.straying, 1),
            self.steps / len(topic.steps),
            self.right / max(self.steps, 1),
            self.warmth / _WARMEST,
            1.0 - self.filler / _MOST_FILLER,
        )


def write_answer(draw: random.Random, topic: Topic, quality: float) -> Answer:
    """An answer to a question about `topic` of about the wanted quality; its exact one is counted in its text."""
    plans = [_plan(draw, topic, quality) for _ in range(_DRAWS)]
    best = min(plans, key=lambda plan: abs(plan.traits(topic).value() - quality))
    return Answer(_write(draw, topic, best), best.traits(topic))


def _plan(draw: random.Random, topic: Topic, quality: float) -> _Plan:
    wanted = Traits(*(min(max(draw.gauss(quality, SPREAD), 0.0), 1.0) for _ in range(5)))
    steps = round(wanted.completeness * len(topic.steps))
    if steps:
        straying = min(round(steps * (1.0 / max(wanted.relevance, 0.1) - 1.0)), _MOST_STRAYING)
    else:
        straying = draw.randint(1, _MOST_STRAYING)
    return _Plan(
        steps,
        round(wanted.accuracy * steps),
        straying,
        round((1.0 - wanted.concision) * _MOST_FILLER),
        round(wanted.courtesy * _WARMEST),
    )


def _write(draw: random.Random, topic: Topic, plan: _Plan) -> str:
    steps = draw.sample(topic.steps, plan.steps)
    advice = [right for right, _ in steps[: plan.right]] + [wrong for _, wrong in steps[plan.right :]]
    elsewhere = draw.choice([other for other in TOPICS if other is not topic])
    advice += [right for right, _ in draw.sample(elsewhere.steps, plan.straying)]
    draw.shuffle(advice)
    sentences = [_linked(draw.choice(LINKS), sentence) for sentence in advice]
    for sentence in draw.sample(FILLER, plan.filler):
        sentences.insert(draw.randint(0, len(sentences)), sentence)
    opening = (plan.warmth + draw.randint(0, 1)) // 2
    return " ".join((_of(draw, OPENINGS, opening), *sentences, _of(draw, CLOSINGS, plan.warmth - opening)))


def _of(draw: random.Random, tones: Sequence[Sequence[str]], warmth: int) -> str:
    return draw.choice(tones[warmth])


def _linked(link: str, sentence: str) -> str:
    return f"{link}{sentence[0].lower()}{sentence[1:]}" if link else sentence
