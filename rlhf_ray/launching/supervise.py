"""The process that starts a run's driver again when the driver is killed or hangs. It loads next to nothing."""

from __future__ import annotations

import atexit
import functools
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from rlhf_ray.machine import end_with_parent
from rlhf_ray.rundir.commit import newest_first
from rlhf_ray.rundir.lines import append_line
from rlhf_ray.tags import STOPPED_S, is_stopped, run_id, tags

SILENT_S = 30.0
"""A driver that gives no sign for so long hangs. It gives one every second, from a thread of its own."""
LOST = 75
"""The exit code of a driver that has lost a process that it needs (EX_TEMPFAIL of BSD: try again)."""
_RETRY = "RLHF_RAY_RETRY"
_SIGN_S = 1.0
_END = b"e"
"""The last sign of a process that comes to its end by itself, with whatever exit code."""
_SIGNS = "RLHF_RAY_SIGNS"
_VANISHED = "vanished"


def supervise(command: Sequence[str], run_dir: Path, max_failures: int) -> int:
    """Runs `command`, a driver, as a child and returns its exit code; signals are passed on to it.

    A child that a signal ended, that says `LOST`, that vanished, or that gave no sign for `SILENT_S` is started again
    and resumes the run at `run_dir` (`--resume-if-exists`): at most `max_failures` times without a step committed in
    between. One vanishes, with any exit code, when Ray in it ends the process.
    """
    failures, newest, retrying = 0, _newest_commit(run_dir), False
    while True:
        code, asked_to_stop, cause = _run_child(command, tags(run_id(run_dir), "driver"), retrying)
        committed = _newest_commit(run_dir)
        failures, newest = (0 if committed > newest else failures) + 1, committed
        lost = code < 0 or code == LOST or (code > 0 and cause == _VANISHED)
        if not lost or asked_to_stop or failures > max_failures:
            if lost and code != LOST and not asked_to_stop:  # a driver that is lost says so itself
                _tell(
                    run_dir,
                    "failed",
                    f"The driver {cause}: try {failures} of {max_failures + 1} without a commit in between.",
                )
            return 128 - code if code < 0 else 1 if code == LOST else code
        again = f"The run goes on at its newest commit: retry {failures} of at most {max_failures}."
        _tell(run_dir, "restart", f"The driver {cause}. {again}")
        retrying = True


def _tell(run_dir: Path, kind: str, sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)
    if (run_dir / "config.yaml").is_file():
        append_line(run_dir / "events.jsonl", {"time": time.time(), "kind": kind, "sentence": sentence})


@functools.cache
def _taken(name: str) -> str | None:
    """The value of a variable, which goes: children of this process are not supervised."""
    return os.environ.pop(name, None)


def supervised() -> bool:
    """Whether this process is the child of `supervise`."""
    return _taken(_SIGNS) is not None


def started_again() -> bool:
    """Whether it is not the first one."""
    return _taken(_RETRY) is not None


def give_signs() -> None:
    """In a supervised process: tells its parent from now on that it lives."""

    def tell() -> None:
        while True:
            os.write(pipe, b".")
            time.sleep(_SIGN_S)

    pipe = int(_taken(_SIGNS) or "")
    os.set_inheritable(pipe, False)
    atexit.register(os.write, pipe, _END)
    threading.Thread(target=tell, name="signs", daemon=True).start()


def _run_child(command: Sequence[str], environment: Mapping[str, str], retrying: bool) -> tuple[int, bool, str]:
    """Its exit code, minus the signal that ended it; whether this process was asked to stop meanwhile; and what the
    child did. It has vanished if it had begun to give signs and ended without the last one."""
    again = ["--resume-if-exists"] if retrying else []
    words = [word for word in command if not (retrying and word == "--resume")]
    signs, told = os.pipe()
    child = subprocess.Popen(
        [*words, *again],
        env={**os.environ, **environment, _SIGNS: str(told), **({_RETRY: "1"} if retrying else {})},
        pass_fds=[told],
        start_new_session=True,  # what a terminal sends to a whole group comes once, from here
        preexec_fn=_prepare,
    )
    os.close(told)
    try:
        with _passing_signals(child) as came:
            begun, ended, cause = _heard(signs, child.pid)
            try:
                code = child.wait(_SIGN_S)
            except subprocess.TimeoutExpired:  # it is silent, not at its end
                child.kill()
                return child.wait(), bool(came), cause
            if code < 0:
                return code, bool(came), f"was ended by {signal.Signals(-code).name}"
            return code, bool(came), _VANISHED if begun and not ended else "cannot go on"
    finally:
        os.close(signs)


def _heard(signs: int, pid: int) -> tuple[bool, bool, str]:
    """Until no more signs can come, or none came for too long: whether there were some, and the last one; and why that
    process is to be killed if it still is there."""
    begun = ended = False
    silent_s = stopped_s = 0.0
    while silent_s < SILENT_S and stopped_s < STOPPED_S:
        if not select.select([signs], [], [], _SIGN_S)[0]:
            silent_s += _SIGN_S
            stopped_s = stopped_s + _SIGN_S if is_stopped(pid) else 0.0
            continue
        silent_s = stopped_s = 0.0
        if not (seen := os.read(signs, 4096)):
            break
        begun, ended = True, ended or _END in seen
    stopped = f"was stopped by a signal for {STOPPED_S:.0f} s and was killed"
    return begun, ended, stopped if stopped_s else f"gave no sign for {silent_s:.0f} s and was killed"


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


def _prepare() -> None:
    end_with_parent(signal.SIGTERM)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # what a shell starts in the background ignores it


def _newest_commit(run_dir: Path) -> str:
    return next((path.name for path in newest_first(run_dir / "checkpoints")), "")
