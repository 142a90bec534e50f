"""How a test talks to an inbox that is in no actor."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable
from typing import TypeVar

from rlhf_ray.actors.inbox import Answer, Inbox

T = TypeVar("T")
RUNNER = asyncio.Runner()  # one loop: an inbox lives in that of its actor
_ONE = threading.Lock()


def now(awaited: Awaitable[T]) -> T:
    """Its value; it must not wait for others."""

    async def soon() -> T:
        return await asyncio.wait_for(awaited, 5)

    with _ONE:
        return RUNNER.run(soon())


def answer(made: Inbox, index: int, *values: object) -> None:
    """Each rank's answer is taken and collected."""
    for rank, value in enumerate(values):
        now(made.answer(index, rank, Answer(value)))
    assert now(made.wait(index, 0.01)) == [Answer(value) for value in values]
