"""What the trials of a sweep can have in common, and what they cannot and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_ray.config import PreferenceConfig, RunConfig
from rlhf_ray.config.offline import DPOConfig
from rlhf_ray.errors import UserError
from rlhf_ray.resources import least_memory_gib, requests
from rlhf_ray.sweep.plan import Plan

if TYPE_CHECKING:  # loads torch
    from rlhf_ray.actors.shared import Shared

_NEEDS = {
    "rollout": ("model", "rollout", "prompts.max_prompt_tokens"),
    "reference": ("model", "reference", "rollout.temperature"),
    "reward": ("reward",),
}
"""The settings that an actor is made with. Others reach it with each request."""
_WITH_REQUESTS = ("rollout.samples_per_prompt", "reward.truncated")


def unshared(plan: Plan) -> dict[str, str]:
    """The roles that every trial of an online sweep makes for itself, with the reason."""
    reasons: dict[str, str] = {}
    if not isinstance(plan.base, RunConfig):
        return reasons
    for role, needs in _NEEDS.items():
        varied = [path for path in plan.config.space if _within(path, needs) and not _within(path, _WITH_REQUESTS)]
        if varied:
            reasons[role] = f"{varied[0]} varies, which its actors are made with"
    if plan.base.train.max_lag or "train.max_lag" in plan.config.space:
        reasons["rollout"] = "with train.max_lag the engines are hardly ever free"
    return reasons


def shared_roles(plan: Plan) -> list[str]:
    """What is shared, in words for the summary."""
    if isinstance(plan.base, RunConfig):
        kept = unshared(plan)
        return [role for role in _NEEDS if role not in kept]
    found = ["token ids"]
    if isinstance(plan.base, PreferenceConfig) and isinstance(plan.base.method, DPOConfig):
        found += ["reference log-probs"] if plan.base.method.precompute_reference else []
    return found


def make_shared(plan: Plan, sweep_dir: Path) -> Shared:
    """The shared actors of an online sweep, starting; the caller owns them."""
    from rlhf_ray.actors.build import make_actors
    from rlhf_ray.actors.shared import Shared, make_lease
    from rlhf_ray.cluster import folders_of, threads_of

    config = plan.base
    if not isinstance(config, RunConfig):
        return Shared()
    folders, roles = folders_of(config), shared_roles(plan)
    actors = make_actors(config, folders.policy, folders.rewards, sweep_dir, threads_of(config), roles)
    return Shared(actors, make_lease() if "rollout" in actors else None)


@dataclass(frozen=True, slots=True)
class Demand:
    """What a sweep asks for of one resource, by role: once for all trials, and for each that runs."""

    unit: str
    shared: Mapping[str, float]
    each: Mapping[str, float]

    def total(self, trials: int) -> float:
        """With so many trials at the same time."""
        return sum(self.shared.values()) + trials * sum(self.each.values())


def demands(plan: Plan) -> list[Demand]:
    """CPUs, GPUs, and at least so much memory as weights, gradients, Adam and caches of an online run take."""
    asked = requests(plan.base)
    memory = least_memory_gib(plan.base) if isinstance(plan.base, RunConfig) else {}
    by_unit = {
        "CPUs": {role.role: role.total_cpus for role in asked},
        "GPUs": {role.role: role.total_gpus for role in asked},
        "GiB of memory": memory,
    }
    roles = shared_roles(plan)
    return [
        Demand(
            unit,
            {role: amount for role, amount in amounts.items() if amount and role in roles},
            {role: amount for role, amount in amounts.items() if amount and role not in roles},
        )
        for unit, amounts in by_unit.items()
    ]


def check_room(plan: Plan, has: Mapping[str, float]) -> None:
    """A `UserError` if a cluster that `has` so much of each unit cannot hold `concurrent` trials at a time."""
    wanted = plan.config.concurrent
    for demand in demands(plan):
        one, free = sum(demand.each.values()), has[demand.unit] - demand.total(0)
        if demand.total(wanted) <= has[demand.unit] + 1e-6:
            continue
        most = max(0, int(free // one)) if one and free > 0 else 0
        parts = ", ".join(f"{role} {amount:.3g}" for role, amount in demand.each.items())
        beside = f" beside {demand.total(0):.3g} that all share" if demand.shared else ""
        raise UserError(
            f"concurrent = {wanted}: a trial asks for {one:.3g} {demand.unit} ({parts}){beside}, and the cluster has "
            f"{has[demand.unit]:.3g}, so it holds {most} at a time; lower concurrent, or join a larger cluster with "
            "placement.address"
        )


def _within(path: str, sections: tuple[str, ...]) -> bool:
    return any(path == section or path.startswith(f"{section}.") for section in sections)
