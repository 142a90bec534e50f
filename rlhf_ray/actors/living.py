"""What an actor of a pool answers in a thread of its own, also while it computes."""

from __future__ import annotations

import secrets
import sys
import threading
import traceback

from ray.exceptions import OutOfMemoryError, RayActorError

_WORD = secrets.token_hex(8)
DEATHS = (RayActorError, OutOfMemoryError)
"""What Ray raises for a call to an actor that died; the second one if Ray's own memory monitor has killed it."""
_DEPTH = 12
"""Calls of each thread that are told."""


class Living:
    """A base of the pooled actors; called in their concurrency group `HEALTH`."""

    def alive(self) -> str:
        """A word that no other process has: that of an actor that was started again is another one."""
        return _WORD

    def stacks(self) -> str:
        """Where every thread is."""
        return stacks()


def stacks(actor: object = None) -> str:
    """Of all threads of this process, the innermost calls last; any actor can be asked for them by `__ray_call__`."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"thread {names.get(ident, ident)}:\n" + "".join(traceback.format_stack(frame)[-_DEPTH:])
        for ident, frame in sys._current_frames().items()
    )
