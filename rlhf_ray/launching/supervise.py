"""The process that starts a run's driver again when the driver is killed or hangs. It loads next to nothing."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rlhf_ray.rundir.lines import append_line

SILENT_S = 30.0
"""A driver that gives no sign for so long hangs. It gives one every second, from a thread of its own."""
_SIGN_S = 1.0
_SIGNS = "RLHF_RAY_SIGNS"
_PR_SET_PDEATHSIG = 1


def supervise(arguments: Sequence[str], run_dir: Path, max_failures: int) -> int:
    """Runs `rlhf-ray` with `arguments` as a child and returns its exit code; signals are passed on to it.

    A child that a signal ended, or that gave no sign for `SILENT_S`, is started again and resumes the run at `run_dir`:
    at most `max_failures` times without a step committed in between.
    """
    failures, newest = 0, _newest_commit(run_dir)
    while True:
        code, asked_to_stop = _run_child(arguments)
        committed = _newest_commit(run_dir)
        failures, newest = (0 if committed > newest else failures) + 1, committed
        if code >= 0 or asked_to_stop or failures > max_failures:
            return code if code >= 0 else 128 - code
        sentence = (
            f"The driver ended by {signal.Signals(-code).name}. The run goes on at its newest commit: "
            f"retry {failures} of at most {max_failures}."
        )
        print(sentence, file=sys.stderr, flush=True)
        if (run_dir / "config.yaml").is_file():
            append_line(run_dir / "events.jsonl", {"time": time.time(), "kind": "restart", "sentence": sentence})
        arguments = [*(word for word in arguments if word != "--resume"), "--resume-if-exists"]


def give_signs() -> bool:
    """In a supervised driver: tells its parent from now on that it lives. False in any other process."""
    pipe = os.environ.pop(_SIGNS, None)
    if pipe is None:
        return False

    def tell() -> None:
        while True:
            os.write(int(pipe), b".")
            time.sleep(_SIGN_S)

    threading.Thread(target=tell, name="signs", daemon=True).start()
    return True


def _run_child(arguments: Sequence[str]) -> tuple[int, bool]:
    """Its exit code, minus the signal that ended it, and whether this process was asked to stop meanwhile."""
    signs, told = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-m", "rlhf_ray.cli.main", *arguments],
        env={**os.environ, _SIGNS: str(told)},
        pass_fds=[told],
        start_new_session=True,  # what a terminal sends to a whole group comes once, from here
        preexec_fn=_stop_with_parent,
    )
    os.close(told)
    try:
        with _passing_signals(child) as asked:
            while select.select([signs], [], [], SILENT_S)[0] and os.read(signs, 4096):
                pass
            if child.poll() is None and not _ends(child):
                child.kill()
            return child.wait(), bool(asked)
    finally:
        os.close(signs)


def _ends(child: subprocess.Popen[bytes]) -> bool:
    """Whether a child whose pipe is closed, and which is not silent, comes to its end."""
    try:
        child.wait(_SIGN_S)
        return True
    except subprocess.TimeoutExpired:
        return False


@contextmanager
def _passing_signals(child: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """Inside, SIGINT and SIGTERM go to the child; the list has those that came."""
    came: list[int] = []

    def pass_on(signum: int, frame: FrameType | None) -> None:
        came.append(signum)
        child.send_signal(signum)

    before = {each: signal.signal(each, pass_on) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _stop_with_parent() -> None:
    """For a child: a SIGTERM if its parent is killed. Signals that the parent ignores it does not."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _newest_commit(run_dir: Path) -> str:
    return max((path.name for path in (run_dir / "checkpoints").glob("step-??????")), default="")
