"""Makes the actors of a run: which class, which resources, which name, which place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.util.placement_group import (
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rlhf_ray.actors.frozen import ReferenceActor, RewardActor
from rlhf_ray.actors.group import LearnerGroup
from rlhf_ray.actors.learner import CriticLearner, PolicyLearner
from rlhf_ray.actors.pools import HEALTH, ReferencePool, RewardPool, RolloutPool
from rlhf_ray.actors.rollout import RolloutActor
from rlhf_ray.actors.vllm_engine import EngineSpec, engine_environment
from rlhf_ray.actors.worker_group import WorkerGroup
from rlhf_ray.config import RunConfig
from rlhf_ray.errors import RunError
from rlhf_ray.tags import run_id, tags

POOLED = ("rollout", "reference", "reward")
"""The roles whose actors hold no state of a run, once an engine has taken its weights."""
_PLACING_S = 60.0
Place = Callable[[type, str, dict[str, float], dict[str, str]], Any]


def make_groups(config: RunConfig, run_dir: Path, threads: int) -> dict[str, LearnerGroup]:
    """A Ray Train group for each role that learns, starting; each has a placement group of its own. Which learner it is
    says `begin_groups`."""
    storage, strategy = run_dir / "ray_train", config.placement.strategy
    groups = {
        role: WorkerGroup(role, run_id(run_dir), learner, storage, threads, strategy)
        for role, learner in config.learners.items()
    }
    return {role: LearnerGroup(group, config.train.deadline_s) for role, group in groups.items()}


def begin_groups(
    config: RunConfig,
    groups: Mapping[str, LearnerGroup],
    policy: Path,
    reward: Path | None,
    run_dir: Path,
    state: Path | None,
) -> None:
    """Makes the groups the learners of this run."""
    arguments = {"config": config, "run_dir": run_dir}
    groups["policy"].begin(PolicyLearner, {**arguments, "folder": policy}, state)
    if "critic" in groups:
        start = reward if config.critic.init == "reward" else policy
        groups["critic"].begin(CriticLearner, {**arguments, "folder": start}, state)


def make_actors(
    config: RunConfig,
    policy: Path,
    rewards: Sequence[Path | None],
    run_dir: Path,
    threads: int,
    roles: Collection[str] = POOLED,
    groups: Mapping[str, LearnerGroup] | None = None,
) -> dict[str, list[Any]]:
    """The rollout engines, reference replicas and reward replicas that `roles` asks for, starting; by role. Ray starts
    one that dies again, as often as it takes: how often is too often is for the pools to say.

    `groups` are the learners beside them, which begin first on a GPU that they share with the engines: vLLM measures
    its free memory, which nobody else may fill meanwhile.
    """
    rollout, reference, reward = config.rollout, config.reference, config.reward
    spec = engine_spec(config, policy, threads)
    shared_gpu = config.placement.mode == "colocated" and rollout.gpus > 0
    first = [group.begun() for group in (groups or {}).values()] if shared_gpu else []
    needs = {
        "rollout": [{"CPU": rollout.cpus, "GPU": rollout.gpus * rollout.tensor_parallel}] * rollout.engines,
        "reference": [{"CPU": reference.cpus, "GPU": reference.gpus}] * reference.replicas,
        "reward": [{"CPU": reward.cpus, "GPU": reward.gpus}] * reward.replicas,
    }
    makers: dict[str, tuple[type, tuple[object, ...], dict[str, str]]] = {
        "rollout": (RolloutActor, (spec, *first), engine_environment(spec)),
        "reference": (ReferenceActor, (policy, config.model.dtype, rollout.temperature, threads), {}),
        "reward": (RewardActor, (reward, tuple(rewards), threads), {}),
    }
    asked = [role for role in POOLED if role in roles]
    make = _placer(config, run_dir, [need for role in asked for need in needs[role]])
    return {
        role: [make(cls, f"{role}-{i}", need, environment).remote(*arguments) for i, need in enumerate(needs[role])]
        for role in asked
        for cls, arguments, environment in [makers[role]]
    }


def engine_spec(config: RunConfig, policy: Path, threads: int) -> EngineSpec:
    """What one rollout engine needs to start."""
    rollout = config.rollout
    return EngineSpec(
        folder=policy,
        dtype=config.model.dtype if config.model.dtype != "auto" else ("bfloat16" if rollout.gpus else "float32"),
        max_model_len=config.prompts.max_prompt_tokens + rollout.max_new_tokens,
        threads=threads,
        on_gpu=rollout.gpus > 0,
        rollout=rollout,
    )


def make_pools(
    config: RunConfig, actors: Mapping[str, Sequence[Any]], owner: str
) -> tuple[RolloutPool, ReferencePool, RewardPool]:
    """The roles as this run sees them; `owner` is its name at engines that it shares with others."""
    deadline = config.train.deadline_s
    return (
        RolloutPool(actors["rollout"], deadline, config.seed, owner),
        ReferencePool(actors["reference"], deadline, config.policy.microbatch_tokens),
        RewardPool(actors["reward"], deadline),
    )


def end_actors(actors: Mapping[str, Sequence[Any]], run_dir: Path) -> None:
    """Ends them, and gives the run's places back: Ray keeps places until the driver ends."""
    for actor in (each for role in actors.values() for each in role):
        ray.kill(actor)
    name = _place_name(run_dir)
    if any(one["name"] == name and one["state"] != "REMOVED" for one in placement_group_table().values()):
        remove_placement_group(get_placement_group(name))


def _place_name(run_dir: Path) -> str:
    return f"roles:{run_id(run_dir)}"


def _placer(config: RunConfig, run_dir: Path, needs: Sequence[dict[str, float]]) -> Place:
    """A maker of named actors. With `placement.mode: separate` each takes the next bundle of one placement group."""
    where: list[Any] = ["DEFAULT"] * len(needs)
    if config.placement.mode == "separate" and needs:
        bundles = [{name: amount for name, amount in need.items() if amount} for need in needs]
        group = placement_group(bundles, strategy=config.placement.strategy, name=_place_name(run_dir))
        if not group.wait(_PLACING_S):
            raise RunError(
                f"placement: {config.placement.strategy} of {bundles} was not possible within {_PLACING_S:.0f} s on "
                f"{len(ray.nodes())} nodes with {ray.available_resources()} free; use another placement.strategy"
            )
        where = [PlacementGroupSchedulingStrategy(group, i) for i in range(len(needs))]
    places = iter(where)

    def make(cls: type, name: str, need: dict[str, float], environment: dict[str, str]) -> Any:
        actor = ray.remote(concurrency_groups={HEALTH: 1})(cls)  # type: ignore[call-overload]  # the stubs lack it
        return actor.options(
            name=f"{name}:{run_id(run_dir)}",
            num_cpus=need["CPU"],
            num_gpus=need["GPU"],
            max_restarts=-1,
            max_concurrency=4 if cls is RolloutActor else 1,  # an engine takes weights while it generates
            runtime_env={"env_vars": {**environment, **tags(run_id(run_dir), name)}},
            scheduling_strategy=next(places),
        )

    return make
