"""Values and figures of a sweep as words."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from rlhf_ray.report.facts import show
from rlhf_ray.report.sweep_statistics import Mean

_LONGEST = 18  # characters of a place on an axis
_DIGITS = 3  # of the largest figure; the others have as many places


def text_of(value: object) -> str:
    """A value as a recipe would have it, numbers with four digits."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def in_words(values: Mapping[str, object]) -> str:
    """`method.beta = 0.1, train.learning_rate = 1e-05`."""
    return ", ".join(f"{name} = {text_of(value)}" for name, value in values.items())


def short(text: str) -> str:
    """Short enough for a place on an axis."""
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "\u2026"


def digits(value: float, count: int = 4) -> str:
    """So many digits at most, with a true minus sign."""
    return f"{value:.{count}g}".replace("-", "\u2212")


def signed(value: float) -> str:
    """Three digits, with its sign."""
    return f"{value:+.3g}".replace("-", "\u2212")


def places(values: Sequence[float | None]) -> int:
    """How many behind the point, so that the largest of `values` has three digits."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    return min(6, max(0, _DIGITS - 1 - math.floor(math.log10(largest)))) if largest > 0 else 0


def mean_text(mean: Mean, behind: int | None = None) -> str:
    """`0.912 (0.893 to 0.931)`; without `behind`, with as many places as give the mean three digits."""
    behind = places([mean.value]) if behind is None else behind
    value = show(mean.value, behind)
    return value if mean.ci95 is None else f"{value} ({show(mean.ci95[0], behind)} to {show(mean.ci95[1], behind)})"
