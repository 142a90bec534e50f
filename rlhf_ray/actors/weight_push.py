"""One weight push: the policy sends and every engine receives, at the same time."""

from __future__ import annotations

import threading
from typing import Literal

from rlhf_ray import metrics as names
from rlhf_ray.actors.group import InboxLost, LearnerGroup
from rlhf_ray.actors.inbox import TRIES
from rlhf_ray.actors.pools import RolloutPool
from rlhf_ray.errors import RunError, StallError
from rlhf_ray.ports import Metrics
from rlhf_ray.weight_sync.broadcast import Rendezvous

_TIMEOUT_S = 120.0  # of one bucket: if one side fails, the other gives up after this


class WeightBroadcast:
    """Policy rank 0 and all rollout workers in one process group, which is formed again when a member was rebuilt."""

    def __init__(self, policy: LearnerGroup, rollout: RolloutPool, backend: Literal["gloo", "nccl"]) -> None:
        self._policy, self._rollout, self._backend = policy, rollout, backend
        self._members: tuple[int, list[str]] | None = None
        self._version, self._sent = 0, -1
        self._pushed = threading.Condition()
        rollout.rearm = self.push_again

    def disband(self) -> None:
        """The engines have been in other hands: the next push forms the group again."""
        self._members = None

    def _connect(self) -> None:
        """Agrees on the layout and forms the group."""
        buckets = self._policy.call("layout")[0]
        host, port = self._policy.call("meeting_point")[0]
        sizes = self._rollout.all("ping")
        self._rollout.all("claim", self._rollout.owner)  # those that were started again have forgotten it
        members = self._now()
        meeting = Rendezvous(host, port, 1 + sum(sizes), self._backend, _TIMEOUT_S)
        sent = self._policy.post("join", meeting)
        joins = [
            actor.join.remote(meeting, 1 + sum(sizes[:i]), buckets) for i, actor in enumerate(self._rollout.actors)
        ]
        self._policy.collect(sent, "join")
        for i, join in enumerate(joins):
            self._rollout.get(join, i, "join")
        self._members = members

    def push(self, version: int) -> Metrics:
        """Every engine now holds the policy's weights as `version`. A push that failed, because a member died or a
        bucket was damaged, is made again in a new group; the last failure names the actors on both sides."""
        with self._pushed:
            metrics = self._try(version, None)
            assert metrics is not None  # only a push that depends on an older one can come too late
            self._pushed.notify_all()
            return metrics

    def push_again(self) -> None:
        """Every engine holds the weights of the last push again. If the policy has learned since, those are gone, and
        this waits for the next push."""
        with self._pushed:
            before = self._sent
            if self._try(self._version, before) is not None:
                return
            if not self._pushed.wait_for(lambda: self._sent != before, self._rollout.deadline_s):
                raise RunError(f"no weights were pushed within {self._rollout.deadline_s:.0f} s")

    def _try(self, version: int, since: int | None) -> Metrics | None:
        for left in reversed(range(TRIES)):
            try:
                if self._now() != self._members:
                    self._connect()
                return self._push(version, since)
            except (InboxLost, StallError):  # who hangs is not helped by another wait as long
                raise
            except RunError as error:
                if not left:
                    raise
                self.disband()
                self._rollout.tell(f"The push of version {version} is made again: {error}")
        raise AssertionError  # the last try returned or raised

    def _now(self) -> tuple[int, list[str]]:
        return self._policy.incarnation(), self._rollout.all("alive")

    def _push(self, version: int, since: int | None) -> Metrics | None:
        sent = self._policy.post_unless_changed(since, "publish", version)
        if sent is None:
            return None
        loads = [actor.load_weights.remote(version) for actor in self._rollout.actors]
        faults: list[str] = []
        buckets = 0
        for i, load in enumerate(loads):
            try:
                self._rollout.get(load, i, "load_weights")
            except RunError as error:
                faults.append(str(error))
        try:
            buckets = self._policy.collect(sent, "publish")[0]
        except InboxLost:
            raise
        except RunError as error:
            faults.append(str(error))
        if faults:
            raise RunError(f"weight push of version {version}: " + "; ".join(faults))
        self._version, self._sent = version, sent
        return {names.CHECKSUM_BUCKETS: float(buckets)}
