"""One weight push: the policy sends and every engine receives, at the same time."""

from __future__ import annotations

from typing import Literal

from rlhf_ray import metrics as names
from rlhf_ray.actors.group import LearnerGroup
from rlhf_ray.actors.pools import RolloutPool
from rlhf_ray.errors import RunError
from rlhf_ray.ports import Metrics
from rlhf_ray.weight_sync.broadcast import Rendezvous

_TIMEOUT_S = 120.0  # of one bucket: if one side fails, the other gives up after this


class WeightBroadcast:
    """Policy rank 0 and all rollout workers in one process group."""

    def __init__(self, policy: LearnerGroup, rollout: RolloutPool, backend: Literal["gloo", "nccl"]) -> None:
        self._policy, self._rollout, self._backend = policy, rollout, backend
        self._incarnation = -1

    def connect(self) -> None:
        """Agrees on the layout and forms the group."""
        buckets = self._policy.call("layout")[0]
        host, port = self._policy.call("meeting_point")[0]
        sizes = self._rollout.all("ping")
        meeting = Rendezvous(host, port, 1 + sum(sizes), self._backend, _TIMEOUT_S)
        sent = self._policy.post("join", meeting)
        joins = [
            actor.join.remote(meeting, 1 + sum(sizes[:i]), buckets) for i, actor in enumerate(self._rollout.actors)
        ]
        self._policy.collect(sent, "join")
        for i, join in enumerate(joins):
            self._rollout.get(join, i, "join")
        self._incarnation = self._policy.incarnation()

    def push(self, version: int) -> Metrics:
        """Every engine now holds the policy's weights as `version`. A failure names the actors on both sides."""
        if self._policy.incarnation() != self._incarnation:
            self.connect()
        loads = [actor.load_weights.remote(version) for actor in self._rollout.actors]
        sent = self._policy.post("publish", version)
        faults: list[str] = []
        buckets = 0
        for i, load in enumerate(loads):
            try:
                self._rollout.get(load, i, "load_weights")
            except RunError as error:
                faults.append(str(error))
        try:
            buckets = self._policy.collect(sent, "publish")[0]
        except RunError as error:
            faults.append(str(error))
        if faults:
            raise RunError(f"weight push of version {version}: " + "; ".join(faults))
        return {names.CHECKSUM_BUCKETS: float(buckets)}
