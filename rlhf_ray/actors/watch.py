"""An actor that does not answer any more is killed: so a hang becomes a death, and deaths are survived."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from ray.util.state import get_actor
from ray.util.state.exception import RayStateApiException

from rlhf_ray.actors.group import InboxLost, LearnerGroup
from rlhf_ray.actors.living import stacks
from rlhf_ray.actors.pools import HEALTH, Pool
from rlhf_ray.tags import STOPPED_S, end_left, end_processes, end_stopped

HUNG_S = 15.0
"""So long an actor may be silent once it is made. It answers from a thread of its own, while it computes."""
HUNG_TRAIN_S = 300.0
"""Ray Train's controller does nothing else while it places and starts a group."""
_EVERY_S = 1.0
_STACKS_S = 5.0
_CLEANER = "ray::PlacementGroupCleaner"
_CLEANS_S = 10.0


@dataclass(frozen=True, slots=True)
class Member:
    """An actor, how it is asked, how long it may be silent, and how its process is found."""

    name: str
    actor: Any
    ask: Callable[[], Any]
    patience_s: float
    run: str
    tag: str
    title: str = "ray::"

    def end(self) -> None:
        """Ray asks a process to end, which one does not hear that hung before Ray had connected to it."""
        ray.kill(self.actor, no_restart=False)
        end_on_all_nodes(self.run, self.tag, self.title, self.patience_s)


def end_on_all_nodes(run: str, role: str, title: str = "", age_s: float = 0.0) -> list[Any]:
    """`end_processes` of each node; references to what is there when it is done."""
    return [_on_node(node, end_processes, run, role, title, age_s) for node in _alive_nodes()]


def end_cleaners(run: str) -> None:
    """After the groups of a run: ends what Ray Train's controllers have left that died while they made their cleaner.

    A cleaner outlives its controller, gives back the place of its ranks and ends, once the controller has told it whom
    to look after. Those that were told get the time for that.
    """
    here = ray.get_runtime_context().get_node_id()
    there = [_on_node(node, end_left, run, _CLEANER, _CLEANS_S) for node in _alive_nodes() if node != here]
    end_left(run, _CLEANER, _CLEANS_S)
    if there:
        ray.wait(there, num_returns=len(there), timeout=_CLEANS_S)


def _alive_nodes() -> list[str]:
    return [str(node["NodeID"]) for node in ray.nodes() if node["Alive"]]


def _on_node(node: str, do: Callable[..., Any], *arguments: Any) -> Any:
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return _remote(do).options(num_cpus=0, scheduling_strategy=there).remote(*arguments)


@functools.cache
def _remote(do: Callable[..., Any]) -> Any:
    """Ray keeps each remote function that it has been told of for as long as a cluster lives."""
    return ray.remote(do)


class StoppedElsewhere:
    """Ends who is stopped on other nodes, which say it when they have: none is waited for."""

    def __init__(self) -> None:
        self._asked: dict[str, Any] = {}

    def ask(self, nodes: Sequence[str], roles: Mapping[str, Sequence[str]]) -> None:
        """Of those of `nodes` that have not been asked already, with roles by run."""
        for node in nodes:
            if node not in self._asked:
                self._asked[node] = _on_node(node, end_stopped, roles, STOPPED_S)

    def ended(self) -> list[str]:
        """The roles that were, since the last time."""
        found: list[str] = []
        for node, answer in list(self._asked.items()):
            if ray.wait([answer], timeout=0)[0]:
                del self._asked[node]
                with suppress(RayError):  # that node is gone, with all on it
                    found += ray.get(answer)
        return found


class Watch:
    """A thread that asks all roles of a run whether they live, until `stop`."""

    def __init__(
        self, run: str, pools: Sequence[Pool], groups: Sequence[LearnerGroup], tell: Callable[[str], None]
    ) -> None:
        self._run, self._pools, self._groups, self._tell = run, pools, groups, tell
        self._over = threading.Event()
        self._asked: dict[Any, tuple[Member, float]] = {}
        self._known: set[Any] = {group.inbox for group in groups}  # it loads nothing
        self._silent: list[Any] = []
        self._elsewhere = StoppedElsewhere()
        threading.Thread(target=self._watch, name="watch", daemon=True).start()

    def stacks(self) -> dict[str, str]:
        """Where every thread of every actor and rank is, and of this process, the controller's."""
        asked: dict[Any, str] = {}
        for pool in self._pools:
            for i, actor in enumerate(pool.actors):
                asked[actor.stacks.options(concurrency_group=HEALTH).remote()] = f"{pool.role}-{i}"
        for group in self._groups:
            for rank, worker in _told(group.workers, {}).items():
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
        met: set[str] = set()
        while not self._over.wait(_EVERY_S):
            try:
                self._look()
            except Exception as error:  # the fault-tolerance seam: a thread has no caller to raise to
                if (what := f"{type(error).__name__}: {error}") not in met:
                    met.add(what)
                    self._tell(f"The watch met an error, and goes on: {what}")

    def _look(self) -> None:
        self._end_stopped(bool(self._silent))
        under_way = {member.actor for member, _ in self._asked.values()}
        for member in self._members():
            if member.actor not in under_way:
                self._asked[member.ask()] = member, time.monotonic()
        answered, self._silent = ray.wait(list(self._asked), num_returns=len(self._asked), timeout=_EVERY_S)
        for reference in answered:  # that one is dead is for its callers to notice
            self._known.add(self._asked.pop(reference)[0].actor)
        for reference in self._silent:
            member, since = self._asked[reference]
            if time.monotonic() - since <= member.patience_s:
                continue
            # One that has never answered may be loading its model; or it hung before it was asked from here.
            if member.actor in self._known or _is_made(member.actor):
                del self._asked[reference]
                self._tell(f"{member.name} did not answer for {member.patience_s:.0f} s and was killed.")
                member.end()

    def _end_stopped(self, elsewhere: bool) -> None:
        """Here, whether they are known yet or not, and on other nodes, if somebody does not answer. That they are dead
        is for their callers to notice, as ever."""
        roles = {self._run: [f"{pool.role}-{i}" for pool in self._pools for i in range(len(pool.actors))]}
        for group in self._groups:
            roles.setdefault(group.run, []).extend(f"{group.role} {part}" for part in ("inbox", "rank"))
        if elsewhere:
            here = ray.get_runtime_context().get_node_id()
            self._elsewhere.ask([node for node in _alive_nodes() if node != here], roles)
        for role in [*end_stopped(roles, STOPPED_S), *self._elsewhere.ended()]:
            self._tell(f"{role} was stopped by a signal for {STOPPED_S:.0f} s and was killed.")

    def _members(self) -> list[Member]:
        found: list[Member] = []
        for pool in self._pools:
            for i, actor in enumerate(pool.actors):
                alive = actor.alive.options(concurrency_group=HEALTH).remote
                found.append(Member(f"{pool.role}-{i}", actor, alive, HUNG_S, self._run, f"{pool.role}-{i}"))
        for group in self._groups:
            name, inbox = f"the inbox of {group.role}", f"{group.role} inbox"
            found.append(
                Member(name, group.inbox, group.inbox.incarnation.remote, HUNG_S, group.run, inbox, "ray::Inbox")
            )
            for rank, worker in _told(group.workers, {}).items():
                name, ready = f"rank {rank} of {group.role}", worker.__ray_ready__.remote
                found.append(
                    Member(name, worker, ready, HUNG_S, group.run, f"{group.role} rank", "ray::RayTrainWorker")
                )
            if (controller := _told(group.train_controller, None)) is not None:
                name, ready = f"Ray Train's controller of {group.role}", controller.__ray_ready__.remote
                found.append(Member(name, controller, ready, HUNG_TRAIN_S, group.run, inbox, "ray::TrainController"))
        return found


def _is_made(actor: Any) -> bool:
    """Whether its constructor is over, as Ray says; False if Ray does not say."""
    try:
        found = get_actor(actor._actor_id.hex(), address=ray.get_runtime_context().gcs_address, timeout=int(_STACKS_S))
    except (RayStateApiException, RayError):
        return False
    return found is not None and found.state == "ALIVE"


def _told(ask: Callable[[float], Any], otherwise: Any) -> Any:
    """What an inbox says; `otherwise` while it is silent, or dead, which ends this controller's work."""
    try:
        return ask(_EVERY_S)
    except (GetTimeoutError, InboxLost):
        return otherwise
