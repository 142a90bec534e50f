"""What the trials of a sweep can have in common, and what they cannot and why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_ray.config import PreferenceConfig, RunConfig
from rlhf_ray.config.offline import DPOConfig
from rlhf_ray.sweep.plan import Plan

if TYPE_CHECKING:  # loads torch
    from rlhf_ray.actors.shared import Shared

_RESTARTS = 3  # of a shared actor; the trial that it served goes on from its newest commit
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
    actors = make_actors(config, folders.policy, folders.rewards, sweep_dir, threads_of(config), roles, _RESTARTS)
    return Shared(actors, make_lease() if "rollout" in actors else None)


def cpus(plan: Plan) -> tuple[Mapping[str, float], Mapping[str, float]]:
    """CPUs by role: of what is shared, and of one trial."""
    from rlhf_ray.resources import requests

    config = plan.base
    if not isinstance(config, RunConfig):
        return {}, {"group": config.train.num_workers * config.train.cpus_per_worker}
    asked = {role.role: role.total_cpus for role in requests(config) if role.total_cpus}
    roles = shared_roles(plan)
    return (
        {role: number for role, number in asked.items() if role in roles},
        {role: number for role, number in asked.items() if role not in roles},
    )


def _within(path: str, sections: tuple[str, ...]) -> bool:
    return any(path == section or path.startswith(f"{section}.") for section in sections)
