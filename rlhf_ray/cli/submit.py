"""`rlhf-ray submit`: check a run here, start it on a cluster through Ray's Jobs service, follow it to its end."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

from rich.console import Console

from rlhf_ray.config import AnyConfig
from rlhf_ray.config_file import RECIPES, find_recipe, load_config
from rlhf_ray.errors import GateError, RunError, UserError
from rlhf_ray.launching.jobs import Ended, Job, Jobs, LogTail, connect, passed
from rlhf_ray.launching.upload import check_upload


@dataclass(frozen=True, slots=True)
class Where:
    """Where a run goes, and what goes with it."""

    address: str
    run_dir: Path
    working_dir: Path
    name: str | None
    env: Sequence[str]
    max_failures: int


def submit_command(path: str, overrides: Sequence[str], where: Where, *, wait: bool, as_json: bool) -> None:
    """Submits the config at `path`, or finds it running, and follows its log; the errors are those of its run.

    An interrupt stops the job, which commits after its step. `UserError` before anything has started.
    """
    config = load_config(path, overrides)
    job = _job(path, overrides, config, where)
    jobs = connect(where.address)
    check_upload(where.working_dir)
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    name, new = jobs.submit(job)
    console.print(f"job {name} {'is submitted' if new else 'is running already'}; its run directory: {where.run_dir}")
    console.print(f"it runs without this machine; its log: `ray job logs --follow {name} --address {jobs.address}`")
    if not jobs.secured:
        console.print(
            "this cluster asks for no token: whoever reaches its dashboard can run anything (docs/cluster.md)"
        )
    status = "SUBMITTED"
    if wait:
        status = _outcome(name, _followed(jobs, name, sys.stderr if as_json else sys.stdout, console), where.run_dir)
    if as_json:
        print(json.dumps({"job": name, "status": status, "address": jobs.address, "run_dir": str(where.run_dir)}))


def _job(path: str, overrides: Sequence[str], config: AnyConfig, where: Where) -> Job:
    """The command on the cluster. It is the same whenever the run is submitted: it starts the run or resumes it."""
    if not where.run_dir.is_absolute():
        raise UserError(f"--run-dir {where.run_dir}: give an absolute path, on storage that all nodes share")
    if config.placement.address:
        raise UserError("placement.address: a submitted run joins the cluster that it is submitted to; leave it out")
    words = ["python", "-m", "rlhf_ray.cli.main", "train", _path_there(path, where.working_dir), *overrides]
    words += ["--run-dir", str(where.run_dir), "--resume-if-exists", "--max-failures", str(where.max_failures)]
    entrypoint = f"exec {shlex.join(words)}"  # no shell stays between Ray's signals and the run
    return Job(where.name or config.name, entrypoint, where.working_dir, passed(where.env), where.run_dir)


def _path_there(path: str, working_dir: Path) -> str:
    """How the config is called in the uploaded working directory."""
    file = find_recipe(path)
    if file.parent == RECIPES and file.name == path:
        return path
    try:
        return str(file.resolve().relative_to(working_dir.resolve()))
    except ValueError:
        raise UserError(f"{path} is not below --working-dir {working_dir}, of which the job gets a copy") from None


def _followed(jobs: Jobs, name: str, out: TextIO, console: Console) -> Ended:
    log = LogTail(partial(print, end="", file=out, flush=True))
    try:
        return jobs.follow(name, log)
    except KeyboardInterrupt:
        console.print("stopping the job: its step ends and commits first; interrupt again to leave it to that")
        jobs.stop(name)
        jobs.follow(name, log)
        raise


def _outcome(name: str, ended: Ended, run_dir: Path) -> str:
    """The status of a job that succeeded; the error of one that did not, of the kind that its exit code says."""
    if ended.status == "SUCCEEDED":
        return ended.status
    if ended.status == "STOPPED":
        raise RunError(f"job {name} was stopped; the same command goes on at the newest checkpoint in {run_dir}")
    kind = {2: UserError, 3: GateError}.get(ended.exit_code or 1, RunError)
    raise kind(f"job {name} failed: {ended.message if ended.exit_code is None else 'its log says why'}")
