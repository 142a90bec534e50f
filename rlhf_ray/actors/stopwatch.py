"""How long an actor computed."""

from __future__ import annotations

import time


class Stopwatch:
    """Adds up the seconds spent inside it."""

    def __init__(self) -> None:
        self._total = self._began = 0.0

    def __enter__(self) -> None:
        self._began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._total += time.monotonic() - self._began

    def take(self) -> float:
        """The seconds since the last call."""
        total, self._total = self._total, 0.0
        return total
