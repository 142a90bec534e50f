"""All trials of a sweep as lines across its parameters.

plotly.js has such a picture of its own, but draws it by code that it compiles in the browser, which the page's content
security policy forbids. So positions are worked out here, from 0 at the bottom of an axis to 1 at its top.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rlhf_ray.report.facts import number
from rlhf_ray.report.sweep_charts import Picture, good_side, hover, plain
from rlhf_ray.report.sweep_ranking import Sweep
from rlhf_ray.report.sweep_trials import Parameter, Trial
from rlhf_ray.report.sweep_words import digits, in_words, short, text_of

_TICKS = 5
_MOST_TICKS = 8
_APART = 0.06  # of an axis; closer ticks would cover each other


@dataclass(frozen=True, slots=True)
class Axis:
    """Its name, where each trial lies on it (None: nowhere), and where its ticks are."""

    name: str
    places: list[float | None]
    ticks: list[tuple[float, str]]


@dataclass(frozen=True, slots=True)
class Line:
    """One trial: its place on each axis, `tone` from 0 for the worst metric to 1 for the best, and its text."""

    places: list[float | None]
    tone: float | None
    text: str


def parallel_picture(sweep: Sweep) -> Picture | None:
    """A line for each trial, the last axis being the metric; None if no trial reported it."""
    plan, trials = sweep.plan, sweep.trials
    known = [trial.value for trial in trials if trial.value is not None]
    if not known:
        return None
    axes = [_axis(parameter, trials) for parameter in plan.parameters]
    values = [trial.value for trial in trials]
    axes.append(numeric_axis(f"{plan.metric} ({good_side(plan)})", values, (min(known), max(known)), False, []))
    tones = [place if place is None or plan.mode == "max" else 1 - place for place in axes[-1].places]
    lines = [
        Line([axis.places[i] for axis in axes], tones[i], _text(trial, plan.metric)) for i, trial in enumerate(trials)
    ]
    ordered = sorted(
        lines, key=lambda line: -1.0 if line.tone is None else line.tone
    )  # the best are drawn last, on top
    best = max((trial for trial in trials if trial.value is not None), key=lambda t: plan.sign * (t.value or 0.0))
    worst = min((trial for trial in trials if trial.value is not None), key=lambda t: plan.sign * (t.value or 0.0))
    words = f"{len(trials)} trials. Best: {_words(best, plan.metric)}. Worst: {_words(worst, plan.metric)}."
    note = "Each line is a trial, from orange for the worst to blue for the best; grey and dotted without a value."
    data = {"axes": [asdict(axis) for axis in axes], "lines": [asdict(line) for line in ordered]}
    return Picture("parallel", "parallel", "All trials", note, words, data)


def numeric_axis(
    name: str, values: Sequence[float | None], ends: tuple[float, float], logarithmic: bool, ticks: Sequence[float]
) -> Axis:
    """Equal differences, or factors, at equal distances between `ends`; ticks at `ticks` as far as they do not cover
    each other, else at even distances."""

    def scale(value: float) -> float:
        return math.log(value) if logarithmic else value

    low, high = scale(ends[0]), scale(ends[1])

    def place(value: float) -> float:
        return (scale(value) - low) / (high - low) if high > low else 0.5

    even = [low + (high - low) * i / (_TICKS - 1) for i in range(_TICKS)] if high > low else [low]
    marks = list(ticks) or [math.exp(mark) if logarithmic else mark for mark in even]
    many = 4 if ticks else 3  # even distances give odd numbers
    shown: list[tuple[float, str]] = []
    for mark in sorted(marks):
        if not shown or place(mark) - shown[-1][0] >= _APART:
            shown.append((place(mark), plain(digits(mark, many))))
    return Axis(plain(name), [None if value is None else place(value) for value in values], shown)


def _axis(parameter: Parameter, trials: Sequence[Trial]) -> Axis:
    numbers = [number(trial.values, parameter.name) for trial in trials]
    known = [value for value in numbers if value is not None]
    if len(known) < len(numbers):
        return _categories(parameter, trials)
    low, high = parameter.ends or (min(known), max(known))
    ends = min(low, *known), max(high, *known)  # population based training goes beyond the ends of a range
    distinct = sorted(set(known))
    whole = parameter.values or parameter.type == "integer"
    ticks = distinct if whole and len(distinct) <= _MOST_TICKS else []
    return numeric_axis(parameter.name, numbers, ends, parameter.logarithmic and ends[0] > 0, ticks)


def _categories(parameter: Parameter, trials: Sequence[Trial]) -> Axis:
    keys = [json.dumps(trial.values[parameter.name], sort_keys=True) for trial in trials]
    declared = [json.dumps(value, sort_keys=True) for value in parameter.values]
    order = list(dict.fromkeys([*(key for key in declared if key in keys), *keys]))
    place = {key: (i + 0.5) / len(order) for i, key in enumerate(order)}
    ticks = [(place[key], plain(short(text_of(json.loads(key))))) for key in order]
    return Axis(plain(parameter.name), [place[key] for key in keys], ticks)


def _text(trial: Trial, metric: str) -> str:
    value = "not known" if trial.value is None else digits(trial.value)
    return hover(trial.values, f"{metric} {value}", f"trial {trial.number}, seed {trial.seed}, {trial.state}")


def _words(trial: Trial, metric: str) -> str:
    return f"{in_words(trial.values)}, {metric} {digits(trial.value or 0.0)}"
