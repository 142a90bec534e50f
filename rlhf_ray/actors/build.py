"""Makes the actors of a run: which class, which resources, which name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from rlhf_ray.actors.frozen import ReferenceActor, RewardActor
from rlhf_ray.actors.group import LearnerGroup
from rlhf_ray.actors.learner import CriticLearner, PolicyLearner
from rlhf_ray.actors.pools import ReferencePool, RewardPool, RolloutPool
from rlhf_ray.actors.rollout import RolloutActor
from rlhf_ray.actors.vllm_engine import EngineSpec, engine_environment
from rlhf_ray.config import RunConfig


def build_groups(
    config: RunConfig, policy: Path, reward: Path | None, run_dir: Path, state: Path | None, threads: int
) -> tuple[LearnerGroup, LearnerGroup]:
    """The policy's and the critic's Ray Train groups, starting."""
    deadline = config.train.deadline_s
    common: dict[str, Any] = {"run_dir": run_dir, "state": state, "threads": threads, "deadline_s": deadline}
    critic = reward if config.critic.init == "reward" else policy
    arguments = {"config": config, "run_dir": run_dir}
    return (
        LearnerGroup("policy", PolicyLearner, {**arguments, "folder": policy}, config.policy, **common),
        LearnerGroup("critic", CriticLearner, {**arguments, "folder": critic}, config.critic, **common),
    )


def build_pools(
    config: RunConfig, policy: Path, rewards: Sequence[Path | None], run_dir: Path, threads: int
) -> tuple[RolloutPool, ReferencePool, RewardPool]:
    """The rollout engines, reference replicas and reward replicas, starting."""
    deadline = config.train.deadline_s
    rollout, reference, reward = config.rollout, config.reference, config.reward
    spec = EngineSpec(
        folder=policy,
        dtype=config.model.dtype if config.model.dtype != "auto" else ("bfloat16" if rollout.gpus else "float32"),
        max_model_len=config.prompts.max_prompt_tokens + rollout.max_new_tokens,
        threads=threads,
        on_gpu=rollout.gpus > 0,
        rollout=rollout,
    )
    engines = [
        _actor(RolloutActor, f"rollout-{i}", run_dir, rollout.cpus, rollout.gpus * rollout.tensor_parallel,
               env=engine_environment(spec), max_concurrency=4).remote(spec)
        for i in range(rollout.engines)
    ]
    references = [
        _actor(ReferenceActor, f"reference-{i}", run_dir, reference.cpus, reference.gpus).remote(
            policy, config.model.dtype, rollout.temperature, threads
        )
        for i in range(reference.replicas)
    ]
    scorers = [
        _actor(RewardActor, f"reward-{i}", run_dir, reward.cpus, reward.gpus).remote(reward, tuple(rewards), threads)
        for i in range(reward.replicas)
    ]
    return (
        RolloutPool(engines, deadline, config.seed),
        ReferencePool(references, deadline, config.policy.microbatch_tokens),
        RewardPool(scorers, deadline),
    )


def _actor(
    cls: type,
    name: str,
    run_dir: Path,
    cpus: float,
    gpus: float,
    env: dict[str, str] | None = None,
    max_concurrency: int = 1,
) -> Any:
    return ray.remote(cls).options(
        name=f"{name}:{run_dir.name}",
        num_cpus=cpus,
        num_gpus=gpus,
        max_concurrency=max_concurrency,
        runtime_env={"env_vars": env or {}},
    )
