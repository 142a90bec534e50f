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

from rlhf_ray.chaos.plan import OPENERS, Cell, successor, victim
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


@dataclass(frozen=True, slots=True)
class _Struck:
    cell: Cell
    process: Process
    step: int
    at: float
    ticks: int


class Monkey:
    """Works on the run at `run_dir`, which must be running; `over` says when it is not any more."""

    def __init__(self, run_dir: Path, seed: int, limit_s: float, over: Callable[[], bool]) -> None:
        self._run_dir, self._run, self._over = run_dir, run_dir.name, over
        self._draw, self._limit_s = random.Random(seed), limit_s

    def work(self, plan: Sequence[Cell]) -> Iterator[Strike]:
        """Strikes each cell when the run has recovered from the one before.

        `RunError` if the run ends too early, or a cell takes more than its limit.
        """
        opened: list[_Struck] = []
        for i, cell in enumerate(plan):
            deadline = time.monotonic() + self._limit_s
            resuming = cell.phase == "resume"
            if resuming and not opened:
                os.kill(self._find("controller", deadline).pid, signal.SIGKILL)
            struck = self._strike(cell, deadline)
            opened.append(struck)
            if cell.role in OPENERS and not resuming and plan[i + 1 : i + 2] and plan[i + 1].phase == "resume":
                continue  # the next one is struck before the run has come back from this one
            self._back(struck, deadline)
            now = time.monotonic()
            yield from (Strike(one.cell, one.step, one.process.pid, now - one.at) for one in opened)
            opened.clear()

    def _strike(self, cell: Cell, deadline: float) -> _Struck:
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
                    return _Struck(cell, process, at[0], time.monotonic(), ticks_now())
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

    def _back(self, struck: _Struck, deadline: float) -> None:
        cell = struck.cell
        stopped_in_vain = cell.sign is signal.SIGSTOP and cell.role == "Ray Train controller" and cell.phase != "resume"
        if not stopped_in_vain:
            self._until(lambda: successor(self._run, cell.role, struck.ticks), deadline, f"a new {cell.role}", _LOOK_S)
        for _ in range(2):  # the rest of the step under way, or of what precedes the first one; and a whole one
            step, since = self._phase()[0], self._since()
            self._until(
                lambda s=step, t=since: self._phase()[0] != s and self._since() > t and self._phase()[0] > 0,  # type: ignore[misc]  # defaults bind
                deadline,
                f"the step after the death of {cell.role} in {cell.phase}",
                _POLL_S,
            )
        if stopped_in_vain:  # nothing needs it before a rank dies, so nobody has missed it
            os.kill(struck.process.pid, signal.SIGCONT)

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
