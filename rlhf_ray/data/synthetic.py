"""Synthetic feedback whose true quality is known, for lessons, tests and experiments.

**Answers.** A prompt asks about one of the household topics of `synthetic_text`. An answer is an opening, sentences of
advice among filler, and a closing. Five traits, each in [0, 1], can be counted in its text:

| trait | weight | is |
|---|---|---|
| relevance | 0.30 | the share of its advice that is about the topic asked for; the rest is advice on another one |
| completeness | 0.20 | the share of the topic's five steps that it names |
| accuracy | 0.20 | the share of those that it states rightly; 0 if it names none |
| courtesy | 0.20 | the tone of opening and closing, from rude to warm |
| concision | 0.10 | 1 less a quarter for each sentence of filler |

The quality is their weighted sum. Courtesy and concision can be judged without the prompt; the others mean nothing
without it. To write an answer of a wanted quality q, the traits are drawn around q (normal, deviation `SPREAD`) eight
times, and the draw that comes nearest is put into words: answers of equal quality differ in their traits.

**Judgements.** The objective `overall` is the quality; `helpfulness` is relevance and completeness, equally; `honesty`
is accuracy; `courtesy` is courtesy. With `label_noise` p, all kinds are about equally unreliable: of two answers with
the gap `TYPICAL_GAP` between them, the worse looks better with probability p.

- pair: the judgement is flipped with probability p, whatever the gap; equal values are a tie;
- ranking: answers in the order of value plus Gumbel noise, a sample of the Plackett-Luce model (Yellott 1977);
- rating: value plus the annotator's bias plus normal noise, on the scale 1 to 5, rounded;
- thumb: up if value plus bias plus noise is 0.5 or more. A bias is drawn once with half the deviation of the noise.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist
from typing import Literal, get_args

from rlhf_ray.data.synthetic_answers import OBJECTIVES, Answer, write_answer
from rlhf_ray.data.synthetic_text import CIRCUMSTANCES, QUESTIONS, TOPICS, Topic
from rlhf_ray.errors import UserError
from rlhf_ray.evidence import OVERALL

SyntheticKind = Literal["pairs", "rankings", "ratings", "thumbs", "mixed"]
KINDS: tuple[SyntheticKind, ...] = get_args(SyntheticKind)
TYPICAL_GAP = 1 / 3
"""The mean distance between the qualities of two answers; the noise of all kinds is measured by it."""
DEFAULT_TEMPLATES = tuple(question + rest for question in QUESTIONS for rest in CIRCUMSTANCES)
_ANSWERS = {"pairs": 2, "rankings": 4, "ratings": 1, "thumbs": 1}
_HELDOUT_PART = 8  # every eighth prompt is kept for `heldout_answers`
_LEAST_GAP = 0.02


@dataclass(frozen=True, slots=True)
class ScoredAnswers:
    """A prompt, answers to it, and the true quality of each in [0, 1]."""

    prompt: str
    answers: tuple[str, ...]
    qualities: tuple[float, ...]


def create_preference_data(
    num_samples: int,
    prompt_templates: Sequence[str] | None = None,
    response_quality_levels: Sequence[float] | None = None,
    *,
    kind: SyntheticKind = "pairs",
    label_noise: float = 0.0,
    annotators: int = 1,
    objectives: Sequence[str] = (OVERALL,),
    seed: int = 0,
) -> list[dict[str, object]]:
    """Rows of synthetic feedback, drawn from `seed`, as the reader of feedback files accepts them.

    Each of the `num_samples` pairs, rankings, ratings or thumbs (`mixed`: of pairs, rankings and ratings in turn) is
    judged once by each annotator about each objective, and every judgement is one row: there are
    `num_samples * annotators * len(objectives)`. Under `quality`, which the reader does not look at, is the true
    quality of each of the row's answers, in their order. `prompt_templates` contain `{topic}`;
    `response_quality_levels` are wanted qualities in [0, 1], of which answers to one prompt get different ones while
    there are enough; without them all qualities are as likely. Raises `UserError` for arguments out of range.
    """
    levels = _checked(num_samples, response_quality_levels, kind, label_noise, annotators, objectives)
    draw = random.Random(seed)
    training, _ = _prompts(prompt_templates)
    judges = [_Judge(draw, label_noise) for _ in range(annotators)]
    kinds = ("pairs", "rankings", "ratings") if kind == "mixed" else (kind,)
    rows: list[dict[str, object]] = []
    for sample in range(num_samples):
        prompt, topic = draw.choice(training)
        one_kind = kinds[sample % len(kinds)]
        answers = _answers(draw, topic, _ANSWERS[one_kind], levels)
        for number, judge in enumerate(judges, start=1):
            for objective in objectives:
                row = {"prompt": prompt, **judge.judge(one_kind, answers, objective)}
                if len(judges) > 1:
                    row["annotator"] = f"annotator-{number}"
                if objective != OVERALL:
                    row["objective"] = objective
                rows.append(row)
    return rows


def known_kind(name: str) -> SyntheticKind:
    """`name` as a kind; `UserError` if there is no such kind."""
    for kind in KINDS:
        if kind == name:
            return kind
    raise UserError(f"kind = {name}: must be one of {', '.join(KINDS)}")


def heldout_answers(
    num_prompts: int, answers_per_prompt: int = 8, prompt_templates: Sequence[str] | None = None, *, seed: int = 0
) -> list[ScoredAnswers]:
    """Answers of all qualities with their true quality, to prompts that `create_preference_data` never uses.

    The prompts differ from each other. Raises `UserError` if there are fewer than `num_prompts`.
    """
    _, heldout = _prompts(prompt_templates)
    if not 1 <= num_prompts <= len(heldout):
        raise UserError(f"num_prompts = {num_prompts}: there are {len(heldout)} held-out prompts; give more templates")
    draw = random.Random(seed)
    found = []
    for prompt, topic in draw.sample(heldout, num_prompts):
        answers = [write_answer(draw, topic, draw.random()) for _ in range(answers_per_prompt)]
        qualities = tuple(answer.traits.value() for answer in answers)
        found.append(ScoredAnswers(prompt, tuple(answer.text for answer in answers), qualities))
    return found


class _Judge:
    """One annotator: a bias and noise."""

    def __init__(self, draw: random.Random, label_noise: float) -> None:
        self._draw = draw
        self._flip = label_noise
        self._gumbel = TYPICAL_GAP / math.log(1 / label_noise - 1) if label_noise else 0.0
        self._sigma = TYPICAL_GAP / (math.sqrt(2) * NormalDist().inv_cdf(1 - label_noise)) if label_noise else 0.0
        self._bias = draw.gauss(0.0, self._sigma / 2)

    def judge(self, kind: str, answers: Sequence[Answer], objective: str) -> dict[str, object]:
        """The keys of a row in which this annotator judges `answers`."""
        values = [answer.traits.value(objective) for answer in answers]
        if kind == "pairs":
            return self._pair(answers, values)
        if kind == "rankings":
            noisy = [value - self._gumbel * math.log(self._draw.expovariate(1.0)) for value in values]
            ranks = [1 + sum(other > value for other in noisy) for value in noisy]
            texts = [answer.text for answer in answers]
            return {"responses": texts, "ranks": ranks, "quality": _qualities(answers)}
        seen = values[0] + self._bias + self._draw.gauss(0.0, self._sigma)
        said = {"label": seen >= 0.5} if kind == "thumbs" else {"rating": min(max(round(1 + 4 * seen), 1), 5)}
        return {"completion": answers[0].text, **said, "quality": _qualities(answers)}

    def _pair(self, answers: Sequence[Answer], values: Sequence[float]) -> dict[str, object]:
        if values[0] == values[1]:
            first, second = answers
            tie = {"response_a": first.text, "response_b": second.text, "choice": "tie"}
            return {**tie, "quality": _qualities(answers)}
        first_is_better = values[0] > values[1]
        flipped = self._draw.random() < self._flip
        better, worse = answers if first_is_better != flipped else answers[::-1]
        return {"chosen": better.text, "rejected": worse.text, "quality": _qualities((better, worse))}


def _qualities(answers: Sequence[Answer]) -> list[float]:
    return [round(answer.traits.value(), 6) for answer in answers]


def _answers(draw: random.Random, topic: Topic, count: int, levels: Sequence[float] | None) -> list[Answer]:
    """`count` different answers; two qualities of a pair always differ."""
    while True:
        if levels is None:
            wanted = [draw.random() for _ in range(count)]
        else:
            shuffled = [draw.sample(levels, len(levels)) for _ in range(-(-count // len(levels)))]
            wanted = [level for part in shuffled for level in part][:count]
        answers = [write_answer(draw, topic, quality) for quality in wanted]
        values = sorted(answer.traits.value() for answer in answers)
        distinct = len({answer.text for answer in answers}) == count
        if distinct and (count != 2 or values[1] - values[0] >= _LEAST_GAP):
            return answers


def _prompts(templates: Sequence[str] | None) -> tuple[list[tuple[str, Topic]], list[tuple[str, Topic]]]:
    """`(for training, held out)`: the same split of the prompts for every seed."""
    templates = DEFAULT_TEMPLATES if templates is None else templates
    if not templates or any("{topic}" not in template for template in templates):
        raise UserError("prompt_templates must be texts that contain {topic}, e.g. 'How do I {topic}?'")
    prompts = [(text.replace("{topic}", topic.name), topic) for text in dict.fromkeys(templates) for topic in TOPICS]
    random.Random(0).shuffle(prompts)
    cut = len(prompts) // _HELDOUT_PART
    return prompts[cut:], prompts[:cut]


def _checked(
    num_samples: int,
    levels: Sequence[float] | None,
    kind: str,
    label_noise: float,
    annotators: int,
    objectives: Sequence[str],
) -> Sequence[float] | None:
    """`levels` without repetition, if all arguments are in range."""
    known_kind(kind)
    if not 0 <= label_noise < 0.5:
        raise UserError(f"label_noise = {label_noise:g}: must be at least 0 and below 0.5 (there, labels say nothing)")
    for name, value in (("num_samples", num_samples), ("annotators", annotators)):
        if value < 1:
            raise UserError(f"{name} = {value}: must be at least 1")
    unknown = [objective for objective in objectives if objective not in OBJECTIVES]
    if unknown or not objectives or len(set(objectives)) < len(objectives):
        raise UserError(f"objectives = {list(objectives)}: must be different ones of {', '.join(OBJECTIVES)}")
    if levels is None:
        return None
    ordered = sorted(levels)
    close = any(high - low < 2 * _LEAST_GAP for low, high in pairwise(ordered))
    if len(ordered) < 2 or close or not 0 <= ordered[0] <= ordered[-1] <= 1:
        raise UserError(
            f"response_quality_levels = {list(levels)}: must be two or more numbers from 0 to 1, at least "
            f"{2 * _LEAST_GAP:g} apart"
        )
    return ordered
