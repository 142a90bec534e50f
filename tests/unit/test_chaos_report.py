"""Which times of `rlhf-ray chaos` are those of one death: p50 and p95 are of these."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_ray.chaos.matrix import Outcome
from rlhf_ray.chaos.monkey import Monkey, Strike, _Struck
from rlhf_ray.chaos.plan import Cell, steps_for
from rlhf_ray.chaos.report import as_json, as_markdown
from rlhf_ray.chaos.runs import Wait, ended, started
from rlhf_ray.errors import RunError
from rlhf_ray.tags import Process

KILL = signal.SIGKILL
PLAN = [
    Cell("driver", "idle", KILL),
    Cell("reward-0", "resume", KILL),
    Cell("driver", "push", KILL),
    Cell("reward-0", "idle", KILL),
    Cell("controller", "resume", KILL),
]


def test_the_monkey_says_who_died_with_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver and whom it struck in the resume after it, and whoever was struck in a resume that it made itself."""
    process = Process(2**22, 1, "driver", "")  # nobody has this number
    monkeypatch.setattr(Monkey, "_find", lambda self, role: process)
    monkeypatch.setattr(Monkey, "_strike", lambda self, cell: _Struck(cell, process, 1, cell.phase, 0.0, 0))
    monkeypatch.setattr(Monkey, "_back", lambda self, struck: None)
    monkeypatch.setattr("rlhf_ray.chaos.monkey.os.kill", lambda pid, sign: None)
    strikes = list(Monkey(tmp_path, 0, Wait("run", 60.0, lambda: False)).work(PLAN))
    assert [strike.cell for strike in strikes] == PLAN
    assert [strike.together for strike in strikes] == [True, True, False, False, True]


def test_a_driver_that_is_stopped_is_not_missed_for_a_while() -> None:
    """Meanwhile the run goes on, and needs the steps for it."""
    stopped = [replace(cell, sign=signal.SIGSTOP) for cell in PLAN]
    assert steps_for(PLAN) == 2 * 5 + 20
    assert steps_for(stopped) == 2 * 5 + 20 + 2 * 15


def test_a_run_that_ends_has_the_last_word(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("kind: nonsense\n")
    run = tmp_path / "killed-0"
    said = r"killed-0 ended with exit code 2.*Its log ends with: .*run\.yaml"
    with pytest.raises(RunError, match=said), started(tmp_path, run) as process:
        ended(process, run, 60)


def test_quantiles_are_of_single_deaths() -> None:
    back = [50.0, 30.0, 20.0, 4.0, 7.0]
    together = [True, True, False, False, True]
    strikes = [Strike(cell, 1, cell.phase, 1, s, two) for cell, s, two in zip(PLAN, back, together, strict=True)]
    outcomes = [Outcome(0, "ppo", strikes)]
    found = as_json(outcomes, [PLAN])
    assert found["recovery_s"] == {
        "controller": {}, "driver": {"p50": 20.0, "p95": 20.0}, "reward-0": {"p50": 4.0, "p95": 4.0},
    }  # fmt: skip
    assert found["recovery_together_s"]["driver"] == {"p50": 50.0, "p95": 50.0}
    rows = [line for line in as_markdown(outcomes, [PLAN]).splitlines() if line.startswith("| ")]
    assert rows == [
        "| | idle | push | resume | p50 | p95 |",
        "| driver | 1/1 50 s * | 1/1 20 s | 0/0 | 20 s | 20 s |",
        "| controller | 0/0 | 0/0 | 1/1 7 s * |  |  |",
        "| reward-0 | 1/1 4 s | 0/0 | 1/1 30 s * | 4 s | 4 s |",
    ]
