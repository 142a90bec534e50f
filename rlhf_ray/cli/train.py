"""`rlhf-ray train`: check everything, then launch; or, with --dry-run, show what would be launched."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlhf_ray.config import AnyConfig, RunConfig
from rlhf_ray.config_file import dump_config, load_config
from rlhf_ray.errors import UserError
from rlhf_ray.launching.supervise import started_again, supervised
from rlhf_ray.machine import cpu_cores, memory_gib
from rlhf_ray.preflight import feasible, preflight
from rlhf_ray.resources import requests, total_cpus

_SIGNALLED = 128
"""An exit code above says which signal ended the driver."""


@dataclass(frozen=True, slots=True)
class Persistence:
    """Whether a run that exists goes on, and how often in turn a run is started again by itself after its driver was
    killed, or lost an actor or a node that it needs."""

    resume: bool = False
    resume_if_exists: bool = False
    max_failures: int = 3


def supervised_train(path: str, overrides: Sequence[str], run_dir: Path | None, keep: Persistence) -> int:
    """`train_command` in a child that is started again when it is killed; returns its exit code."""
    from rlhf_ray.launching.supervise import supervise

    config = load_config(path, overrides)
    command = [sys.executable, "-m", "rlhf_ray.cli.main", *sys.argv[1:]]
    folder = run_dir or Path("runs", config.name)
    code = supervise(command, folder, keep.max_failures)
    if (code == 1 or code > _SIGNALLED) and (folder / "events.jsonl").is_file():
        from rlhf_ray.report.page import write_report

        with contextlib.suppress(UserError):
            write_report(folder)  # of a driver that could not, or before all was said
    return code


def train_command(
    path: str, overrides: Sequence[str], run_dir: Path | None, keep: Persistence, *, dry_run: bool, as_json: bool
) -> None:
    """Loads, checks and runs the config at `path`. Raises `UserError` before anything has started."""
    config = load_config(path, overrides)
    folder = run_dir or Path("runs", config.name)
    resume = keep.resume or (keep.resume_if_exists and (folder / "config.yaml").is_file())
    # Of a driver that is started again everything was checked, and is on this machine.
    notes = [] if started_again() else preflight(config, folder, resume, download=not dry_run)
    if dry_run:
        _show(config, [*notes, *_shortfall(config)], as_json)
        return
    console = Console(stderr=True)
    if not as_json:
        for note in notes:
            console.print(note, highlight=False, markup=False)
    command = _command(path, overrides, folder, resume)
    launch = partial(_launch, config, folder, resume, command)
    if supervised():
        from rlhf_ray.launching.recovery import noticing_losses

        summary = noticing_losses(launch, config, folder)
    else:
        summary = launch()
    if as_json:
        print(json.dumps(summary))
    else:
        print(f"finished: {folder}")


def _launch(config: AnyConfig, folder: Path, resume: bool, command: str) -> dict[str, object]:
    if isinstance(config, RunConfig):
        from rlhf_ray.cluster import launch

        return dict(launch(config, folder, resume, command))
    from rlhf_ray.cluster import launch_offline

    return dict(launch_offline(config, folder, resume, command))


def _command(path: str, overrides: Sequence[str], folder: Path, resume: bool) -> str:
    words = ["rlhf-ray", "train", path, *overrides, "--run-dir", str(folder), *(["--resume"] if resume else [])]
    return shlex.join(words)


def _shortfall(config: AnyConfig) -> list[str]:
    """What this machine lacks for the run, as a note: a dry run may be made on another machine than the run."""
    cores, gpus, asked = cpu_cores(), _visible_gpus(), requests(config)
    wanted = sum(role.total_gpus for role in asked)
    notes = []
    if wanted > gpus:
        has = f"it has {gpus}" if gpus else "it has none"
        notes.append(f"this machine lacks {wanted - gpus:g} GPUs: the run asks for {wanted:g}, {has}")
    # An embedded colocated cluster gives out logical CPUs: its roles take turns on the same cores.
    embedded = config.placement.mode == "colocated" and not config.placement.address
    cpus = max(cores, total_cpus(config)) if embedded else cores
    try:
        feasible(config, cpus, max(gpus, wanted), memory_gib())
    except UserError as error:
        notes.append(f"on this machine: {error}")
    return notes


def _visible_gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _show(config: AnyConfig, notes: Sequence[str], as_json: bool) -> None:
    roles = requests(config)
    if as_json:
        described = [{"role": r.role, "actors": r.actors, "cpus_each": r.cpus, "gpus_each": r.gpus} for r in roles]
        print(json.dumps({"notes": list(notes), "roles": described, "config": config.model_dump(mode="json")}))
        return
    title = f"placement: {config.placement.mode}"
    table = Table("role", "actors", "CPUs each", "GPUs each", "CPUs", "GPUs", title=title)
    for role in roles:
        numbers = (role.cpus, role.gpus, role.total_cpus, role.total_gpus)
        table.add_row(role.role, str(role.actors), *(f"{number:g}" for number in numbers))
    total_cpus, total_gpus = sum(r.total_cpus for r in roles), sum(r.total_gpus for r in roles)
    table.add_section()
    table.add_row("all", str(sum(r.actors for r in roles)), "", "", f"{total_cpus:g}", f"{total_gpus:g}")
    console = Console(soft_wrap=True, highlight=False)
    for note in notes:
        console.print(f"- {note}", markup=False)
    console.print(table)
    console.print(dump_config(config), markup=False)
    console.print("dry run: nothing was started")
