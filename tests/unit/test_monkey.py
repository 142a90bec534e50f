"""When the monkey of `rlhf-ray chaos` says that a run is back: a whole step was done by the successor."""

from __future__ import annotations

import json
import signal
import threading
import time
from pathlib import Path

import pytest

from rlhf_ray.chaos import monkey
from rlhf_ray.chaos.monkey import Monkey, _Struck
from rlhf_ray.chaos.plan import Cell
from rlhf_ray.chaos.runs import Wait
from rlhf_ray.chaos.soak import undisturbed
from rlhf_ray.errors import RunError
from rlhf_ray.rundir.journal import PHASE_FILE
from rlhf_ray.tags import Process

RESUMED = [(0, "starting the roles"), (2, "first weight push"), (3, "generate"), (3, "update"), (3, "push")]
"""After a death in step 4, up to the end of the step that was begun again."""


def _back(run: Path, phases: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the run is back when it has gone through `phases`."""
    monkeypatch.setattr(monkey, "successor", lambda run, role, ticks: True)
    over = threading.Event()
    working = Monkey(run, 0, Wait("run", 60.0, over.is_set))
    struck = _Struck(Cell("driver", "update", signal.SIGKILL), Process(1, 1, "driver", ""), 4, "update", 0.0, 0)
    found: list[bool] = []

    def wait() -> None:
        try:
            working._back(struck)
            found.append(True)
        except RunError:
            found.append(False)

    _write(run, 4, "update")
    waiting = threading.Thread(target=wait)
    waiting.start()
    for phase in phases:
        time.sleep(0.05)
        _write(run, *phase)
    time.sleep(0.05)
    over.set()
    waiting.join()
    return found == [True]


def test_a_step_without_a_death() -> None:
    assert undisturbed([1.0, 2.0, 3.0, 50.0, 9.0], 1) == 2.0
    assert undisturbed([4.0], 1) == 4.0


def _write(run: Path, step: int, phase: str) -> None:
    (run / "next").write_text(json.dumps({"step": step, "phase": phase, "time": time.time()}))
    (run / "next").rename(run / PHASE_FILE)


@pytest.mark.parametrize(
    ("phases", "back"),
    [
        (RESUMED[:3], False),
        (RESUMED, False),
        ([*RESUMED, (4, "generate")], True),
        ([*RESUMED, *RESUMED], False),  # died again, unnoticed before
        ([(4, "push"), (5, "generate"), (5, "push")], False),
        ([(4, "push"), (5, "generate"), (5, "push"), (6, "generate")], True),
    ],
)
def test_back_is_a_whole_step_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phases: list[tuple[int, str]], back: bool
) -> None:
    assert _back(tmp_path, phases, monkeypatch) is back
