"""The only place that turns a config into live actors: join or start a cluster, and run on it."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlhf_ray.config import AnyConfig, AnyOfflineConfig, PlacementConfig, RunConfig
from rlhf_ray.config_file import dump_config
from rlhf_ray.errors import LostError, RunError, UserError
from rlhf_ray.evaluation.memory import PeakMemory
from rlhf_ray.machine import cpu_cores
from rlhf_ray.models.folder import resolve_model
from rlhf_ray.offline.launch import STOP_FILE, Running, TaskRun, create_run, encode, follow
from rlhf_ray.report.page import write_report
from rlhf_ray.report.progress import TITLES, ProgressView
from rlhf_ray.resources import feasible, total_cpus
from rlhf_ray.resume import accept_changes, alone_in
from rlhf_ray.rewards.base import ModelRewardConfig
from rlhf_ray.rundir.journal import RunDirectory, write_summary
from rlhf_ray.rundir.lines import append_line
from rlhf_ray.tags import run_id

if TYPE_CHECKING:  # loads torch
    from rlhf_ray.actors.controller import Folders

_TOLD_EACH_TIME = "ray._private.authentication.authentication_token_setup"
"""Ray's logger that says that its cluster has a token, which is as it should be."""
_ONE_MACHINE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}  # nobody drains its node; a process less for each group


@contextlib.contextmanager
def connected(placement: PlacementConfig, cpus: float = 1.0) -> Iterator[None]:
    """Inside, Ray is up: the cluster of `placement.address` or RAY_ADDRESS, or one started here and stopped after.

    An embedded cluster of a colocated run has at least `cpus` logical CPUs and some to spare, whatever the machine has:
    its roles take turns on the cores, and Ray Train's own actors need room beside them.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = placement.address or os.environ.get("RAY_ADDRESS")
    settings: dict[str, Any] = {"address": address} if address else _embedded(placement, cpus)
    environment = _environment() | ({} if address else _ONE_MACHINE)
    handler = signal.getsignal(signal.SIGTERM)
    logging.getLogger(_TOLD_EACH_TIME).setLevel(logging.ERROR)
    try:
        ray.init(log_to_driver=False, logging_level=logging.WARNING, runtime_env={"env_vars": environment}, **settings)
    except Exception as error:  # Ray raises bare ones, too
        raise _no_cluster(address, error) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # ray.init puts one there that exits at once
    try:
        yield
    finally:
        ray.shutdown()


def launch(config: RunConfig, run_dir: Path, resume: bool, command: str) -> dict[str, Any]:
    """Runs `config` in `run_dir`, shows its progress, writes the report; returns the summary.

    `RunError` names the actor or stage at fault. A signal makes the run commit and end after the step under way.
    """

    from rlhf_ray.actors.driver import run_online

    began, run_dir = time.monotonic(), run_dir.resolve()
    folders = folders_of(config)
    with PeakMemory() as memory, connected(config.placement, total_cpus(config)):
        check_room(config)
        if not resume:
            RunDirectory.create(run_dir, dump_config(config), {"command": command}, config.train.keep_checkpoints)
        with alone_in(run_dir):
            if resume:
                accept_changes(run_dir, config)
            try:
                summary = run_online(config, folders, run_dir, threads_of(config))
            except (RunError, UserError) as error:
                note_failure(run_dir, error)
                raise
    summary |= {
        "seconds_total": time.monotonic() - began,
        "peak_rss_gib": memory.peak_gib,
        "rm_heldout_accuracy": heldout_accuracy(folders.rewards),
        "command": command,
    }
    write_summary(run_dir, summary)
    write_report(run_dir)
    return summary


def check_room(config: AnyConfig) -> None:
    """`UserError` if the cluster that is connected lacks what the run asks for."""
    import ray

    available = ray.cluster_resources()
    feasible(config, available.get("CPU", 0), available.get("GPU", 0), available.get("memory", 0) / 2**30)


def note_failure(run_dir: Path, error: Exception) -> None:
    """An event, and the page that says what to do about it."""
    kind, sentence = ("lost", f"Lost: {error}") if isinstance(error, LostError) else ("failed", f"{error}")
    append_line(run_dir / "events.jsonl", {"time": time.time(), "kind": kind, "sentence": sentence})
    with contextlib.suppress(UserError):  # the failure is what matters
        write_report(run_dir)


def folders_of(config: RunConfig) -> Folders:
    """Where the models of a run are; those of the hub are downloaded."""
    from rlhf_ray.actors.controller import Folders

    rewards = tuple(
        resolve_model(source.path) if isinstance(source, ModelRewardConfig) else None
        for source in config.reward.sources
    )
    return Folders(resolve_model(config.model.path), rewards)


def launch_offline(config: AnyOfflineConfig, run_dir: Path, resume: bool, command: str) -> dict[str, Any]:
    """Runs a reward, sft or preference `config` in `run_dir`, shows its progress, writes the report; returns the
    summary.

    Errors and signals as in `launch`. With more than one node, `run_dir` must be on a shared file system.
    """
    began, run_dir = time.monotonic(), run_dir.resolve()
    view = ProgressView(config.train.max_steps or 0, TITLES[config.kind])
    with PeakMemory() as memory, connected(config.placement, total_cpus(config)), view:
        check_room(config)
        figures = run_offline(config, run_dir, resume, command, view.update)
    summary = {**figures, "seconds_total": time.monotonic() - began, "peak_rss_gib": memory.peak_gib}
    write_summary(run_dir, summary)
    write_report(run_dir)
    return summary


def run_offline(
    config: AnyOfflineConfig,
    run_dir: Path,
    resume: bool,
    command: str,
    tell: Callable[[list[dict[str, object]]], None],
    data: Path | None = None,
    start: Callable[[AnyOfflineConfig, Path, Path], Running] = TaskRun,
) -> dict[str, Any]:
    """Runs `config` on the Ray cluster that is connected, tells what is new every second, and returns the figures of
    the summary. `data` is a folder of token ids that the run shares with others, `start` says where its ranks are.
    """
    from rlhf_ray.actors.watch import end_cleaners

    folder = resolve_model(config.model.path)
    if not resume:
        create_run(config, run_dir, dump_config(config), command, data)
    with alone_in(run_dir):
        if resume:
            accept_changes(run_dir, config)
        try:
            figures = _watch_offline(config, folder, run_dir, tell, start)
        except (RunError, UserError) as error:
            note_failure(run_dir, error)
            raise
        finally:
            end_cleaners(run_id(run_dir))
    return {"kind": config.kind, **figures, "report": str(run_dir / "report.html"), "command": command}


def _watch_offline(
    config: AnyOfflineConfig,
    folder: Path,
    run_dir: Path,
    tell: Callable[[list[dict[str, object]]], None],
    start: Callable[[AnyOfflineConfig, Path, Path], Running],
) -> dict[str, Any]:
    """Follows the run until it is over; an interrupt asks it to end and commit after its step."""
    (run_dir / STOP_FILE).unlink(missing_ok=True)
    began = time.monotonic()
    tell([{"type": "phase", "phase": "reading the data", "time": time.time()}])
    counts = encode(config, folder, run_dir)
    encoded = time.monotonic()
    running = start(config, folder, run_dir)
    tell([{"type": "phase", "phase": "starting the workers", "time": time.time()}])
    try:
        for news in follow(running, run_dir, config.train.deadline_s):
            tell(news)
    except KeyboardInterrupt:
        print("stopping: this step ends and commits first; interrupt again to stop at once", flush=True)
        (run_dir / STOP_FILE).touch()
        for news in follow(running, run_dir, config.train.deadline_s):
            tell(news)
        raise
    except SystemExit:  # a sweep ends this run early
        running.cancel()
        raise
    figures = running.result()
    seconds = {"encode": encoded - began, "train": figures.pop("seconds_training")}
    return {**counts, **figures, "seconds_by_phase": seconds}


def _no_cluster(address: str | None, error: Exception) -> UserError | LostError:
    reason = f"{error}".strip().partition("\n")[0]
    if address is None and isinstance(error, ValueError | PermissionError):
        return UserError(f"Ray cannot start on this machine: {reason}")
    if address is None:  # which may be busy for a while
        return LostError(f"Ray did not start on this machine: {reason}. `rlhf-ray doctor` says what that lacks")
    return UserError(
        f"Ray cannot join the cluster at {address} (placement.address or RAY_ADDRESS): {reason}. It must be up, of the "
        "same versions of Ray and Python, and with RAY_AUTH_MODE=token have the token that this machine has"
    )


def _embedded(placement: PlacementConfig, cpus: float) -> dict[str, Any]:
    cores = cpu_cores()
    logical = cores if placement.mode == "separate" else max(cores, math.ceil(cpus)) + 2
    return {
        "address": "local",  # without it Ray would look for a cluster on this machine, and join it
        "num_cpus": logical,
        "include_dashboard": True,
        "object_store_memory": 2**30,
        # More actors than cores is meant here; Ray would warn of each. Workers of Ray's default priority, 15, would be
        # interrupted by Ray's own processes, which poll all the time: measured, by up to a fifth of a training step.
        # Most actors have an environment of their own, so a worker for each CPU in advance would be started in vain.
        "_system_config": {
            "worker_maximum_startup_concurrency": logical,
            "worker_niceness": 0,
            "prestart_worker_first_driver": False,
        },
    }


def _environment() -> dict[str, str]:
    """What every actor gets: the driver's folder for reward functions, and quiet libraries."""
    paths = [os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",  # a role with 0 GPUs must not see any
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a dead rank is noticed, and a finished one let go, that soon
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",  # and one that hangs before it has come to its inbox
    }


def threads_of(config: RunConfig) -> int:
    """CPU threads of each role."""
    if config.placement.threads is not None:
        return config.placement.threads
    return cpu_cores() if config.placement.mode == "colocated" else max(1, int(config.policy.cpus_per_worker))


def heldout_accuracy(rewards: Sequence[Path | None]) -> float | None:
    """The held-out accuracy that the reward model's training left beside it, if it was trained here."""
    for folder in rewards:
        summary = folder.parent / "summary.json" if folder else None
        if summary and summary.is_file():
            accuracy = json.loads(summary.read_text()).get("heldout_accuracy")
            return float(accuracy) if accuracy is not None else None
    return None
