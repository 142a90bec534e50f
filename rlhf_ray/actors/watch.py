"""An actor that does not answer is killed: so a hang becomes a death, and deaths are survived."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from rlhf_ray.actors.group import InboxLost, LearnerGroup
from rlhf_ray.actors.living import stacks
from rlhf_ray.actors.pools import HEALTH, Pool

HUNG_S = 15.0
"""So long an actor may be silent. It answers from a thread of its own, also while it computes."""
_EVERY_S = 1.0
_STACKS_S = 5.0


class Watch:
    """A thread that asks all roles of a run whether they live, until `stop`."""

    def __init__(self, pools: Sequence[Pool], groups: Sequence[LearnerGroup], tell: Callable[[str], None]) -> None:
        self._pools, self._groups, self._tell = pools, groups, tell
        self._over = threading.Event()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def stacks(self) -> dict[str, str]:
        """Where every thread of every actor and rank is, and of this process, the controller's."""
        asked: dict[Any, str] = {}
        for pool in self._pools:
            for i, actor in enumerate(pool.actors):
                asked[actor.stacks.options(concurrency_group=HEALTH).remote()] = f"{pool.role}-{i}"
        for group in self._groups:
            for rank, worker in _ranks(group).items():
                call: Any = worker.__ray_call__
                asked[call.remote(stacks)] = f"rank {rank} of {group.role}"
        answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_STACKS_S)
        found = {"controller": stacks()} | {asked[reference]: "it does not answer" for reference in silent}
        for reference in answered:
            try:
                found[asked[reference]] = ray.get(reference)
            except RayError as error:
                found[asked[reference]] = f"{error}".partition("\n")[0]
        return found

    def stop(self) -> None:
        """Nobody is asked any more."""
        self._over.set()

    def _watch(self) -> None:
        asked: dict[Any, tuple[str, Any, float]] = {}
        while not self._over.wait(_EVERY_S):
            under_way = {name for name, _, _ in asked.values()}
            for name, actor, ask in self._members():
                if name not in under_way:
                    asked[ask()] = name, actor, time.monotonic()
            answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=_EVERY_S)
            for reference in answered:  # that one is dead is for its callers to notice
                del asked[reference]
            for reference in silent:
                name, actor, since = asked[reference]
                if time.monotonic() - since > HUNG_S:
                    del asked[reference]
                    self._tell(f"{name} did not answer for {HUNG_S:.0f} s and was killed.")
                    ray.kill(actor, no_restart=False)

    def _members(self) -> list[tuple[str, Any, Callable[[], Any]]]:
        """Names, actors, and how they are asked."""
        found: list[tuple[str, Any, Callable[[], Any]]] = []
        for pool in self._pools:
            for i, actor in enumerate(pool.actors):
                found.append((f"{pool.role}-{i}", actor, actor.alive.options(concurrency_group=HEALTH).remote))
        for group in self._groups:
            found.append((f"the inbox of {group.role}", group.inbox, group.inbox.incarnation.remote))
            for rank, worker in _ranks(group).items():
                ready: Any = worker.__ray_ready__
                found.append((f"rank {rank} of {group.role}", worker, ready.remote))
        return found


def _ranks(group: LearnerGroup) -> dict[int, Any]:
    """Those that are known: none while the inbox is silent, or dead, which ends this controller's work."""
    try:
        return group.workers(_EVERY_S)
    except (GetTimeoutError, InboxLost):
        return {}
