"""The reward actor's end of a function that runs in a process of its own (`child.py`)."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from rlhf_ray.machine import end_with_parent
from rlhf_ray.tags import role_tag

if TYPE_CHECKING:  # loads torch
    from rlhf_ray.types import Rollout

_START_S = 120.0
_CHUNK = 65536
TRIES = 2
"""Of a question whose process died, or at which the function said that the outside world failed (`OSError`)."""


class FunctionFailed(Exception):
    """The function gave no number. `transient`: it may if it is asked again."""

    def __init__(self, reason: str, transient: bool = False) -> None:
        super().__init__(reason)
        self.transient = transient


class IsolatedFunction:
    """A reward source. One that crashes or hangs costs the answer that it was asked about its score, and nothing
    else."""

    def __init__(self, path: str, timeout_s: float, memory_gib: float | None) -> None:
        """`path` is `package.module:name`. `FunctionFailed` if it cannot be loaded."""
        self._path, self._timeout_s, self._memory_gib = path, timeout_s, memory_gib
        self._child: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._start()

    def score(self, rollouts: Sequence[Rollout]) -> list[float | Exception]:
        """One entry a rollout; the reason stands in place of a number."""
        return [self._one(rollout) for rollout in rollouts]

    def close(self) -> None:
        """Ends its process."""
        if self._child is not None and self._child.stdin is not None:
            self._child.stdin.close()
            self._end()

    def _one(self, rollout: Rollout) -> float | Exception:
        asked = [message.content for message in rollout.prompt.messages if message.role == "user"]
        question = {
            "prompt": asked[-1] if asked else "",
            "response": rollout.text,
            "reference": rollout.prompt.reference,
        }
        for left in reversed(range(TRIES)):
            try:
                return self._ask(question)
            except FunctionFailed as failure:
                if not (failure.transient and left):
                    return failure
        raise AssertionError  # the last try returned

    def _ask(self, question: dict[str, str | None]) -> float:
        child = self._child or self._start()
        assert child.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it is dead, which the answer will say
            child.stdin.write(json.dumps(question).encode() + b"\n")
            child.stdin.flush()
        answer = self._answer(child, self._timeout_s)
        if "error" in answer:
            raise FunctionFailed(str(answer["error"]), answer.get("transient") is True)
        return float(str(answer["value"]))

    def _start(self) -> subprocess.Popen[bytes]:
        words = [self._path, "" if self._memory_gib is None else str(self._memory_gib)]
        self._unread = b""
        self._child = subprocess.Popen(
            [sys.executable, "-m", "rlhf_ray.rewards.child", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **role_tag("reward function")},
            start_new_session=True,
            preexec_fn=partial(end_with_parent, signal.SIGKILL),
        )
        answer = self._answer(self._child, _START_S)
        if "error" in answer:
            raise FunctionFailed(str(answer["error"]))
        return self._child

    def _answer(self, child: subprocess.Popen[bytes], timeout_s: float) -> dict[str, object]:
        """The next line; `FunctionFailed`, and no child any more, if it does not come."""
        assert child.stdout is not None
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._unread:
            if not select.select([child.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                self._end()
                raise FunctionFailed(f"{self._path} did not answer within {timeout_s:g} s (timeout_s) and was killed")
            piece = os.read(child.stdout.fileno(), _CHUNK)
            if not piece:
                raise FunctionFailed(f"the process of {self._path} died ({self._end()})", transient=True)
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, object] = json.loads(line)
        return answer

    def _end(self) -> str:
        """Kills the child and what it has started; how it ended."""
        child, self._child = self._child, None
        assert child is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(1.0)  # if it is dying by itself, of what
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        code = child.wait()
        for pipe in (child.stdin, child.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()  # type: ignore[union-attr]  # both are pipes
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"
