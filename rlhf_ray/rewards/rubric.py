"""Combines reward sources into one reward and keeps what each of them said."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, Protocol

from rlhf_ray.types import Rollout, Score


class Source(Protocol):
    """A reward source: one number a rollout. An entry that could not be scored is an exception in its place."""

    def score(self, rollouts: Sequence[Rollout]) -> Sequence[float | Exception]: ...


class Rubric:
    """The weighted sum of named sources, and apart from it that of `costs`, the names of some of them."""

    def __init__(self, sources: Sequence[tuple[str, float, Source]], costs: Collection[str] = ()) -> None:
        self._sources, self._costs = list(sources), frozenset(costs)

    def score(self, rollouts: Sequence[Rollout]) -> list[Score]:
        """A `Score` a rollout. One that any source could not score carries an error, never a made-up number."""
        columns = {name: source.score(rollouts) for name, _, source in self._sources}
        weights = {name: weight for name, weight, _ in self._sources}
        rows = [{name: column[i] for name, column in columns.items()} for i in range(len(rollouts))]
        return [self._combine(row, weights) for row in rows]

    def _combine(self, values: dict[str, Any], weights: dict[str, float]) -> Score:
        faults = {name: fault for name, value in values.items() if (fault := _fault(value))}
        parts = {name: float(value) for name, value in values.items() if name not in faults}
        if faults:
            return Score(math.nan, parts, "; ".join(f"{name}: {fault}" for name, fault in faults.items()))
        weighted = {name: weights[name] * value for name, value in parts.items()}
        cost = sum(value for name, value in weighted.items() if name in self._costs)
        return Score(sum(value for name, value in weighted.items() if name not in self._costs), parts, cost=cost)


def _fault(value: float | Exception) -> str | None:
    if isinstance(value, Exception):
        return f"{type(value).__name__}: {value}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return f"expected a number, got {type(value).__name__}"
    # The squares of larger ones, summed over a batch, are no float32 any more; and no comparison is true of NaN.
    return None if abs(value) <= 1e12 else f"expected a number of size 1e12 at most, got {value}"
