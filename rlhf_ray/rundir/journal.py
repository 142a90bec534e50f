"""The run directory: everything that a run leaves behind, written so that a crash loses at most the step under way.

    config.yaml  manifest.json  metrics.jsonl  events.jsonl  spans.jsonl  summary.json  rollouts/step-000012.parquet
    eval/before.parquet  eval/after.parquet  tensorboard/  checkpoints/step-000010/  report.html

A step is named by the number of finished steps: `metrics(10, ...)` belongs to the step that `commit(10, ...)` commits.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_ray.errors import UserError
from rlhf_ray.metrics import REWARD_MEAN
from rlhf_ray.rundir.commit import (
    Commit,
    Unfinished,
    begin_commit,
    finish_commit,
    forget_unfinished,
    newest_good,
    prune,
    replace_file,
    set_aside,
)
from rlhf_ray.rundir.environment import describe_environment
from rlhf_ray.rundir.lines import append_line, finite, flush_to_disk, keep_lines
from rlhf_ray.rundir.rollout_table import write_rollouts

if TYPE_CHECKING:  # both load torch
    from torch.utils.tensorboard import SummaryWriter

    from rlhf_ray.ports import Metrics, Save, Span, State
    from rlhf_ray.types import Rollout

PHASE_FILE = ".phase"
WORTH = "reward_mean"
"""In a commit's meta: the mean reward of the steps since the one before."""
_PHASE_BYTES = 200
_RECORDS = 2000  # the live view polls every second or so; older ones are in the files


class RunDirectory:
    """Implements `ports.Journal` on disk, and feeds the live view. Its methods may be called from several threads."""

    def __init__(self, path: Path, committed: Commit | None, keep_checkpoints: int) -> None:
        """Use `create` or `open`."""
        self.path = path
        self.committed = committed
        self.seconds_committing = 0.0
        """For which commits held up the run."""
        self._keep = keep_checkpoints
        self._rewards: list[float] = []
        self._records: deque[dict[str, object]] = deque(maxlen=_RECORDS)
        self._lock = threading.Lock()
        self._tensorboard: SummaryWriter | None = None
        self._phase_file: int | None = None
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="commit")
        self._unsettled: Future[None] | None = None

    @classmethod
    def create(
        cls, path: Path, config_yaml: str, manifest: Mapping[str, object], keep_checkpoints: int = 2
    ) -> RunDirectory:
        """A new run directory, which appears whole. `manifest` (for example data hashes) joins, and wins over, what is
        found out here.

        Raises `UserError` if something is at `path` already.
        """
        if path.exists():
            raise UserError(f"{path} exists already. Choose another run directory, or continue that run with --resume.")
        facts = {"created": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **describe_environment(), **manifest}
        unborn = path.parent / f".tmp-{path.name}"
        shutil.rmtree(unborn, ignore_errors=True)  # of a process that was killed here
        unborn.mkdir(parents=True)
        replace_file(unborn / "manifest.json", json.dumps(finite(facts), indent=2) + "\n")
        replace_file(unborn / "config.yaml", config_yaml)
        os.rename(unborn, path)
        return cls(path, None, keep_checkpoints)

    @classmethod
    def open(cls, path: Path, keep_checkpoints: int = 2) -> RunDirectory:
        """Takes over an existing run directory for writing, as of its newest good checkpoint (`.committed`).

        Metrics and rollouts of later steps are dropped, because those steps will run again; events stay. Damaged
        checkpoints are renamed to `*.damaged` and become events. Raises `UserError` if there is no run at `path`.
        """
        if not (path / "config.yaml").is_file():
            raise UserError(f"{path} holds no run to continue (it has no config.yaml). Start one without --resume.")
        forget_unfinished(path / "checkpoints")
        committed, damaged = newest_good(path / "checkpoints")
        run = cls(path, committed, keep_checkpoints)
        try:
            keep_lines(path / "events.jsonl", lambda record: True)
            for name in ("metrics.jsonl", "spans.jsonl"):
                keep_lines(path / name, lambda record: _step_of(record) <= run.committed_step)
        except ValueError as error:
            raise UserError(f"{path}: {error}. Repair or remove that line, then use --resume again.") from error
        for table in (path / "rollouts").glob("step-*.parquet"):
            if _number(table.stem) > run.committed_step:
                table.unlink()
        for damage in damaged:
            moved = set_aside(damage.path)
            run.event("damaged_checkpoint", f"{damage}. It is kept as {moved.name}.", problems=damage.problems)
        return run

    @property
    def committed_step(self) -> int:
        """The step of the newest good checkpoint, -1 if there is none."""
        return -1 if self.committed is None else _number(self.committed.path.name)

    def metrics(self, step: int, metrics: Metrics) -> None:
        """One line in `metrics.jsonl` and one point a tag in TensorBoard; NaN and infinity become null and an event."""
        values = {name: finite(value) for name, value in metrics.items()}
        self._write("metrics", {"step": step, **values}, "metrics.jsonl")
        reward = values.get(REWARD_MEAN)
        if isinstance(reward, int | float):
            self._rewards.append(reward)
        broken = [name for name, value in values.items() if value is None]
        if broken:
            self.event(
                "non_finite_metric",
                f"Step {step}: {', '.join(broken)} not a finite number; written as null.",
                step=step,
                values={name: str(metrics[name]) for name in broken},
            )
        board = self._board()
        for name, value in values.items():
            if isinstance(value, int | float):
                board.add_scalar(name, value, step)
        board.flush()

    def event(self, kind: str, sentence: str, **details: object) -> None:
        """One line in `events.jsonl`. `details` are JSON values; anything else is written as its text."""
        extra = {name: finite(value) for name, value in details.items() if name not in ("time", "kind", "sentence")}
        self._write("event", {"time": time.time(), "kind": kind, "sentence": sentence, **extra}, "events.jsonl")

    def spans(self, step: int, lanes: Mapping[str, Sequence[Span]]) -> None:
        """One line in `spans.jsonl`: when each role computed and each phase ran, in seconds since the epoch."""
        rounded = {lane: [[round(t, 4) for t in span] for span in spans] for lane, spans in lanes.items() if spans}
        append_line(self.path / "spans.jsonl", {"step": step, "lanes": rounded})

    def phase(self, step: int, name: str) -> None:
        """Tells the live view what the run is doing now, for example `phase(3, "generate")`; `read_phase` tells others.

        Nothing waits for the disk: the file matters as long as the machine is up.
        """
        record: dict[str, object] = {"step": step, "phase": name, "time": time.time()}
        if self._phase_file is None:
            self._phase_file = os.open(self.path / PHASE_FILE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        os.pwrite(self._phase_file, json.dumps(record).ljust(_PHASE_BYTES).encode(), 0)
        self._write("phase", record, None)

    def rollouts(self, step: int, rollouts: Sequence[Rollout]) -> None:
        """`rollouts/step-N.parquet`."""
        write_rollouts(self.path / "rollouts" / f"{_step_name(step)}.parquet", rollouts)

    def evaluation(self, name: str, rollouts: Sequence[Rollout]) -> None:
        """`eval/NAME.parquet`, for example `before` and `after`."""
        write_rollouts(self.path / "eval" / f"{name}.parquet", rollouts)

    def summary(self, values: Mapping[str, object]) -> None:
        """`summary.json`, replacing the one before; NaN and infinity become null."""
        write_summary(self.path, values)

    def commit(self, step: int, state: State, save: Callable[[Path], None]) -> Path:
        """Makes `checkpoints/step-N` durable in one atomic move, then deletes old ones; returns it. See `commit.py`.

        Raises `FileExistsError` if that step is committed already.
        """
        return self._finish(self._begin(step, state), state, save)

    def commit_beside(self, step: int, state: State, save: Save, committed: Callable[[Path], None]) -> None:
        """As `commit`, beside what the caller does next: it waits only for the commit before, and for `save` to have
        begun. `save(folder)` gives a call that waits until all is written; `committed(path)` is called at the end, in
        another thread."""
        self.settle()
        began = time.monotonic()
        commit = self._begin(step, state)
        written = save(commit.folder)
        self._unsettled = self._beside.submit(lambda: committed(self._finish(commit, state, lambda folder: written())))
        self.seconds_committing += time.monotonic() - began

    def settle(self, timeout_s: float | None = None) -> None:
        """Waits for the commit that is being written, if one is, and raises what went wrong with it; `TimeoutError` if
        it takes longer than `timeout_s`."""
        began = time.monotonic()
        unsettled, self._unsettled = self._unsettled, None
        if unsettled is not None:
            unsettled.result(timeout_s)
        self.seconds_committing += time.monotonic() - began

    def _begin(self, step: int, state: State) -> Unfinished:
        for name in ("metrics.jsonl", "events.jsonl"):
            flush_to_disk(self.path / name)
        rewards, self._rewards = self._rewards, []
        worth = {WORTH: statistics.fmean(rewards)} if rewards else {}
        return begin_commit(self.path / "checkpoints", _step_name(step), {**state, **worth})

    def _finish(self, commit: Unfinished, state: State, write: Callable[[Path], None]) -> Path:
        path = finish_commit(commit, write)
        self.committed = Commit(path, dict(state))
        prune(path.parent, self._keep, WORTH, sealed=path)
        return path

    def records_since(self, index: int) -> list[dict[str, object]]:
        """The records newer than `index` (0: all kept), oldest first, for the live view.

        Each is `{"type": "metrics" | "event" | "phase", "index": int, ...}`; ask again with the last `index`. Indices
        grow with the clock, so they stay good when another process takes the run over.
        """
        with self._lock:
            return [record for record in self._records if _index_of(record) > index]

    def close(self) -> None:
        """Closes TensorBoard's file; everything else is written already."""
        if self._tensorboard is not None:
            self._tensorboard.close()
            self._tensorboard = None
        if self._phase_file is not None:
            os.close(self._phase_file)
            self._phase_file = None

    def _write(self, kind: str, record: dict[str, object], file: str | None) -> None:
        with self._lock:
            if file is not None:
                append_line(self.path / file, record)
            last = _index_of(self._records[-1]) if self._records else 0
            self._records.append({"type": kind, "index": max(time.time_ns(), last + 1), **record})

    def _board(self) -> SummaryWriter:
        if self._tensorboard is None:
            from torch.utils.tensorboard import SummaryWriter

            purge = None if self.committed is None else self.committed_step + 1
            self._tensorboard = SummaryWriter(str(self.path / "tensorboard"), purge_step=purge)
        return self._tensorboard


def read_phase(run_dir: Path) -> dict[str, object]:
    """What the run at `run_dir` was last doing: `step`, `phase` and since when, `time`; {} if it has not begun."""
    try:
        record: dict[str, object] = json.loads((run_dir / PHASE_FILE).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):  # the very first one is being written
        return {}
    return record


def write_summary(path: Path, values: Mapping[str, object]) -> None:
    """`summary.json` of the run at `path`, replaced in one move; NaN and infinity become null."""
    replace_file(path / "summary.json", json.dumps(finite(values), indent=2) + "\n")


def _step_name(step: int) -> str:
    return f"step-{step:06d}"


def _number(name: str) -> int:
    found = re.search(r"\d+$", name)
    if found is None:
        raise ValueError(f"{name} is not named after a step")
    return int(found.group())


def _step_of(record: Mapping[str, object]) -> int:
    step = record.get("step")
    if not isinstance(step, int):
        raise ValueError(f"metrics.jsonl has a line without a step: {record}")
    return step


def _index_of(record: Mapping[str, object]) -> int:
    index = record["index"]
    assert isinstance(index, int)
    return index
