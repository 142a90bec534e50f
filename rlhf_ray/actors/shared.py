"""Actors that several runs use: frozen models at any time, engines by turns, each run with its own weights."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError

from rlhf_ray.actors.pools import RolloutPool
from rlhf_ray.actors.weight_push import WeightBroadcast
from rlhf_ray.errors import RunError
from rlhf_ray.ports import Metrics
from rlhf_ray.types import Prompt, Rollout


@dataclass(frozen=True, slots=True)
class Shared:
    """Actors by role that outlive a controller, and the lease of the engines if other runs use them as well."""

    actors: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    lease: Any = None


def new_owner(run_dir: Path) -> str:
    """A name for this run at the engines that no other attempt has."""
    return f"{run_dir.name}#{secrets.token_hex(4)}"


class Lease:
    """An actor that says who may use the engines: one owner at a time, in the order in which they asked."""

    def __init__(self) -> None:
        self._holder: str | None = None
        self._last: str | None = None
        self._known: set[str] = set()
        self._gone: set[str] = set()
        self._changed = asyncio.Condition()

    async def acquire(self, owner: str) -> bool:
        """Waits until the engines are free; true if nobody has used them since `owner` did."""
        self._known.add(owner)
        async with self._changed:
            await self._changed.wait_for(lambda: self._holder in (None, owner) or owner in self._gone)
            if owner in self._gone:
                return False
            mine = self._last == owner
            self._holder = self._last = owner
            return mine

    async def release(self, owner: str) -> None:
        """Others may have them."""
        async with self._changed:
            if self._holder == owner:
                self._holder = None
            self._changed.notify_all()

    async def leave(self, owner: str) -> None:
        """Frees what `owner` has or waits for; it does not come back."""
        self._gone.add(owner)
        await self.release(owner)

    async def bury(self, run: str) -> None:
        """As `leave`, for a run that died and cannot say so."""
        for owner in [owner for owner in self._known - self._gone if owner.partition("#")[0] == run]:
            await self.leave(owner)

    async def holder(self) -> str | None:
        """Who has the engines."""
        return self._holder


def make_lease() -> Any:
    """A handle to a new one."""
    return ray.remote(Lease).options(num_cpus=0, max_concurrency=1000).remote()


class LeasedEngines:
    """Rollout port and weight push of a run that shares its engines.

    It has them during a push and during a generation, not between: there a sweep may pause it. Whoever generates after
    another run pushes its weights again, so that no run can sample from another's.
    """

    def __init__(self, lease: Any, pool: RolloutPool, weights: WeightBroadcast) -> None:
        self._lease, self._pool, self._weights = lease, pool, weights
        self._version = 0

    def push(self, version: int) -> Metrics:
        """Gives the engines this run's weights."""
        self._version = version
        self._take()
        try:
            return self._weights.push(version)
        finally:
            self._give_back()

    def generate(self, prompts_P: Sequence[Prompt], num_samples: int, step: int) -> Iterator[Rollout]:
        """As the pool's; others get the engines afterwards."""
        mine = self._take()
        try:
            if not mine:
                self._weights.push(self._version)
            yield from self._pool.generate(prompts_P, num_samples, step)
        finally:
            self._give_back()

    def leave(self) -> None:
        """The run is over."""
        ray.get(self._lease.leave.remote(self._pool.owner))

    def _give_back(self) -> None:
        ray.get(self._lease.release.remote(self._pool.owner))

    def _take(self) -> bool:
        """Waits for the engines; true if they have this run's weights still."""
        owner, deadline = self._pool.owner, self._pool.deadline_s
        try:
            mine: bool = ray.get(self._lease.acquire.remote(owner), timeout=deadline)
        except GetTimeoutError:
            holder = ray.get(self._lease.holder.remote())
            self.leave()
            raise RunError(f"the shared engines were not free within {deadline:.0f} s: {holder} has them") from None
        if not mine:
            self._weights.disband()
        return mine
