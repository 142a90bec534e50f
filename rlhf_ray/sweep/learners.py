"""Worker groups of Ray Train that outlive a trial: starting one costs more than a short trial."""

from __future__ import annotations

import math
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from ray.exceptions import GetTimeoutError

from rlhf_ray.actors.build import make_groups
from rlhf_ray.actors.group import InboxLost, LearnerGroup
from rlhf_ray.actors.watch import end_cleaners
from rlhf_ray.actors.worker_group import WorkerGroup
from rlhf_ray.cluster import threads_of
from rlhf_ray.config import AnyConfig, AnyOfflineConfig, RunConfig
from rlhf_ray.errors import RunError
from rlhf_ray.offline.figures import measured
from rlhf_ray.offline.launch import STOP_FILE, absolute, worker_environment
from rlhf_ray.offline.worker import SuccessiveRuns
from rlhf_ray.tags import run_id

_ENDING_S = 100.0  # below the time that Tune gives to a trial to end
_JOIN_S = 30.0
_PLACE = {"num_workers", "cpus_per_worker", "gpus_per_worker"}
_groups: dict[str, LearnerGroup] = {}
"""Those of the last trial in this process."""
_made_for: list[object] = []


def groups_for(config: AnyConfig, sweep_dir: Path) -> dict[str, LearnerGroup]:
    """The groups of the last trial by role, if they have the same place and are well, else new ones."""
    learners = config.learners if isinstance(config, RunConfig) else {"group": config.train}
    asked = [{role: learner.model_dump(include=_PLACE) for role, learner in learners.items()}, config.placement]
    if asked != _made_for or any(_is_over(group) for group in _groups.values()):
        end_groups()
        folder = sweep_dir / f"learners-{os.getpid()}"
        if isinstance(config, RunConfig):
            _groups.update(make_groups(config, folder, threads_of(config)))
        else:
            _groups["group"] = _fixed_data_group(config, folder)
        _made_for[:] = asked
    if isinstance(config, RunConfig):
        for group in _groups.values():
            group.deadline_s = config.train.deadline_s
    return _groups


def _is_over(group: LearnerGroup) -> bool:
    try:
        return group.ended(_JOIN_S) is not None
    except (GetTimeoutError, InboxLost):
        return True


def end_groups() -> None:
    """After a failure nobody knows in which state the ranks are."""
    for group in _groups.values():
        group.stop()
    for group in _groups.values():
        group.kill(_JOIN_S)
    for run in {group.run for group in _groups.values()}:
        end_cleaners(run)
    _groups.clear()
    _made_for.clear()


def _fixed_data_group(config: AnyOfflineConfig, folder: Path) -> LearnerGroup:
    group = WorkerGroup(
        "group",
        run_id(folder),
        config.train,
        folder / "ray_train",
        config.placement.threads or 1,  # each run says how many it takes
        config.placement.strategy,
        worker_environment(config),
    )
    return LearnerGroup(group, math.inf)  # a command is a whole run here; who follows it knows whether it goes on


class GroupRun:
    """A run on fixed data in a worker group that has trained others before it."""

    def __init__(self, group: LearnerGroup, config: AnyOfflineConfig, folder: Path, run_dir: Path) -> None:
        self._run_dir, self._began = run_dir, time.monotonic()
        group.begin(SuccessiveRuns, {}, None)
        thread = ThreadPoolExecutor(1)
        self._answer: Future[list[Any]] = thread.submit(
            lambda: group.call("train", absolute(config), folder, run_dir, mutates=True)
        )
        thread.shutdown(wait=False)

    def wait(self, seconds: float) -> bool:
        """True once it is over."""
        return bool(wait([self._answer], seconds).done)

    def result(self) -> dict[str, Any]:
        """The figures of rank 0."""
        figures: dict[str, Any] = self._answer.result()[0]
        return figures | measured(self._run_dir, self._began)

    def cancel(self) -> None:
        """The ranks end after the step under way, with a commit. `RunError` if they do not: they may hang."""
        (self._run_dir / STOP_FILE).touch()
        if not self.wait(_ENDING_S):
            raise RunError(f"the worker group of {self._run_dir.name} did not end its step within {_ENDING_S:.0f} s")
