"""Which of a machine's processes are ended: those of a run and a role that are old enough."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from rlhf_ray.tags import end_processes, end_stopped, is_stopped, run_id, tags


@pytest.mark.parametrize(
    ("run", "role", "title", "age_s", "ends"),
    [
        ("tagged", "sleeper", sys.executable, 0.0, True),
        ("tagged", "sleeper", sys.executable, 0.3, True),
        ("tagged", "sleeper", sys.executable, 60.0, False),  # a successor
        ("tagged", "sleeper", "ray::", 0.0, False),
        ("tagged", "other", sys.executable, 0.0, False),
        ("other", "sleeper", sys.executable, 0.0, False),
    ],
)
def test_which_processes_are_ended(run: str, role: str, title: str, age_s: float, ends: bool) -> None:
    """Also while they are stopped."""
    code = "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)"
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ | tags("tagged", "sleeper"))
    try:
        time.sleep(0.5)
        end_processes(run, role, title, age_s)
        time.sleep(0.2)
        assert (process.poll() is not None) is ends
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("sign", "goes_on", "role", "ends"),
    [
        (signal.SIGSTOP, False, "sleeper", True),
        (signal.SIGSTOP, True, "sleeper", False),  # as after Ctrl-Z and `fg`
        (signal.SIGSTOP, False, "other", False),
        (signal.SIGCONT, False, "sleeper", False),
    ],
)
def test_who_is_ended_for_being_stopped(sign: signal.Signals, goes_on: bool, role: str, ends: bool) -> None:
    process = subprocess.Popen(["sleep", "60"], env=os.environ | tags("tagged", "sleeper"))
    try:
        process.send_signal(sign)
        time.sleep(0.2)
        assert is_stopped(process.pid) is (sign is signal.SIGSTOP)
        if goes_on:
            threading.Timer(0.2, process.send_signal, [signal.SIGCONT]).start()
        assert end_stopped({"tagged": [role]}, 0.6) == ([role] if ends else [])
        time.sleep(0.2)
        assert (process.poll() is not None) is ends
    finally:
        process.kill()
        process.wait()
    assert not is_stopped(process.pid)


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, other = run_id(tmp_path / "a" / "ppo"), run_id(tmp_path / "b" / "ppo")
    assert one != other and one.startswith("ppo-")
    assert run_id(Path("a", "ppo")) == one, "wherever it is named from"
