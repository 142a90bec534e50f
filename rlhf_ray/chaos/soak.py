"""A run on which a monkey strikes at long intervals, as machines do: how much of the time was spent on training?"""

from __future__ import annotations

import itertools
import random
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_ray.chaos.monkey import ANY, Monkey, Strike
from rlhf_ray.chaos.oracles import broken, good_commits, no_orphans, plan_kept, true_weights
from rlhf_ray.chaos.plan import ROLES, Cell, Lane, config
from rlhf_ray.chaos.runs import GONE_S, Wait, address, cluster, started, stopped
from rlhf_ray.config import RunConfig
from rlhf_ray.config_file import dump_config
from rlhf_ray.errors import RunError
from rlhf_ray.rundir.journal import read_phase
from rlhf_ray.rundir.lines import read_lines

_STEPS = 200_000
"""The run is stopped when its time is over; it must not end before."""


@dataclass
class Soak:
    """What came of it. Steps and seconds are those from the first step's beginning to the last one's end."""

    every_s: float
    strikes: list[Strike] = field(default_factory=list)
    violations: dict[str, list[str]] = field(default_factory=dict)
    seconds: float = 0.0
    steps: int = 0
    undisturbed_step_s: float = 0.0
    """The mean of a step in which nobody died."""

    @property
    def effective(self) -> float:
        """The share of the time in which the same steps would have been done without a kill."""
        return self.steps * self.undisturbed_step_s / self.seconds if self.seconds else 0.0


def soak(out: Path, seconds: float, every_s: float, lane: Lane, limit_s: float, tell: Callable[[str], None]) -> Soak:
    """Trains for `seconds` with a kill in the middle of every `every_s`, role after role."""
    run = config(out, 0, lane, _STEPS)
    folder, found = out / run.name, Soak(every_s)
    killed = folder / "killed"
    (folder / "run.yaml").write_text(dump_config(run), encoding="utf-8")
    with cluster(), address():
        try:
            with started(folder, killed) as process:
                wait = Wait(killed.name, limit_s, lambda: process.poll() is not None)
                wait.until(lambda: read_phase(killed).get("step"), "the first step")
                began = time.monotonic()
                for strike in _strikes(Monkey(killed, 0, wait), began, seconds, every_s):
                    found.strikes.append(strike)
                    tell(f"{time.monotonic() - began:.0f} s: {strike.cell.role}: back after {strike.back_s:.1f} s")
                time.sleep(max(0.0, began + seconds - time.monotonic()))
                stopped(process, killed)
                found.seconds = time.monotonic() - began
        except RunError as error:
            found.violations["P1"] = [str(error)]
        time.sleep(GONE_S)
    seconds_each = [_seconds(line) for line in read_lines(killed / "metrics.jsonl")]
    found.steps, found.undisturbed_step_s = len(seconds_each), undisturbed(seconds_each, len(found.strikes))
    found.violations |= _judged(run, found.steps, killed)
    return found


def undisturbed(seconds_each: Sequence[float], strikes: int) -> float:
    """The mean of the steps but for the longest two a strike: the one that was struck, and one that waited. 0 of
    none."""
    shorter = sorted(seconds_each)[: max(1, len(seconds_each) - 2 * strikes)]
    return statistics.fmean(shorter) if shorter else 0.0


def _strikes(monkey: Monkey, began: float, seconds: float, every_s: float) -> Iterator[Strike]:
    """One in each interval that has time for it, at a moment drawn from its middle half."""
    draw = random.Random(0)
    for i, role in enumerate(itertools.cycle(ROLES)):
        at = began + (i + draw.uniform(0.25, 0.75)) * every_s
        if at > began + seconds:
            return
        time.sleep(max(0.0, at - time.monotonic()))
        yield from monkey.work([Cell(role, ANY, signal.SIGKILL)])


def _seconds(line: dict[str, object]) -> float:
    """Of a step, with the time for which a commit held it up."""
    return sum(float(str(line.get(name, 0.0))) for name in ("time/step", "time/commit"))


def _judged(run: RunConfig, steps: int, killed: Path) -> dict[str, list[str]]:
    return broken(
        P2=plan_kept(run, steps, killed),
        P4=good_commits(killed),
        P9=true_weights(killed),
        P11=no_orphans(killed),
    )
