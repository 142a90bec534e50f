"""How a found array is held against the expected one, and the types that oracles share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Row = Sequence[float]
Rows = Sequence[Row]
Array = Any
"""A NumPy array of float64 (masks: bool, indices: int64), or what a checked function returns: anything that
`np.asarray` takes."""


def same(found: Array, want: Sequence[Any] | Array, tolerance: float, case: str) -> None:
    """`AssertionError` naming the case and the first entry that differs."""
    left, right = np.asarray(found, dtype=float), np.asarray(want, dtype=float)
    if left.shape != right.shape:
        raise AssertionError(f"{case}: expected the shape {right.shape}, got {left.shape}")
    wrong = np.argwhere(~np.isclose(left, right, rtol=tolerance, atol=tolerance))
    if len(wrong):
        place = tuple(int(i) for i in wrong[0])
        raise AssertionError(f"{case}: entry {place} is {left[place]:.6g}, expected {right[place]:.6g}")


def true(holds: bool, case: str) -> None:
    """`AssertionError` saying the case, unless it holds: `assert` would vanish under `python -O`."""
    if not holds:
        raise AssertionError(case)
