"""The peak memory of a tree of processes, without counting shared pages twice, and the CPU time that it took."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType

import psutil

_SHARE_OF_A_CORE = 0.02  # the kernel walks page tables for PSS: about 25 ms of CPU time a GiB


class PeakMemory:
    """Samples, in a thread, the memory of this process, its descendants and `extra_pids()` with theirs.

    Each process counts with its proportional set size (PSS), so a page that n processes share counts 1/n in each. Where
    the system does not show PSS: resident minus shared pages. Samples are at least `interval_s` seconds apart, further
    if they would cost more than 2 % of a core; a peak shorter than that may be missed.
    """

    def __init__(self, extra_pids: Callable[[], Iterable[int]] | None = None, interval_s: float = 2.0) -> None:
        self._extra_pids = extra_pids
        self._interval_s = interval_s
        self._peak_bytes = 0
        self.by_process: dict[tuple[int, float], float] = {}
        """CPU seconds by process id and start, as of the last sample in which it was alive."""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="peak-memory", daemon=True)

    @property
    def peak_gib(self) -> float:
        """The largest sum seen so far, in GiB."""
        return self._peak_bytes / 2**30

    @property
    def core_seconds(self) -> float:
        """CPU time of all processes; what each computed after its last sample is missing."""
        return sum(self.by_process.values())

    def __enter__(self) -> PeakMemory:
        self.sample()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.sample()

    def sample(self) -> int:
        """Measures once; returns the sum in bytes."""
        pids = self._pids()
        total = sum(memory_bytes(pid) for pid in pids)
        for pid in pids:
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                spent = process.cpu_times()
                self.by_process[pid, process.create_time()] = spent.user + spent.system
        self._peak_bytes = max(self._peak_bytes, total)
        return total

    def _loop(self) -> None:
        pause = self._interval_s
        while not self._stop.wait(pause):
            started = time.thread_time()
            self.sample()
            pause = max(self._interval_s, (time.thread_time() - started) / _SHARE_OF_A_CORE)

    def _pids(self) -> set[int]:
        children: defaultdict[int, list[int]] = defaultdict(list)
        for process in psutil.process_iter(["ppid"]):  # one pass: `children()` would make one for every root
            children[process.info["ppid"]].append(process.pid)
        found: set[int] = set()
        waiting = [os.getpid(), *(self._extra_pids() if self._extra_pids else ())]
        while waiting:
            pid = waiting.pop()
            if pid not in found:
                found.add(pid)
                waiting += children[pid]
        return found


def memory_bytes(pid: int) -> int:
    """The PSS of a process in bytes (else resident minus shared), 0 if it is gone or hidden from this user."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass  # gone, not ours, or no such file on this system
    try:
        info = psutil.Process(pid).memory_info()
    except psutil.Error:
        return 0
    return int(info.rss) - int(getattr(info, "shared", 0))
