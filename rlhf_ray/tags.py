"""Which processes of a machine belong to a run: each is started with two variables that anybody can read in /proc."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

_RUN = b"RLHF_RAY_RUN="
_ROLE = b"RLHF_RAY_ROLE="
_STOPPED = "T"  # a debugger's is "t"
STOPPED_S = 2.0
"""A process that stays stopped for so long is as good as dead."""
_LOOK_S = 0.2


def run_id(run_dir: Path) -> str:
    """What tells the run at `run_dir` from another one whose folder has the same name."""
    place = hashlib.blake2b(os.fsencode(run_dir.resolve()), digest_size=4).hexdigest()
    return f"{run_dir.name}-{place}"


def tags(run: str, role: str) -> dict[str, str]:
    """Of the environment of a process that plays `role` in the run with that `run_id`."""
    return {_RUN.decode()[:-1]: run, _ROLE.decode()[:-1]: role}


def role_tag(role: str) -> dict[str, str]:
    """Of a child of a process with tags, which belongs to the same run."""
    return {_ROLE.decode()[:-1]: role}


@dataclass(frozen=True, slots=True, order=True)
class Process:
    """A living process of a run."""

    started: int
    """In clock ticks since the machine started: tells a successor from one that had its number."""
    pid: int
    role: str
    title: str = field(compare=False)
    """Ray names a worker after its actor and what that does."""
    stopped: bool = field(default=False, compare=False)
    """By a signal: it does nothing until another one lets it go on."""


def ticks_now() -> int:
    """The time as `Process.started` counts it."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def processes(run: str) -> list[Process]:
    """Those of this machine that belong to the run with that `run_id`, oldest first."""
    return sorted(_tagged(run))


def end_processes(run: str, role: str, title: str, age_s: float) -> None:
    """SIGKILL to those of this machine that play `role` in the run, whose title begins so, and that are so old."""
    for process in processes(run):
        old = ticks_now() - process.started >= age_s * os.sysconf("SC_CLK_TCK")
        if process.role == role and process.title.startswith(title) and old:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)


def end_left(run: str, title: str, wait_s: float) -> None:
    """SIGKILL to those of this machine whose title begins so, if they have not ended by themselves `wait_s` later."""

    def left() -> set[Process]:
        return {each for each in processes(run) if each.title.startswith(title)}

    limit, before = time.monotonic() + wait_s, left()
    while (before := before & left()) and time.monotonic() < limit:
        time.sleep(_LOOK_S)
    for process in before:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)


def end_stopped(roles: Mapping[str, Collection[str]], wait_s: float) -> list[str]:
    """SIGKILL to those of this machine that play one of the `roles` of a run and are stopped, now and `wait_s` later.

    Their roles come back. Who is stopped answers nothing, so there is no need to wait for an answer as long as for one
    that computes.
    """

    def stopped() -> set[Process]:
        return {each for run in roles for each in processes(run) if each.stopped and each.role in roles[run]}

    if not (before := stopped()):
        return []
    time.sleep(wait_s)
    ended = sorted(before & stopped())
    for process in ended:
        with contextlib.suppress(OSError):
            os.kill(process.pid, signal.SIGKILL)
    return [process.role for process in ended]


def is_stopped(pid: int) -> bool:
    """Whether that process is there and stopped by a signal."""
    try:
        return _stat(Path("/proc") / str(pid))[0] == _STOPPED
    except (OSError, IndexError):
        return False


def _tagged(run: str) -> Iterator[Process]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            if _RUN + run.encode() not in variables:
                continue
            role = next(one for one in variables if one.startswith(_ROLE)).removeprefix(_ROLE).decode()
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            state, *rest = _stat(folder)
        except (OSError, StopIteration):
            continue  # it has ended meanwhile, or is not ours
        if state != "Z":
            yield Process(int(rest[18]), int(folder.name), role, title, state == _STOPPED)


def _stat(folder: Path) -> list[str]:
    """From the process's state on; its name may have spaces and brackets."""
    return (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
