"""Do annotators agree? Krippendorff's alpha over what several of them judged."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Int

from rlhf_ray.data.duplicates import text_hash
from rlhf_ray.evidence import Evidence, Kind, Pair, Ranking, Rating

Level = Literal["nominal", "ordinal"]
LEVELS: dict[Kind, Level] = {"pair": "nominal", "thumb": "nominal", "rating": "ordinal", "ranking": "ordinal"}
_UNITS_AT_ONCE = 4096


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far annotators agree in one kind of evidence about one objective.

    `alpha` is 1 for perfect agreement, 0 for that of chance, negative for less; None if all judgements are equal, for
    then it is not defined. `units` were judged by two annotators or more, with `judgements` altogether. A unit is a
    pair of answers, a rated answer, or an answer within a ranking of the same set.
    """

    kind: Kind
    objective: str
    alpha: float | None
    units: int
    judgements: int


class AgreementCounter:
    """Collects judgements, 20 bytes each, from evidence that names its annotator.

    Evidence without an annotator is left out: two such rows may be one person's, or copies of one row. Only the first
    judgement of a unit by one annotator counts.
    """

    def __init__(self) -> None:
        self._annotators: dict[str, int] = {}
        self._columns: dict[tuple[Kind, str], _Columns] = {}

    @property
    def annotators(self) -> int:
        """The number of names seen."""
        return len(self._annotators)

    def add(self, item: Evidence) -> None:
        """Takes one judgement in."""
        if item.label.annotator is None:
            return
        who = self._annotators.setdefault(item.label.annotator, len(self._annotators))
        columns = self._columns.setdefault((item.kind, item.label.objective), _Columns())
        for unit, value in _judgements(item):
            columns.append(unit, who, value)

    def result(self) -> tuple[Agreement, ...]:
        """One line for each kind and objective in which something was judged by two annotators; empty if none was."""
        found = []
        for (kind, objective), columns in self._columns.items():
            units, values = columns.judged_twice()
            if len(units):
                level = LEVELS[kind]
                alpha = krippendorff_alpha(units, values, level)
                found.append(Agreement(kind, objective, alpha, len(np.unique(units)), len(units)))
        return tuple(found)


def krippendorff_alpha(units: Int[np.ndarray, " N"], values: Float[np.ndarray, " N"], level: Level) -> float | None:
    """Alpha of N judgements (Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C).

    `units[i]` names what was judged, `values[i]` is the verdict; every unit should have two or more, and those with
    one are left out. None if there are none, or if no value differs from another. The sum over units is taken in
    chunks: the library `krippendorff`, against which this is tested, holds `[units, values, values]` at once.
    """
    _, first, index, size = np.unique(units, return_index=True, return_inverse=True, return_counts=True)
    pairable = size[index] > 1
    domain, codes = np.unique(values[pairable], return_inverse=True)
    if len(domain) < 2:
        return None
    order = np.argsort(index[pairable], kind="stable")
    rows, codes = index[pairable][order], codes[order]
    coincidences = np.zeros((len(domain), len(domain)))
    for start in range(0, len(first), _UNITS_AT_ONCE):
        low, high = np.searchsorted(rows, [start, start + _UNITS_AT_ONCE])
        counts = np.zeros((_UNITS_AT_ONCE, len(domain)))
        np.add.at(counts, (rows[low:high] - start, codes[low:high]), 1.0)
        weighted = counts / np.maximum(counts.sum(axis=1, keepdims=True) - 1.0, 1.0)
        coincidences += weighted.T @ counts - np.diag(weighted.sum(axis=0))
    frequency = coincidences.sum(axis=0)
    distance = _squared_distances(frequency, level)
    observed = float((coincidences * distance).sum())
    expected = float((np.outer(frequency, frequency) * distance).sum()) / (float(frequency.sum()) - 1.0)
    return 1.0 - observed / expected


def _squared_distances(frequency: Float[np.ndarray, " V"], level: Level) -> Float[np.ndarray, "V V"]:
    """Nominal: 1 off the diagonal. Ordinal: the squared number of judgements between two values, ends half counted."""
    if level == "nominal":
        return 1.0 - np.eye(len(frequency))
    middle = np.cumsum(frequency) - frequency / 2.0
    return np.square(middle[:, None] - middle[None, :])


def _judgements(item: Evidence) -> Sequence[tuple[int, float]]:
    """`(unit, value)` of each thing that `item` judges; a pair's verdict is the same in either order of its answers."""
    prompt = [part for message in item.prompt for part in (message.role, message.content)]
    if isinstance(item, Pair):
        first, second = sorted(item.answers)
        verdict = 1.0 if item.tie else 0.0 if item.chosen == first else 2.0
        return [(text_hash(*prompt, first, second), verdict)]
    if isinstance(item, Ranking):
        everything = sorted(item.answers)
        ranked = zip(item.answers, item.ranks, strict=True)
        return [(text_hash(*prompt, *everything, answer), float(rank)) for answer, rank in ranked]
    value = item.value if isinstance(item, Rating) else float(item.good)
    return [(text_hash(*prompt, item.answer), value)]


class _Columns:
    """Judgements of one kind about one objective, as columns."""

    def __init__(self) -> None:
        self._unit, self._who, self._value = array("Q"), array("I"), array("d")

    def append(self, unit: int, who: int, value: float) -> None:
        self._unit.append(unit)
        self._who.append(who)
        self._value.append(value)

    def judged_twice(self) -> tuple[Int[np.ndarray, " N"], Float[np.ndarray, " N"]]:
        """`(units, values)` of the units that two or more annotators judged, the first judgement of each."""
        unit, who, value = (np.array(column) for column in (self._unit, self._who, self._value))
        order = np.lexsort((who, unit))  # stable, so a first judgement stays before a second one
        unit, who, value = unit[order], who[order], value[order]
        again = np.zeros(len(unit), dtype=bool)
        again[1:] = (unit[1:] == unit[:-1]) & (who[1:] == who[:-1])
        unit, value = unit[~again], value[~again]
        _, index, size = np.unique(unit, return_inverse=True, return_counts=True)
        shared = size[index] > 1
        return unit[shared], value[shared]
