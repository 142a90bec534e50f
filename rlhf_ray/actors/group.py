"""The controller's side of a learner: say what a Ray Train group learns, send commands, await every rank."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from torch import Tensor

from rlhf_ray.actors.inbox import BEGIN, Answer, Begin, Command, Inbox
from rlhf_ray.actors.living import DEATHS
from rlhf_ray.actors.worker_group import WorkerGroup
from rlhf_ray.data.batching import rows_together
from rlhf_ray.errors import LostError, RunError, StallError
from rlhf_ray.ports import Busy, Metrics, Written
from rlhf_ray.tags import end_processes, tags
from rlhf_ray.types import Batch

_POLL_S = 5.0
_REBUILD_S = 1.0
_BACK_S = 120.0
_END_S = 15.0
_RETRY_S = 0.2
_COMPUTE = frozenset({"logprobs", "values", "update"})


class InboxLost(LostError):
    """An inbox died, and its ranks with it. Ray starts it again; whoever begins anew at it can go on."""


class LearnerGroup:
    """A Ray Train worker group that answers commands. `call` blocks until every rank has answered. It can be handed on
    to another process: what it is about is in the inbox, an actor of whoever made the group."""

    def __init__(self, group: WorkerGroup, deadline_s: float) -> None:
        """Starts it."""
        self.role, self.run = group.role, group.name
        self.deadline_s = deadline_s
        self._beginning: int | None = None
        self._saved: int | None = None
        self._busy = Busy(0.0, [])
        inbox = beside_us(f"{group.role}:{group.name}", tags(group.name, f"{group.role} inbox"))
        self.inbox: Any = ray.remote(Inbox).options(**inbox, max_restarts=-1).remote(group.config.num_workers, group)

    def _get(self, reference: Any, timeout_s: float | None = None) -> Any:
        """What the inbox says. `InboxLost` if it died, or does not know any more what it is asked about."""
        try:
            return ray.get(reference, timeout=timeout_s)
        except RayTaskError as error:
            if isinstance(error.cause, LostError):
                raise InboxLost(f"{self.role}: {error.cause}") from error
            raise
        except DEATHS as error:
            raise InboxLost(f"the inbox of {self.role} died") from error

    def begin(self, learner: type, arguments: dict[str, object], state: Path | None) -> None:
        """From now on the ranks are `learner`s, which start from `state`; those that they were are gone. Waits for an
        inbox that is being started again, and ends one that hangs; not for the ranks: what could not be built shows at
        the next command. `InboxLost` if it does not come back."""
        command = Command(BEGIN, (Begin(learner, arguments, state),), mutates=True)
        limit = time.monotonic() + 2 * _BACK_S
        while True:
            try:
                self._beginning = self._get(self.inbox.post.remote(command), _BACK_S)
                return
            except GetTimeoutError:
                if time.monotonic() > limit:
                    raise InboxLost(f"the inbox of {self.role} does not answer") from None
                ray.kill(self.inbox, no_restart=False)
                end_processes(self.run, f"{self.role} inbox", "ray::Inbox", _BACK_S)  # Ray only asks
            except InboxLost as lost:
                if isinstance(lost.__cause__, ActorDiedError) or time.monotonic() > limit:
                    raise
            time.sleep(_RETRY_S)

    def post(self, name: str, *arguments: object, mutates: bool = False) -> int:
        """Sends a command without waiting; `collect` awaits it."""
        index: int = self._get(self.inbox.post.remote(Command(name, arguments, mutates)))
        return index

    def post_unless_changed(self, since: int | None, name: str, *arguments: object) -> int | None:
        """As `post`; None, and nothing is sent, if a command after number `since` (None: any) changes the learner."""
        index: int | None = self._get(self.inbox.post.remote(Command(name, arguments, mutates=False), since))
        return index

    def collect(self, index: int, name: str) -> list[Any]:
        """All ranks' values in rank order. `RunError` names the role and rank at fault, `StallError` those that are
        late, counted from the last command that a rank has taken."""
        if self._beginning is not None and self._beginning != index:
            first, self._beginning = self._beginning, None
            self.collect(first, BEGIN)
        limit = time.monotonic() + self.deadline_s
        while (answers := self._get(self.inbox.wait.remote(index, _POLL_S))) is None or self._bereaved(answers, index):
            if ended := self.ended():
                raise RunError(f"{self.role}: its Ray Train group ended during '{name}': {ended}")
            if time.monotonic() > limit and self._get(self.inbox.idle_s.remote()) > self.deadline_s:
                late = self._get(self.inbox.missing.remote(index))
                raise StallError(f"{self.role}: ranks {late} did not answer '{name}' within {self.deadline_s:.0f} s")
        if answers[0].error is not None:
            raise RunError(f"{self.role} failed at '{name}': {answers[0].error}")
        if name in _COMPUTE:
            slowest = max(answers, key=lambda answer: answer.seconds)
            spans = [*self._busy.spans, (slowest.ended - slowest.seconds, slowest.ended)]
            self._busy = Busy(self._busy.seconds + slowest.seconds, spans)
        return [answer.value for answer in answers]

    def _bereaved(self, answers: list[Answer], index: int) -> bool:
        """Whether a rank's error is of the death of another one, which may have answered before it died: Ray Train will
        build the group again."""
        if answers[0].error is None:
            return False
        try:
            ray.get([rank.__ray_ready__.remote() for rank in self.workers().values()], timeout=_POLL_S)
        except (*DEATHS, GetTimeoutError):
            time.sleep(_REBUILD_S)
            return True
        return not self._get(self.inbox.failed.remote(index))  # those that live may be the next ones already

    def call(self, name: str, *arguments: object, mutates: bool = False) -> list[Any]:
        """`post` and `collect`."""
        return self.collect(self.post(name, *arguments, mutates=mutates), name)

    def rows(self, name: str, batch: Batch) -> Tensor:
        """A per-token answer `[B, T]`, put together from the rows that each rank computed."""
        return rows_together(batch, self.call(name, ray.put(batch)))

    def incarnation(self) -> int:
        """Grows when Ray Train has rebuilt the group, whose ranks then hold no connections any more."""
        joins: int = self._get(self.inbox.incarnation.remote())
        return joins

    def workers(self, timeout_s: float | None = None) -> dict[int, Any]:
        """The actors of the ranks that have begun. `GetTimeoutError` if the inbox does not answer in time."""
        found: dict[int, Any] = self._get(self.inbox.workers.remote(), timeout_s)
        return found

    def train_controller(self, timeout_s: float) -> Any:
        """Ray Train's controller, an actor, or None. `GetTimeoutError` if the inbox does not answer in time."""
        return self._get(self.inbox.train_controller.remote(), timeout_s)

    def busy(self) -> Busy:
        """What the slowest rank computed since the last call."""
        found, self._busy = self._busy, Busy(0.0, [])
        return found

    def save(self, folder: Path) -> Written:
        """Every rank writes what it has of the learner's state, beside what it is asked next."""
        saved = self._saved = self.post("save", folder)

        def written() -> None:
            self.collect(saved, "save")

        return written

    def committed(self, path: Path) -> None:
        """A rebuilt group starts from now on from the checkpoint at `path`, in which is what was saved last."""
        assert self._saved is not None
        self._get(self.inbox.commit.remote(path, self._saved))

    def ended(self, timeout_s: float | None = None) -> str | None:
        """Why Ray Train's group is over for good, once it is. `GetTimeoutError` as of `workers`."""
        why: str | None = self._get(self.inbox.ended.remote(), timeout_s)
        return why

    def begun(self) -> Any:
        """A reference to what is there once the ranks are the next learners. `InboxLost` if nobody answers."""
        try:
            since = self._get(self.inbox.next_index.remote(), _BACK_S)
        except GetTimeoutError:
            raise InboxLost(f"the inbox of {self.role} does not answer") from None
        return self.inbox.begun.options(max_task_retries=-1).remote(since)

    def stop(self) -> None:
        """Lets the ranks return from their loop, once they have done what was sent before; if they can be told."""
        with contextlib.suppress(InboxLost, GetTimeoutError):
            self._get(self.inbox.post.remote(None), _END_S)

    def kill(self, timeout_s: float) -> None:
        """Ends the inbox, and the ranks with it if they have not returned after `timeout_s`."""
        limit = time.monotonic() + timeout_s
        with contextlib.suppress(InboxLost, GetTimeoutError):
            while time.monotonic() < limit and not self.ended(_END_S):
                time.sleep(_RETRY_S)
        ray.kill(self.inbox)


def beside_us(name: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """Options of an actor that is kept on the node of whoever makes it, with which it is needed: so the loss of another
    node does not take it."""
    context = ray.get_runtime_context()
    here = NodeAffinitySchedulingStrategy(context.get_node_id(), soft=False)
    # Ray Train's placement-group cleaner would otherwise look for any cluster on this machine, and may find another.
    runtime_env = {"env_vars": {"RAY_ADDRESS": context.gcs_address, **environment}}
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

    def save(self, folder: Path) -> Written:
        """`policy/` in Hugging Face layout and `state/policy/` to resume from."""
        files = (folder / "policy" / "config.json", folder / "state" / "policy" / "optimizer.json")
        return _arriving(self.group.save(folder), *files)

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

    def save(self, folder: Path) -> Written:
        """`state/critic/` to resume from."""
        return _arriving(self.group.save(folder), folder / "state" / "critic" / "optimizer.json")

    def committed(self, path: Path) -> None:
        """A rebuilt group starts from the checkpoint at `path`."""
        self.group.committed(path)


def _arriving(written: Written, *files: Path) -> Written:
    """As `written`, and checks that the ranks' `files` are here."""

    def wait() -> None:
        written()
        for file in files:
            if not file.is_file():
                raise RunError(
                    f"{file} did not arrive: the run directory must be on a file system that all nodes share"
                )

    return wait
