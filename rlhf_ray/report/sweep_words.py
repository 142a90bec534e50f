"""Values and figures of a sweep as words."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from rlhf_ray.report.facts import show
from rlhf_ray.report.sweep_statistics import Mean

_DIGITS = 3  # of the largest figure; the others have as many places


def text_of(value: object) -> str:
    """A value as a recipe would have it, numbers with four digits."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def in_words(values: Mapping[str, object]) -> str:
    """`method.beta = 0.1, train.learning_rate = 1e-05`."""
    return ", ".join(f"{name} = {text_of(value)}" for name, value in values.items())


def four_digits(value: float) -> str:
    """With a true minus sign."""
    return f"{value:.4g}".replace("-", "\u2212")


def signed(value: float) -> str:
    """Three digits, with its sign."""
    return f"{value:+.3g}".replace("-", "\u2212")


def places(values: Sequence[float | None]) -> int:
    """How many behind the point, so that the largest of `values` has three digits."""
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    return min(6, max(0, _DIGITS - 1 - math.floor(math.log10(largest)))) if largest > 0 else 0


def mean_text(mean: Mean, digits: int | None = None) -> str:
    """`0.912 (0.893 to 0.931)`; without `digits` behind the point, as many as give the mean three."""
    digits = places([mean.value]) if digits is None else digits
    value = show(mean.value, digits)
    return value if mean.ci95 is None else f"{value} ({show(mean.ci95[0], digits)} to {show(mean.ci95[1], digits)})"
