"""The driver's side of an offline run: encode the data, keep a worker group going until it is done."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from rlhf_ray.config import AnyOfflineConfig
from rlhf_ray.data.feedback import open_feedback
from rlhf_ray.errors import LostError, RunError, UserError
from rlhf_ray.offline.figures import measured
from rlhf_ray.resume import only_writer
from rlhf_ray.rundir.commit import newest_good, replace_file
from rlhf_ray.rundir.journal import RunDirectory
from rlhf_ray.rundir.lines import append_line, read_lines
from rlhf_ray.tags import run_id, tags

STOP_FILE = ".stop"
FAILURE_FILE = "failure-rank{rank}.txt"
"""A rank's traceback, which it writes itself: Ray Train brings exceptions without theirs, and error texts cut short."""
_POLL_S = 1.0
_FACTS = "prepared.json"
_ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**34),
    "MALLOC_TOP_PAD_": str(2**28),
}
"""Of glibc: keep freed memory instead of giving it back. Ray Train runs the training in a thread, and glibc returns
every large tensor of a thread at once; fetching the pages again took a sixth of the time of a step on a CPU."""


class Running(Protocol):
    """A run on fixed data that goes on elsewhere."""

    def wait(self, seconds: float) -> bool:
        """True once it is over, after at most so long."""

    def result(self) -> dict[str, Any]:
        """The figures of the run that is over; raises what ended it."""

    def cancel(self) -> None:
        """Ends it."""


class TaskRun:
    """A run in a task of its own.

    Ray Train's watchdog finds its cluster as the Ray command line does, by RAY_ADDRESS or by searching the machine, and
    removes the workers if it hits upon another one. Hence a task with the right address in its environment, which
    everything that it starts inherits.
    """

    def __init__(self, config: AnyOfflineConfig, folder: Path, run_dir: Path) -> None:
        import ray

        own = tags(run_id(run_dir), "supervisor")
        environment = {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, **worker_environment(config), **own}
        task = ray.remote(num_cpus=0, max_retries=0, runtime_env={"env_vars": environment})(_supervise)
        self._answer = task.remote(absolute(config), folder, run_dir)

    def wait(self, seconds: float) -> bool:
        """True once it is over."""
        import ray

        return bool(ray.wait([self._answer], timeout=seconds)[0])

    def result(self) -> dict[str, Any]:
        """The figures."""
        import ray
        from ray.exceptions import NodeDiedError, RayTaskError, WorkerCrashedError

        try:
            figures: dict[str, Any] = ray.get(self._answer)
        except RayTaskError as error:
            if isinstance(error.cause, UserError | RunError):
                raise error.cause from None
            raise RunError(f"{error.cause}") from error
        except (WorkerCrashedError, NodeDiedError) as error:
            raise LostError(f"the process that supervises the ranks died: {error}") from error
        return figures

    def cancel(self) -> None:
        """Kills the task and its workers."""
        import ray

        ray.cancel(self._answer, force=True)


def worker_environment(config: AnyOfflineConfig) -> dict[str, str]:
    """Of the ranks."""
    return _ALLOCATOR if config.train.gpus_per_worker == 0 else {}


def absolute(config: AnyOfflineConfig) -> AnyOfflineConfig:
    """The same with absolute paths of its data: a worker's current directory is another one."""
    named = {"path": config.data.path, "heldout_path": config.data.heldout_path}
    local = {key: Path(path).expanduser() for key, path in named.items() if path is not None}
    found = {key: str(path.resolve()) for key, path in local.items() if path.exists()}
    return config.model_copy(update={"data": config.data.model_copy(update=found)})


def follow(running: Running, run_dir: Path, deadline_s: float) -> Iterator[list[dict[str, object]]]:
    """News for the live view, every second, until the run is over; then it has a result.

    `LostError` if nothing was written for `deadline_s`.
    """
    files = {"metrics": run_dir / "metrics.jsonl", "event": run_dir / "events.jsonl"}
    seen, sizes = dict.fromkeys(files, 0), dict.fromkeys(files, 0)
    last, over = time.monotonic(), False
    while not over:
        over = running.wait(_POLL_S)
        news: list[dict[str, object]] = []
        for kind, file in files.items():
            size = file.stat().st_size if file.exists() else 0
            if size == sizes[kind]:
                continue  # the cores that reading takes are those that train
            records = read_lines(file)
            news += [{"type": kind, **record} for record in records[min(seen[kind], len(records)) :]]
            seen[kind], sizes[kind] = len(records), size
        if news:
            last = time.monotonic()
        elif not over and time.monotonic() - last > deadline_s:
            running.cancel()
            raise LostError(
                f"the worker group of {run_dir.name} gave no sign for {deadline_s:.0f} s (train.deadline_s)"
            )
        yield news


def _supervise(config: AnyOfflineConfig, folder: Path, run_dir: Path) -> dict[str, object]:
    """Runs worker groups until one finishes; each starts from the newest commit."""
    began = time.monotonic()
    with only_writer(run_dir):
        figures = _groups(config, folder, run_dir)
    return figures | measured(run_dir, began)


def _groups(config: AnyOfflineConfig, folder: Path, run_dir: Path) -> dict[str, object]:
    lost, before = 0, None
    while True:
        try:
            return _fit(config, folder, run_dir)
        except _GroupLostError as error:
            good, _ = newest_good(run_dir / "checkpoints")
            place = f"checkpoint {good.path.name}" if good else "the beginning"
            lost, before = (lost + 1 if place == before else 1), place
            if lost > config.train.max_restarts:
                raise RunError(f"{error}; train.max_restarts = {config.train.max_restarts} is used up") from error
            _event(run_dir, "restart", f"{error}. The group starts again from {place}.")


def encode(config: AnyOfflineConfig, folder: Path, run_dir: Path) -> dict[str, object]:
    """Token ids on disk, once for a run and all its restarts; returns counts for the summary.

    The driver does it: its libraries are loaded, and importing them elsewhere would take longer than most data.
    """
    from rlhf_ray.offline.worker import kind_of

    data = run_dir / "data"
    data.mkdir(exist_ok=True)
    with (data / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other runs may share the folder
        done = data / _FACTS
        if done.is_file():
            facts: dict[str, object] = json.loads(done.read_text(encoding="utf-8"))
            return facts
        feedback = open_feedback(config.data, config.seed)
        counts, notes = kind_of(config, folder, run_dir).encode(feedback)
        for note in [*feedback.notes, *notes]:
            _event(run_dir, "data", note)
        counts["dropped_rows"] = feedback.dropped
        replace_file(done, json.dumps(counts, indent=2) + "\n")
    return counts


def _event(run_dir: Path, kind: str, sentence: str) -> None:
    append_line(run_dir / "events.jsonl", {"time": time.time(), "kind": kind, "sentence": sentence})


class _GroupLostError(Exception):
    """A worker died or lost its peers: not a fault of what it ran, so the group may start again."""


def _fit(config: AnyOfflineConfig, folder: Path, run_dir: Path) -> dict[str, object]:
    """Runs one worker group to its end; returns rank 0's figures."""
    from ray.exceptions import RayActorError
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
    from ray.train.v2.api.result import Result

    for old in run_dir.glob(FAILURE_FILE.format(rank="*")):
        old.unlink()
    train, gpu = config.train, config.train.gpus_per_worker > 0
    resources = {"CPU": train.cpus_per_worker} | ({"GPU": train.gpus_per_worker} if gpu else {})
    trainer = TorchTrainer(
        _train_worker,  # type: ignore[arg-type]  # Ray returns rank 0's value; its annotation is older
        train_loop_config={"config": config, "folder": str(folder), "run_dir": str(run_dir)},
        scaling_config=ScalingConfig(
            num_workers=train.num_workers,
            use_gpu=gpu,
            resources_per_worker=resources,
            placement_strategy=config.placement.strategy,
        ),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        run_config=RunConfig(
            name=f"group-{time.time_ns()}",
            storage_path=str(run_dir / "ray_train"),
            failure_config=FailureConfig(max_failures=0),  # `_supervise` tells a death from a fault of the code
        ),
    )
    try:
        result = cast(Result, trainer.fit())
    except WorkerGroupError as error:
        raise _explained(error.worker_failures, run_dir) from error
    except RayActorError as error:
        raise _GroupLostError(f"Ray Train's controller was lost ({_first_line(error)})") from error
    except TrainingFailedError as error:
        raise RunError(f"the worker group could not run: {error}") from error
    if not isinstance(result.return_value, dict):
        raise RunError("worker 0 ended without its figures; the log above says why")
    return dict(result.return_value)


def _train_worker(loop: Mapping[str, Any]) -> dict[str, object]:
    """What each rank runs. Only ranks load the libraries that train; whoever names this need not wait for them."""
    from rlhf_ray.offline.worker import train_worker

    return train_worker(loop)


def _explained(failures: Mapping[int, BaseException], run_dir: Path) -> Exception:
    """The first fault of the code that any rank has; if all died or lost their peers, `_GroupLostError`."""
    ranks = sorted(failures.items())
    for rank, cause in ranks:
        if isinstance(cause, UserError | RunError):
            return type(cause)(str(cause))
        if not _is_loss(cause):
            file = run_dir / FAILURE_FILE.format(rank=rank)
            place = f" (the traceback is in {file})" if file.is_file() else ""
            return RunError(f"worker {rank}: {type(cause).__name__}: {cause}{place}")
    return _GroupLostError("; ".join(f"worker {rank} was lost ({_first_line(cause)})" for rank, cause in ranks))


def _is_loss(cause: BaseException) -> bool:
    from ray.exceptions import RayError
    from ray.train.v2._internal.exceptions import RayTrainError

    broken_peers = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return isinstance(cause, RayError | RayTrainError) or any(sign in str(cause) for sign in broken_peers)


def _first_line(cause: BaseException) -> str:
    lines = str(cause).strip().splitlines()
    return lines[0] if lines else type(cause).__name__


def create_run(
    config: AnyOfflineConfig, run_dir: Path, config_yaml: str, command: str, shared: Path | None = None
) -> None:
    """The run directory, with hashes of the data in its manifest, and which feedback of a service they hold. Its token
    ids are those in `shared` if that is given: a folder of runs that make the same ones.
    """
    from rlhf_ray.data.files import data_files, raw_rows
    from rlhf_ray.data.lineage import feedback_lineage
    from rlhf_ray.rundir.commit import file_sha256

    def hashes(path: str | None) -> dict[str, str]:
        return {str(file): file_sha256(file) for file in data_files(path)} if path else {}

    files = hashes(config.data.path)
    manifest: dict[str, object] = {"command": command, "data_sha256": files | hashes(config.data.heldout_path)}
    if files and (lineage := feedback_lineage(row for _, row in raw_rows(config.data.path))) is not None:
        manifest["feedback"] = lineage | {"files": files}
    RunDirectory.create(run_dir, config_yaml, manifest)
    if shared is not None:
        shared.mkdir(parents=True, exist_ok=True)
        (run_dir / "data").symlink_to(os.path.relpath(shared.resolve(), run_dir.resolve()))
