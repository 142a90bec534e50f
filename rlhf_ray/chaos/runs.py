"""The runs that are killed, or left alone, on a cluster that outlives their drivers."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from rlhf_ray.cluster import connected
from rlhf_ray.config import PlacementConfig
from rlhf_ray.errors import RunError

T = TypeVar("T")
GONE_S = 15.0
"""So long Ray may take to end what is left of a run."""
_CPUS = 12.0
_END_S = 600.0
_FAILURES = 5
"""Of a driver, between two commits: two strikes of a cell in a resume, and those of the next."""


class Wait:
    """For what a run will do. `until` raises a `RunError` if the run is `over`, or `limit_s` after the last `again`."""

    def __init__(self, run: str, limit_s: float, over: Callable[[], bool]) -> None:
        self._run, self._limit_s, self._over = run, limit_s, over
        self.again()

    def again(self) -> None:
        """The time starts anew."""
        self._deadline = time.monotonic() + self._limit_s

    def until(self, look: Callable[[], T], what: str, poll_s: float = 0.001) -> T:
        """What `look` says as soon as that is true; `what` is the words for it."""
        while not (seen := look()):
            if self._over():
                raise RunError(f"{self._run} ended while it was waited for {what}")
            if time.monotonic() > self._deadline:
                raise RunError(f"{self._run}: {what} did not come within {self._limit_s:.0f} s")
            time.sleep(poll_s)
        return seen


def cluster() -> contextlib.AbstractContextManager[None]:
    """Inside, Ray is up, with room for a run of every role."""
    return connected(PlacementConfig(), _CPUS)


@contextlib.contextmanager
def address() -> Iterator[None]:
    """The runs join the cluster that is connected, which outlives their drivers."""
    import ray

    before = os.environ.get("RAY_ADDRESS")
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    try:
        yield
    finally:
        os.environ.pop("RAY_ADDRESS")
        if before is not None:
            os.environ["RAY_ADDRESS"] = before


@contextlib.contextmanager
def started(folder: Path, run_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """`rlhf-ray train` with its supervisor; ended afterwards, whatever happens. A `RunError` inside gets the last line
    of its log, for whoever cannot look."""
    command = [sys.executable, "-m", "rlhf_ray.cli.main", "train", str(folder / "run.yaml"), "--run-dir", str(run_dir)]
    command += ["--max-failures", str(_FAILURES)]
    path = folder / f"{run_dir.name}.log"
    with path.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield process
    except RunError as error:
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise RunError(f"{error}. Its log ends with: {lines[-1] if lines else 'nothing'}") from error
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            time.sleep(1.5)  # a second signal within a second counts as the first
            process.send_signal(signal.SIGTERM)
            process.wait(_END_S)


def ended(process: subprocess.Popen[bytes], run_dir: Path, limit_s: float = _END_S) -> None:
    """Returns when the run is over and went well; else, or after `limit_s`, a `RunError`."""
    _ended(process, run_dir, limit_s, 0)


def stopped(process: subprocess.Popen[bytes], run_dir: Path) -> None:
    """Asks the run to end after its step, and returns when it has; else a `RunError`."""
    process.send_signal(signal.SIGTERM)
    _ended(process, run_dir, _END_S, 128 + signal.SIGTERM)


def _ended(process: subprocess.Popen[bytes], run_dir: Path, limit_s: float, wanted: int) -> None:
    try:
        code = process.wait(limit_s)
    except subprocess.TimeoutExpired:
        raise RunError(f"{run_dir.name} did not end within {limit_s:.0f} s") from None
    if code != wanted:
        raise RunError(f"{run_dir.name} ended with exit code {code}; its log is beside it")
