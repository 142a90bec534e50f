"""When an actor computed."""

from __future__ import annotations

import time

from rlhf_ray.ports import Busy, Span

_GAP_S = 0.05
"""Spans that are nearer to each other than this are drawn as one; an engine makes thousands of steps."""


class Stopwatch:
    """Adds up the seconds spent inside it, and remembers when that was."""

    def __init__(self) -> None:
        self._seconds = self._began = 0.0
        self._spans: list[Span] = []

    def __enter__(self) -> None:
        self._began = time.time()  # not the monotonic clock: spans of several machines lie on one axis

    def __exit__(self, *_: object) -> None:
        ended = time.time()
        self._seconds += ended - self._began
        if self._spans and self._began - self._spans[-1][1] < _GAP_S:
            self._spans[-1] = (self._spans[-1][0], ended)
        else:
            self._spans.append((self._began, ended))

    def take(self) -> Busy:
        """What happened since the last call."""
        found = Busy(self._seconds, self._spans)
        self._seconds, self._spans = 0.0, []
        return found
