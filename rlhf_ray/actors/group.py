"""The controller's side of a learner: start a Ray Train group, say what it learns, send commands, await every rank."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

from rlhf_ray.actors.inbox import BEGIN, TRIES, Answer, Begin, Command, Inbox, train_loop
from rlhf_ray.config import LearnerConfig, OfflineTrainConfig
from rlhf_ray.data.batching import rows_together
from rlhf_ray.errors import RunError, StallError
from rlhf_ray.ports import Busy, Metrics
from rlhf_ray.tags import tags
from rlhf_ray.types import Batch

_POLL_S = 5.0
_REBUILD_S = 1.0
_COMPUTE = frozenset({"logprobs", "values", "update"})


class LearnerGroup:
    """A Ray Train worker group that answers commands. `call` blocks until every rank has answered."""

    def __init__(
        self,
        role: str,
        config: LearnerConfig | OfflineTrainConfig,
        *,
        name: str,
        storage: Path,
        threads: int,
        deadline_s: float,
        placement_strategy: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """`name` tells groups of one role apart; `storage` is where Ray Train keeps its books."""
        self.role = role
        self.world_size = config.num_workers
        self.deadline_s = deadline_s
        self.ended: str | None = None
        """Why Ray Train's group is over, once it is."""
        self._beginning: int | None = None
        self._busy = Busy(0.0, [])
        inbox = beside_us(f"{role}:{name}", tags(name, f"{role} inbox"))
        self.inbox: Any = ray.remote(Inbox).options(**inbox).remote(config.num_workers)
        self._trainer: Callable[[], Any] = lambda: TorchTrainer(
            train_loop,
            train_loop_config={"inbox": self.inbox, "threads": threads},
            scaling_config=ScalingConfig(
                num_workers=config.num_workers,
                use_gpu=config.gpus_per_worker > 0,
                resources_per_worker=_resources(config),
                placement_strategy=placement_strategy,
            ),
            torch_config=TorchConfig(backend="nccl" if config.gpus_per_worker else "gloo"),
            run_config=RunConfig(  # type: ignore[call-arg]  # annotated as its predecessor
                name=f"{role}-{time.time_ns()}",
                storage_path=str(storage),
                failure_config=FailureConfig(max_failures=-1),  # the inbox says when it is enough
                worker_runtime_env={"env_vars": {**(environment or {}), **tags(name, f"{role} rank")}},
            ),
        )
        self._stopping = False
        self._fitting = threading.Thread(target=self._fit, name=f"fit-{role}", daemon=True)
        self._fitting.start()

    def begin(self, learner: type, arguments: dict[str, object], state: Path | None) -> None:
        """From now on the ranks are `learner`s, which start from `state`; those that they were are gone. Does not wait:
        what could not be built shows at the next command."""
        self._beginning = self.post(BEGIN, Begin(learner, arguments, state), mutates=True)

    def post(self, name: str, *arguments: object, mutates: bool = False) -> int:
        """Sends a command without waiting; `collect` awaits it."""
        index: int = ray.get(self.inbox.post.remote(Command(name, arguments, mutates)))
        return index

    def post_unless_changed(self, since: int | None, name: str, *arguments: object) -> int | None:
        """As `post`; None, and nothing is sent, if a command after number `since` (None: any) changes the learner."""
        index: int | None = ray.get(self.inbox.post.remote(Command(name, arguments, mutates=False), since))
        return index

    def collect(self, index: int, name: str) -> list[Any]:
        """All ranks' values in rank order. `RunError` names the role and rank at fault, `StallError` those that are
        late."""
        if self._beginning is not None and self._beginning != index:
            first, self._beginning = self._beginning, None
            self.collect(first, BEGIN)
        limit = time.monotonic() + self.deadline_s
        while (answers := ray.get(self.inbox.wait.remote(index, _POLL_S))) is None or self._bereaved(answers, index):
            if self.ended is not None:
                raise RunError(f"{self.role}: its Ray Train group ended during '{name}': {self.ended}")
            if time.monotonic() > limit:
                late = ray.get(self.inbox.missing.remote(index))
                raise StallError(f"{self.role}: ranks {late} did not answer '{name}' within {self.deadline_s:.0f} s")
        if answers[0].error is not None:
            raise RunError(f"{self.role} failed at '{name}': {answers[0].error}")
        if name in _COMPUTE:
            slowest = max(answers, key=lambda answer: answer.seconds)
            spans = [*self._busy.spans, (slowest.ended - slowest.seconds, slowest.ended)]
            self._busy = Busy(self._busy.seconds + slowest.seconds, spans)
        return [answer.value for answer in answers]

    def _bereaved(self, answers: list[Answer], index: int) -> bool:
        """Whether a rank's error is of the death of another one: Ray Train will build the group again."""
        if answers[0].error is None:
            return False
        silent: list[int] = ray.get(self.inbox.missing.remote(index))
        workers = self.workers()
        try:
            ready: list[Any] = [workers[rank].__ray_ready__ for rank in silent if rank in workers]
            ray.get([method.remote() for method in ready], timeout=_POLL_S)
            return False
        except (RayActorError, GetTimeoutError):
            time.sleep(_REBUILD_S)
            return True

    def call(self, name: str, *arguments: object, mutates: bool = False) -> list[Any]:
        """`post` and `collect`."""
        return self.collect(self.post(name, *arguments, mutates=mutates), name)

    def rows(self, name: str, batch: Batch) -> Tensor:
        """A per-token answer `[B, T]`, put together from the rows that each rank computed."""
        return rows_together(batch, self.call(name, ray.put(batch)))

    def incarnation(self) -> int:
        """Grows when Ray Train has rebuilt the group, whose ranks then hold no connections any more."""
        joins: int = ray.get(self.inbox.incarnation.remote())
        return joins

    def workers(self, timeout_s: float | None = None) -> dict[int, Any]:
        """The actors of the ranks that have begun. `GetTimeoutError` if the inbox does not answer in time."""
        found: dict[int, Any] = ray.get(self.inbox.workers.remote(), timeout=timeout_s)
        return found

    def busy(self) -> Busy:
        """What the slowest rank computed since the last call."""
        found, self._busy = self._busy, Busy(0.0, [])
        return found

    def committed(self, state: Path) -> None:
        """A rebuilt group starts from `state` from now on."""
        ray.get(self.inbox.commit.remote(state))

    def stop(self) -> None:
        """Lets the ranks return from their loop."""
        self._stopping = True
        ray.get(self.inbox.post.remote(None))

    def join(self, timeout_s: float) -> None:
        """Waits for the end of Ray Train's group. A process whose connection to Ray ends earlier may crash: the thread
        that waits for the group would read what is gone."""
        self._fitting.join(timeout_s)

    def _fit(self) -> None:
        """A trainer whose own controller dies takes its ranks with it; those of the next one ask the inbox as well."""
        for left in reversed(range(TRIES)):
            try:
                self._trainer().fit()
                self.ended = "it stopped"
                return
            except Exception as error:  # the fault-tolerance seam: a thread has no caller to raise to
                if self._stopping or not left:
                    self.ended = f"{type(error).__name__}: {error}"
                    return


def beside_us(name: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Options of an actor that is kept on the node of whoever makes it, with which it is needed: so the loss of another
    node does not take it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    runtime_env = {"env_vars": dict(environment)}
    return {"name": name, "num_cpus": 0, "scheduling_strategy": here, "runtime_env": runtime_env}


class PolicyClient:
    """The policy's port: a `LearnerGroup` of `PolicyLearner`s."""

    def __init__(self, group: LearnerGroup) -> None:
        self.group = group

    def logprobs(self, batch: Batch) -> Tensor:
        """`log p(token | tokens before)` under the current policy, `[B, T]`."""
        return self.group.rows("logprobs", batch)

    def update(self, batch: Batch, step: int, kl_coef: float) -> Metrics:
        """All inner epochs over `batch`."""
        metrics: Metrics = self.group.call("update", ray.put(batch), step, kl_coef, mutates=True)[0]
        return metrics

    def save(self, folder: Path) -> None:
        """`policy/` in Hugging Face layout and `state/policy/` to resume from."""
        self.group.call("save", folder)
        _arrived(folder / "policy" / "config.json")
        _arrived(folder / "state" / "policy" / "optimizer.json")

    def committed(self, path: Path) -> None:
        """A rebuilt group starts from the checkpoint at `path`."""
        self.group.committed(path)


class CriticClient:
    """The critic's port: a `LearnerGroup` of `CriticLearner`s."""

    def __init__(self, group: LearnerGroup) -> None:
        self.group = group

    def values(self, batch: Batch) -> Tensor:
        """`V(tokens before)` for each token, `[B, T]`."""
        return self.group.rows("values", batch)

    def update(self, batch: Batch, step: int) -> Metrics:
        """All inner epochs over `batch`."""
        metrics: Metrics = self.group.call("update", ray.put(batch), step, mutates=True)[0]
        return metrics

    def save(self, folder: Path) -> None:
        """`state/critic/` to resume from."""
        self.group.call("save", folder)
        _arrived(folder / "state" / "critic" / "optimizer.json")

    def committed(self, path: Path) -> None:
        """A rebuilt group starts from the checkpoint at `path`."""
        self.group.committed(path)


def _arrived(file: Path) -> None:
    if not file.is_file():
        raise RunError(f"{file} did not arrive: the run directory must be on a file system that all nodes share")


def _resources(config: LearnerConfig | OfflineTrainConfig) -> dict[str, float]:
    resources = {"CPU": config.cpus_per_worker}
    return resources | {"GPU": config.gpus_per_worker} if config.gpus_per_worker else resources
