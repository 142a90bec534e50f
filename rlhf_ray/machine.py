"""What this machine has. No torch, no Ray: `rlhf-ray doctor` must work where they are missing."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
from pathlib import Path

import psutil

_PR_SET_PDEATHSIG = 1


def cpu_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gib() -> float:
    """Main memory in GiB, or the container's limit if that is lower."""
    total = float(psutil.virtual_memory().total)
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, float(text) if text.isdecimal() else total) / 2**30


def silent_cluster(address: str | None) -> str | None:
    """Why no Ray cluster can be at `address` (`[ray://]host:port`), or None if its port answers.

    Addresses without a port, such as `auto`, are found by Ray itself: None.
    """
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not port.isdecimal():
        return None
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except (OSError, OverflowError) as error:
        return str(error)
    return None


def end_with_parent(sign: signal.Signals) -> None:
    """For a process that was just started (`preexec_fn`): it gets `sign` when its parent dies. On Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, sign)
