"""What each parameter of a sweep does to the metric, all other parameters taken as they come."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf_ray.report.sweep_ranking import Sweep
from rlhf_ray.report.sweep_statistics import Correlation, Mean, mean_of, rank_correlation
from rlhf_ray.report.sweep_trials import Parameter
from rlhf_ray.report.sweep_words import text_of

_MOST = 8  # levels; a parameter with more numbers is cut into three parts
_PARTS = 3


@dataclass(frozen=True, slots=True)
class Level:
    """Trials that share a value of the parameter, or lie in a part of its range, and the mean of their metrics."""

    label: str
    mean: Mean
    metrics: list[float]
    """One of each seed of each configuration."""


@dataclass(frozen=True, slots=True)
class Effect:
    """Levels from low to high; texts and switches as they are declared. `correlation` is that of the parameter with
    the mean of each complete configuration, None where the parameter has no order or there are too few."""

    parameter: Parameter
    levels: list[Level]
    correlation: Correlation | None
    in_parts: bool
    """Whether a level is a third of the trials, not one value."""


def effects(sweep: Sweep) -> list[Effect]:
    """An effect for each parameter, over the trials that finished. A seed of a configuration counts once."""
    return [_effect(sweep, parameter) for parameter in sweep.plan.parameters]


def _effect(sweep: Sweep, parameter: Parameter) -> Effect:
    numeric = sweep.numbers(parameter) is not None
    seen = [
        (configuration.values[parameter.name], value)
        for configuration in sweep.configurations
        for value in configuration.by_seed.values()
    ]
    in_parts = numeric and len({float(str(value)) for value, _ in seen}) > _MOST
    levels = _parts(seen) if in_parts else _levels(seen, parameter, numeric)
    return Effect(parameter, levels, _correlation(sweep, parameter) if numeric else None, in_parts)


def _levels(seen: Sequence[tuple[object, float]], parameter: Parameter, numeric: bool) -> list[Level]:
    groups: dict[str, list[float]] = {}
    for value, metric in seen:
        groups.setdefault(json.dumps(value, sort_keys=True), []).append(metric)
    declared = [json.dumps(value, sort_keys=True) for value in parameter.values]
    order = (
        sorted(groups, key=float)
        if numeric
        else sorted(groups, key=lambda k: (k not in declared, [*declared, k].index(k)))
    )
    return [Level(text_of(json.loads(key)), mean_of(groups[key]), groups[key]) for key in order]


def _parts(seen: Sequence[tuple[object, float]]) -> list[Level]:
    """Three parts with about as many trials each; equal values stay together."""
    values, metrics = np.array([float(str(value)) for value, _ in seen]), np.array([metric for _, metric in seen])
    edges = np.quantile(values, [part / _PARTS for part in range(1, _PARTS)])
    part_of = np.searchsorted(edges, values)  # a value at an edge belongs below it
    levels = []
    for part in range(_PARTS):
        inside = part_of == part
        if inside.any():
            low, high = values[inside].min(), values[inside].max()
            label = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
            levels.append(Level(label, mean_of(metrics[inside].tolist()), metrics[inside].tolist()))
    return levels


def _correlation(sweep: Sweep, parameter: Parameter) -> Correlation | None:
    complete = [(float(str(one.values[parameter.name])), one.mean.value) for one in sweep.complete if one.mean]
    return rank_correlation([value for value, _ in complete], [metric for _, metric in complete])
