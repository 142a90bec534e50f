"""The controller actor: runs the loop on the actors that it is given, owns the run directory. Another can take over."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from rlhf_ray import metrics as names
from rlhf_ray.actors.build import begin_groups, make_pools
from rlhf_ray.actors.group import CriticClient, LearnerGroup, PolicyClient, beside_us
from rlhf_ray.actors.pools import Pool
from rlhf_ray.actors.shared import LeasedEngines, Shared, new_owner
from rlhf_ray.actors.watch import Watch
from rlhf_ray.actors.weight_push import WeightBroadcast
from rlhf_ray.config import RunConfig
from rlhf_ray.data.prompts import ShuffledPrompts, load_prompts
from rlhf_ray.errors import LostError, RunError, StallError
from rlhf_ray.heldout import Evaluation, compare, evaluate
from rlhf_ray.loop import Progress, restore, train
from rlhf_ray.models.reward_model import load_tokenizer
from rlhf_ray.ports import Algorithm, Roles
from rlhf_ray.resume import only_writer
from rlhf_ray.rundir.commit import replace_file
from rlhf_ray.rundir.journal import RunDirectory
from rlhf_ray.tags import run_id, tags
from rlhf_ray.types import Prompt
from rlhf_ray.wrappers.wrapped import wrapped

T = TypeVar("T")
_LAST_S = 60.0
"""So long a run that ends with an error waits for the commit that is under way."""


@dataclass(frozen=True, slots=True)
class Folders:
    """Model folders that the driver resolved: the policy's, and one for each reward source (None for functions)."""

    policy: Path
    rewards: tuple[Path | None, ...]

    @property
    def reward_model(self) -> Path | None:
        """The first learned reward model, from which the critic may start."""
        return next((folder for folder in self.rewards if folder is not None), None)


class Controller:
    """One run. `run` blocks until it is over; `records_since` and `stop` may be called meanwhile."""

    def __init__(
        self,
        config: RunConfig,
        folders: Folders,
        run_dir: Path,
        groups: dict[str, LearnerGroup],
        shared: Shared,
        journal: type[RunDirectory] = RunDirectory,
    ) -> None:
        """`groups` become the learners of this run, `shared` has the other actors; all outlive it."""
        self._config, self._folders, self._groups, self._shared = config, folders, groups, shared
        self._writing = only_writer(run_dir)
        self._journal = journal.open(run_dir, config.train.keep_checkpoints)
        self._engines: LeasedEngines | None = None
        self._watch: Watch | None = None
        self._stopping = False
        self._spent = {"start": 0.0, "evaluate": 0.0}
        self._began = time.monotonic()

    def run(self) -> dict[str, Any]:
        """Builds the roles, trains, evaluates; returns the summary, which is also in `summary.json`."""
        config = self._config
        algorithm = config.algorithm.make()
        try:
            roles, heldout, pad, progress = self._start(algorithm)
        except StallError as error:  # who hangs before it has answered once is in nobody's watch
            raise LostError(f"while the roles were started: {error}") from error
        before = self._before(roles, heldout, pad, progress)
        try:
            train(config, wrapped(config, roles, progress.step + 1), algorithm, pad, progress)
        except StallError as error:
            assert self._watch is not None
            self._journal.event("stalled", f"{error}", stacks=self._watch.stacks())
            raise
        finally:  # what ends a run may come beside a commit, which need not be lost with it
            with contextlib.suppress(RunError, RayError, OSError):
                self._journal.settle(_LAST_S)
        after = self._evaluate(roles, heldout, pad, "after") if before and not self._stopping else None
        summary = self._summary(progress, before, after)
        self.close()
        return summary

    def _start(self, algorithm: Algorithm) -> tuple[Roles, Sequence[Prompt], int, Progress]:
        """The roles, as of the newest commit, engines with weights."""
        roles, heldout, pad = self._build()
        progress = Progress()
        if self._journal.committed is not None:
            progress = restore(roles, algorithm, self._journal.committed.meta)
            self._journal.event("resume", f"Continuing after step {progress.step}.")
        self._journal.phase(progress.step, "first weight push")
        roles.weights.push(progress.version)
        self._spent["start"] = time.monotonic() - self._began
        return roles, heldout, pad, progress

    def close(self) -> None:
        """Leaves the actors to others."""
        if self._watch is not None:
            self._watch.stop()
        if self._engines is not None:
            self._engines.leave()
        self._writing.close()

    def records_since(self, index: int) -> list[dict[str, object]]:
        """News for the live view."""
        return self._journal.records_since(index)

    def stop(self) -> None:
        """The run commits and ends after the step that is under way."""
        self._stopping = True

    def _build(self) -> tuple[Roles, Sequence[Prompt], int]:
        config, run_dir = self._config, self._journal.path
        self._journal.phase(0, "starting the roles")
        state = self._journal.committed.path if self._journal.committed else None
        folders = self._folders
        begin_groups(config, self._groups, folders.policy, folders.reward_model, run_dir, state)
        policy, critic = self._groups["policy"], self._groups.get("critic")
        tokenizer = load_tokenizer(folders.policy)  # meanwhile the ranks start
        prompts, heldout, notes = load_prompts(config.prompts, tokenizer, config.train.eval_prompts)
        for note in notes:
            self._journal.event("data", note)
        rollout, reference, reward = make_pools(config, self._shared.actors, new_owner(run_dir))
        pools, hung = (rollout, reference, reward), partial(self._journal.event, "hung")
        self._watch = Watch(run_id(run_dir), pools, list(self._groups.values()), hung)
        for pool in (reference, reward, rollout):
            pool.tell = partial(self._journal.event, "revived")
            pool.all("ping")
            pool.busy()  # of others
        if self._shared.lease is None:  # a push that the last controller began must not keep the ranks waiting
            rollout.all("claim", rollout.owner)
        alone = config.placement.mode == "separate" and config.rollout.gpus >= 1
        weights = WeightBroadcast(policy, rollout, "nccl" if alone else "gloo")
        if self._shared.lease is not None:
            self._engines = LeasedEngines(self._shared.lease, rollout, weights)
        measured: list[LearnerGroup | Pool] = [*self._groups.values(), rollout, reference, reward]
        roles = Roles(
            prompts=ShuffledPrompts(prompts, config.seed),
            rollout=self._engines or rollout,
            reward=reward,
            reference=reference,
            policy=PolicyClient(policy),
            critic=None if critic is None else CriticClient(critic),
            weights=self._engines or weights,
            journal=self._journal,
            together=side_by_side if config.placement.mode == "separate" else in_turn,
            busy=lambda: {part.role: part.busy() for part in measured},
            should_stop=lambda: self._stopping,
        )
        return roles, heldout, tokenizer.pad_token_id or 0  # padding is masked everywhere: any id will do

    def _before(self, roles: Roles, heldout: Sequence[Prompt], pad: int, progress: Progress) -> Evaluation | None:
        """The evaluation of the untrained policy; a resumed run reads the one that it began with."""
        saved = self._journal.path / "eval" / "before.json"
        if progress.step == 0:
            return self._evaluate(roles, heldout, pad, "before")
        return Evaluation.model_validate_json(saved.read_text()) if saved.is_file() else None

    def _evaluate(self, roles: Roles, heldout: Sequence[Prompt], pad: int, name: str) -> Evaluation | None:
        if not heldout:
            return None
        self._journal.phase(0, f"held-out answers {name} training")
        began = time.monotonic()
        evaluation, answers = evaluate(roles, heldout, pad)
        self._spent["evaluate"] += time.monotonic() - began
        self._journal.evaluation(name, answers)
        replace_file(self._journal.path / "eval" / f"{name}.json", evaluation.model_dump_json(indent=2) + "\n")
        return evaluation

    def _summary(self, progress: Progress, before: Evaluation | None, after: Evaluation | None) -> dict[str, Any]:
        steps = [json.loads(line) for line in (self._journal.path / "metrics.jsonl").read_text().splitlines()]
        trained = {
            phase: sum(step.get(names.TIME_PHASE.format(phase=phase)) or 0.0 for step in steps)
            for phase in names.PHASES
        }
        last = self._journal.committed
        summary: dict[str, Any] = {
            "finished": progress.step == self._config.train.num_steps,
            "steps": progress.step,
            "rollouts": progress.step * self._config.rollouts_per_step,
            "seconds_total": time.monotonic() - self._began,
            "seconds_by_phase": self._spent | trained | {"commit": self._journal.seconds_committing},
            "policy_dir": str(last.path / "policy") if last else None,
            "report": str(self._journal.path / "report.html"),
        }
        if before and after:
            summary |= compare(before, after, self._config.seed)
        self._journal.summary(summary)
        self._journal.close()
        return summary


def in_turn(*calls: Callable[[], T]) -> list[T]:
    """One after another: the roles share the same cores."""
    return [call() for call in calls]


def side_by_side(*calls: Callable[[], T]) -> list[T]:
    """At the same time: each role has its own."""
    with ThreadPoolExecutor(len(calls)) as threads:
        return list(threads.map(lambda call: call(), calls))


def make_controller(
    config: RunConfig, folders: Folders, run_dir: Path, groups: dict[str, LearnerGroup], shared: Shared, number: int
) -> Any:
    """A handle to the actor; `number` tells it from those before it."""
    name = f"controller-{number}:{run_id(run_dir)}"
    return (
        ray.remote(Controller)
        .options(**beside_us(name, tags(run_id(run_dir), "controller")), max_concurrency=4)
        .remote(config, folders, run_dir, groups, shared)
    )
