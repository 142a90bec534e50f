"""The driver's side of an online run: it makes what outlives a controller, and another controller when one is lost.

Engines, frozen models and learners stay as they are. A new controller begins at the newest commit with all of them, as
a resumed run does, and what its predecessor had sent is taken back.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayTaskError

from rlhf_ray.actors.build import end_actors, make_actors, make_groups
from rlhf_ray.actors.controller import Folders, make_controller
from rlhf_ray.actors.group import InboxLost
from rlhf_ray.actors.living import DEATHS
from rlhf_ray.actors.shared import Shared
from rlhf_ray.actors.watch import end_cleaners, end_on_all_nodes
from rlhf_ray.config import RunConfig
from rlhf_ray.errors import LostError, RunError, UserError
from rlhf_ray.report.progress import ProgressView
from rlhf_ray.rewards.base import FunctionRewardConfig
from rlhf_ray.rundir.commit import newest_first
from rlhf_ray.rundir.lines import append_line
from rlhf_ray.tags import STOPPED_S, end_processes, end_stopped, run_id

_POLL_S = 0.5
_SILENT_S = 30.0
"""A controller answers from threads of its own, also while it computes."""
_END_S = 10.0
LOSSES = 5
"""So many controllers may be lost in turn, without a commit in between. Then all processes are started anew."""


def run_online(config: RunConfig, folders: Folders, run_dir: Path, threads: int) -> dict[str, Any]:
    """Trains, and shows the progress; returns the summary of the controller that came to the end.

    A signal makes the run commit and end after the step under way, then this raises `KeyboardInterrupt`; a second one
    ends it at once. `RunError` names the actor or stage at fault, `LostError` what is gone.
    """
    groups = make_groups(config, run_dir, threads)
    actors: dict[str, list[Any]] = {}
    patience_s = 0.0
    try:
        actors = make_actors(config, folders.policy, folders.rewards, run_dir, threads, groups=groups)
        make = partial(make_controller, config, folders, run_dir, groups, Shared(actors))
        with ProgressView(config.train.num_steps, config.algorithm.type.replace("_", " ").upper()) as view:
            summary = _Controllers(make, run_dir, config.train.deadline_s, view.update).run()
        for group in groups.values():
            group.stop()
        patience_s = _END_S
        return summary
    finally:
        for group in groups.values():
            group.kill(patience_s)
        end_actors(actors, run_dir)
        end_cleaners(run_id(run_dir))
        if any(isinstance(source, FunctionRewardConfig) for source in config.reward.sources):
            helpers = end_on_all_nodes(run_id(run_dir), "reward function")  # whatever a function has started
            ray.wait(helpers, num_returns=len(helpers), timeout=_END_S)


class _ControllerLost(Exception):
    """A controller is gone, or of no use any more. Another one can go on."""


class _Controllers:
    """One after another, until one comes to the end."""

    def __init__(
        self,
        make: Callable[[int], Any],
        run_dir: Path,
        deadline_s: float,
        tell: Callable[[list[dict[str, object]]], None],
    ) -> None:
        self._make, self._run_dir, self._deadline_s, self._tell = make, run_dir, deadline_s, tell
        self._stopping, self._seen = False, 0

    def run(self) -> dict[str, Any]:
        """The summary. `LostError` after `LOSSES` losses without a commit in between."""
        losses, newest = 0, self._newest_commit()
        for number in itertools.count():
            controller = self._make(number)
            try:
                summary = self._follow(controller)
                break
            except _ControllerLost as error:
                # Ray only asks, and one that hangs would keep the run to itself. It is beside us (`make_controller`).
                end_processes(run_id(self._run_dir), "controller", "ray::Controller", 0.0)
                before, newest = newest, self._newest_commit()
                losses = losses + 1 if newest == before else 1
                if losses == LOSSES:
                    raise LostError(f"{error}, {LOSSES} times without a commit in between") from error
                self._note(f"{error}. Another controller goes on at the newest commit: nothing was lost.")
            finally:
                ray.kill(controller)
        if self._stopping:
            raise KeyboardInterrupt
        return summary

    def _note(self, sentence: str) -> None:
        event = {"time": time.time(), "kind": "revived", "sentence": sentence}
        append_line(self._run_dir / "events.jsonl", event)

    def _newest_commit(self) -> str:
        return next((path.name for path in newest_first(self._run_dir / "checkpoints")), "")

    def _follow(self, controller: Any) -> dict[str, Any]:
        """Shows progress until the run is over."""
        running, self._seen = controller.run.remote(), 0
        try:
            while True:
                try:
                    # Until it is there its answers wait: for a worker, for imports, on a cluster for the job's files.
                    ray.get(controller.__ray_ready__.remote(), timeout=self._deadline_s)
                    if self._stopping:
                        self._answer(controller.stop.remote())
                    self._show_until_over(controller, running)
                    return dict(ray.get(running))
                except KeyboardInterrupt:
                    if self._stopping:
                        raise
                    print("stopping: this step ends and commits first; interrupt again to stop at once", flush=True)
                    self._stopping = True
        except GetTimeoutError as error:
            raise _ControllerLost("The controller did not answer in time") from error
        except RayTaskError as error:
            if isinstance(error.cause, InboxLost):
                raise _ControllerLost(f"{error.cause}") from error
            if isinstance(error.cause, UserError | RunError):
                raise error.cause from None
            if isinstance(error.cause, DEATHS):
                raise LostError(f"an actor that the controller needs died ({_named(error.cause)})") from error
            raise RunError(f"{error.cause}") from error
        except DEATHS as error:
            raise _ControllerLost("The controller died") from error

    def _show_until_over(self, controller: Any, running: Any) -> None:
        over = False
        while not over:
            over = bool(ray.wait([running], timeout=_POLL_S)[0])
            records = self._answer(controller.records_since.remote(self._seen))
            self._seen = records[-1]["index"] if records else self._seen
            self._tell(records)

    def _answer(self, reference: Any) -> Any:
        """Of a controller that is there. One that is stopped is killed."""
        if not ray.wait([reference], timeout=STOPPED_S)[0]:
            end_stopped({run_id(self._run_dir): ["controller"]}, STOPPED_S)
        return ray.get(reference, timeout=_SILENT_S)


def _named(error: Exception) -> str:
    """The line of Ray's report that has the actor's name; the first one if none has."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return next((line for line in lines if line.startswith("name:")), lines[0] if lines else type(error).__name__)
