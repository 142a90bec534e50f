"""Kills one process after another of a run, each in the phase that was asked for."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_ray.chaos.plan import Cell, successor, victim
from rlhf_ray.errors import RunError
from rlhf_ray.rundir.journal import read_phase
from rlhf_ray.tags import Process, ticks_now

_POLL_S = 0.001
_LOOK_S = 0.05
_LATER_S = {"idle": 0.003, "push": 0.02, "commit": 0.05, "resume": 2.0}
"""At most so long after a phase has begun its victim is struck."""
_LATER_ELSE_S = 0.15
_STARTING = ("starting the roles", "first weight push")
_PHASE = {"idle": ("advantages",), "resume": _STARTING}


@dataclass(frozen=True, slots=True)
class Strike:
    """What was done to a run, and how long it took to come back from it."""

    cell: Cell
    step: int
    pid: int
    back_s: float
    """Until a whole step was finished that had begun after the successor of the victim."""


class Monkey:
    """Works on the run at `run_dir`, which must be running; `over` says when it is not any more."""

    def __init__(self, run_dir: Path, seed: int, limit_s: float, over: Callable[[], bool]) -> None:
        self._run_dir, self._run, self._over = run_dir, run_dir.name, over
        self._draw, self._limit_s = random.Random(seed), limit_s

    def work(self, plan: Sequence[Cell]) -> Iterator[Strike]:
        """Strikes each cell when the run has recovered from the one before.

        `RunError` if the run ends too early, or a cell takes more than its limit.
        """
        for cell in plan:
            deadline = time.monotonic() + self._limit_s
            if cell.phase == "resume":
                self._to_a_resume(deadline)
            process, step = self._strike(cell, deadline)
            yield Strike(cell, step, process.pid, self._back(cell, process, deadline))

    def _to_a_resume(self, deadline: float) -> None:
        began = time.time()
        opening = self._find("controller", deadline)
        os.kill(opening.pid, signal.SIGKILL)
        self._until(lambda: self._phase()[1] in _STARTING and self._since() > began, deadline, "the run to resume")

    def _strike(self, cell: Cell, deadline: float) -> tuple[Process, int]:
        """Kills the process of `cell` in its phase: the controller is stopped meanwhile, so the phase cannot pass."""
        wanted = _PHASE.get(cell.phase, (cell.phase,))
        while True:
            process = self._find(cell.role, deadline)
            self._until(lambda: self._phase()[1] in wanted, deadline, f"phase {cell.phase}")
            at = self._phase()
            time.sleep(self._draw.uniform(0, _LATER_S.get(cell.phase, _LATER_ELSE_S)))
            with self._pinned(cell):
                if self._phase() == at and _same(victim(self._run, cell.role), process):
                    os.kill(process.pid, cell.sign)
                    return process, at[0]
            time.sleep(_LOOK_S)

    @contextlib.contextmanager
    def _pinned(self, cell: Cell) -> Iterator[None]:
        controller = None if cell.role == "controller" else victim(self._run, "controller")
        if controller is not None:
            os.kill(controller.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            if controller is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(controller.pid, signal.SIGCONT)

    def _back(self, cell: Cell, dead: Process, deadline: float) -> float:
        began, struck = time.monotonic(), ticks_now()
        stopped_in_vain = cell.sign is signal.SIGSTOP and cell.role == "Ray Train controller"
        if not stopped_in_vain:
            self._until(lambda: successor(self._run, cell.role, struck), deadline, f"a new {cell.role}", _LOOK_S)
        for _ in range(2):  # the rest of the step under way, or of what precedes the first one; and a whole one
            step, since = self._phase()[0], self._since()
            self._until(
                lambda s=step, t=since: self._phase()[0] != s and self._since() > t and self._phase()[0] > 0,  # type: ignore[misc]  # defaults bind
                deadline,
                f"the step after the death of {cell.role} in {cell.phase}",
                _POLL_S,
            )
        if stopped_in_vain:  # nothing needs it before a rank dies, so nobody has missed it
            os.kill(dead.pid, signal.SIGCONT)
        return time.monotonic() - began

    def _find(self, role: str, deadline: float) -> Process:
        found: list[Process] = []

        def look() -> bool:
            process = victim(self._run, role)
            found[:] = [process] if process else []
            return bool(found)

        self._until(look, deadline, role, _LOOK_S)
        return found[0]

    def _phase(self) -> tuple[int, str]:
        record = read_phase(self._run_dir)
        return int(str(record.get("step", 0))), str(record.get("phase", ""))

    def _since(self) -> float:
        return float(str(read_phase(self._run_dir).get("time", 0.0)))

    def _until(self, true: Callable[[], bool], deadline: float, what: str, poll_s: float = _POLL_S) -> None:
        while not true():
            if self._over():
                raise RunError(f"{self._run} ended while the monkey waited for {what}")
            if time.monotonic() > deadline:
                raise RunError(f"{self._run}: {what} did not come within {self._limit_s:.0f} s")
            time.sleep(poll_s)


def _same(one: Process | None, other: Process) -> bool:
    return one is not None and (one.pid, one.started) == (other.pid, other.started)
