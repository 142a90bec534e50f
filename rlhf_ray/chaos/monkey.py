"""Kills one process after another of a run, each in the phase that was asked for."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rlhf_ray.chaos.plan import OPENERS, Cell, successor, victim
from rlhf_ray.chaos.runs import Wait
from rlhf_ray.rundir.commit import unfinished
from rlhf_ray.rundir.journal import read_phase
from rlhf_ray.tags import Process, run_id, ticks_now

_LOOK_S = 0.05
_LATER_S = {"idle": 0.0, "update": 0.05, "push": 0.01, "commit": 0.05, "resume": 1.0}
"""At most so long after a phase has begun its victim is struck."""
_LATER_ELSE_S = 0.15
ANY = "any"
"""A cell's phase that is whichever it is when its time has come."""
_STARTING = ("starting the roles", "first weight push")
_PHASE = {"idle": ("advantages",), "resume": _STARTING, ANY: ("generate", "logprobs", "update", "push")}


@dataclass(frozen=True, slots=True)
class Strike:
    """What was done to a run, and how long it took to come back from it."""

    cell: Cell
    step: int
    phase: str
    """As the run itself said."""
    pid: int
    back_s: float
    """Until a whole step was finished that had begun after the successor of the victim."""
    together: bool = False
    """Whether another process was struck before the run was back; the time is then that of both."""


class _Now(NamedTuple):
    step: int
    phase: str
    time: float


@dataclass(frozen=True, slots=True)
class _Struck:
    cell: Cell
    process: Process
    step: int
    phase: str
    at: float
    ticks: int


class Monkey:
    """Works on the run at `run_dir`, which must be running; `wait` says how long it may take to come back."""

    def __init__(self, run_dir: Path, seed: int, wait: Wait) -> None:
        self._run_dir, self._run, self._wait = run_dir, run_id(run_dir), wait
        self._draw = random.Random(seed)

    def work(self, plan: Sequence[Cell]) -> Iterator[Strike]:
        """Strikes each cell when the run has recovered from the one before. `RunError` as of `Wait`."""
        opened: list[_Struck] = []
        for i, cell in enumerate(plan):
            self._wait.again()
            resuming = cell.phase == "resume"
            if resuming and not opened:
                os.kill(self._find("controller").pid, signal.SIGKILL)
            struck = self._strike(cell)
            opened.append(struck)
            if cell.role in OPENERS and not resuming and plan[i + 1 : i + 2] and plan[i + 1].phase == "resume":
                continue  # the next one is struck before the run has come back from this one
            self._back(struck)
            now = time.monotonic()
            yield from (
                Strike(one.cell, one.step, one.phase, one.process.pid, now - one.at, together=resuming)
                for one in opened
            )
            opened.clear()

    def _strike(self, cell: Cell) -> _Struck:
        """Kills the process of `cell` in its phase: the controller is stopped meanwhile, so the phase cannot pass. A
        phase may last two milliseconds, so nothing is looked for in between."""
        wanted = _PHASE.get(cell.phase, (cell.phase,))
        look = self._committing if cell.phase == "commit" else self._now
        while True:
            process, controller = self._find(cell.role), victim(self._run, "controller")
            self._wait.until(lambda: look().phase in wanted, f"phase {cell.phase}")
            at = look()
            if cell.phase == "resume":  # who was there before it may be gone, or hang
                process, controller = self._find(cell.role), victim(self._run, "controller")
            time.sleep(self._draw.uniform(0, _LATER_S.get(cell.phase, _LATER_ELSE_S)))
            _signal(controller, signal.SIGSTOP)
            stays = False
            try:
                if look() == at and victim(self._run, cell.role) == process:
                    os.kill(process.pid, cell.sign)
                    stays = process == controller and cell.sign is signal.SIGSTOP
                    return _Struck(cell, process, at.step, at.phase, time.monotonic(), ticks_now())
            finally:
                if not stays:
                    _signal(controller, signal.SIGCONT)
            time.sleep(_LOOK_S)

    def _back(self, struck: _Struck) -> None:
        cell = struck.cell
        self._wait.until(lambda: successor(self._run, cell.role, struck.ticks), f"a new {cell.role}", _LOOK_S)
        for _ in range(2):  # the rest of the step under way, or of what precedes the first one; and a whole one
            self._another_step(f"the step after the death of {cell.role} in {cell.phase}")

    def _another_step(self, what: str) -> None:
        before = self._now()

        def begun() -> bool:
            now = self._now()
            in_a_step = now.step != 0 and now.phase not in _STARTING
            return in_a_step and now.time > before.time and (now.step != before.step or before.phase in _STARTING)

        self._wait.until(begun, what)

    def _find(self, role: str) -> Process:
        process = self._wait.until(lambda: victim(self._run, role), role, _LOOK_S)
        assert process is not None  # as `until` says
        return process

    def _committing(self) -> _Now:
        """A commit is written beside the phases of a step."""
        name = unfinished(self._run_dir / "checkpoints")
        return _Now(int(name.removeprefix("step-")), "commit", 0.0) if name else _Now(0, "", 0.0)

    def _now(self) -> _Now:
        record = read_phase(self._run_dir)
        return _Now(int(str(record.get("step", 0))), str(record.get("phase", "")), float(str(record.get("time", 0.0))))


def _signal(process: Process | None, sign: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        if process is not None:
            os.kill(process.pid, sign)
