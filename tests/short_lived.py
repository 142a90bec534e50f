"""Actors that die, hang or come to an end as they are told."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.actors.group import InboxLost
from rlhf_ray.errors import StallError


class Controller:
    """A controller without a run. `does` names what comes of it: one of the private methods."""

    def __init__(self, does: str, run_dir: Path, number: int) -> None:
        self._does, self._run_dir, self._number = does, run_dir, number
        self._stopping = threading.Event()

    def run(self) -> dict[str, Any]:
        """As the controller's."""
        getattr(self, f"_{self._does}")()
        return {"number": self._number}

    def records_since(self, index: int) -> list[dict[str, object]]:
        """One for each controller: its own."""
        return [{"index": 1, "number": self._number}] if index == 0 else []

    def stop(self) -> None:
        """As the controller's."""
        self._stopping.set()

    def _finishes(self) -> None:
        pass

    def _dies(self) -> None:
        os._exit(1)

    def _commits_and_dies(self) -> None:
        (self._run_dir / "checkpoints" / f"step-{self._number + 1:06d}").mkdir(parents=True)
        os._exit(1)

    def _hangs(self) -> None:
        time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGSTOP)

    def _loses_an_inbox(self) -> None:
        raise InboxLost("the inbox of policy died")

    def _stalls(self) -> None:
        raise StallError("reward-0 did not finish 'score' within 40 s")

    def _dies_when_told_to_stop(self) -> None:
        assert self._stopping.wait(30)
        os._exit(1)

    def _waits_for_stop(self) -> None:
        assert self._stopping.wait(30)


class Sleeper:
    """Takes its time to load, then answers, until it is stopped."""

    def __init__(self, loads_s: float) -> None:
        time.sleep(loads_s)

    def alive(self) -> str:
        """As any actor of a pool."""
        return "yes"

    def ping(self) -> None:
        """As any actor of a pool."""

    def incarnation(self) -> int:
        """As an inbox."""
        return 0

    def pid(self) -> int:
        """Of its process."""
        return os.getpid()

    def stop(self) -> None:
        """The whole process, as SIGSTOP does."""
        os.kill(os.getpid(), signal.SIGSTOP)


class Inbox(Sleeper):
    """Named as the real one."""


@dataclass(frozen=True)
class Idle:
    """A worker group without ranks of its own."""

    role: str
    name: str
    config: object

    def fit(self, inbox: Any) -> None:
        """Never ends."""
        threading.Event().wait()
