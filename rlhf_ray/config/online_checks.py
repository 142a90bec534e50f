"""What settings of an online run must agree on, beyond what each says for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rlhf_ray.algorithms.policy_gradient_config import PolicyGradientConfig
from rlhf_ray.rewards.base import OverlongRewardConfig

if TYPE_CHECKING:
    from rlhf_ray.config.online import RunConfig


def inconsistencies(config: RunConfig) -> list[str]:
    """A sentence for each thing that is wrong, with the setting to change; empty if all is well."""
    checks = (_size_problems, _learner_problems, _reward_problems, _rollout_problems)
    return [problem for check in checks for problem in check(config)]


def _learner_problems(config: RunConfig) -> list[str]:
    problems = []
    for role, learner in config.learners.items():
        if learner.num_workers > 1 and learner.gpus_per_worker % 1:
            problems.append(f"{role}.gpus_per_worker = {learner.gpus_per_worker}: ranks cannot share a GPU; use 0 or 1")
    if config.rollout.tensor_parallel > 1 and config.rollout.gpus != 1:
        problems.append("rollout.tensor_parallel above 1 needs rollout.gpus = 1: one whole GPU for each rank")
    if config.rollout.tensor_parallel > 1 and config.rollout.engine == "torch":
        problems.append("rollout.engine = torch has one rank: set rollout.tensor_parallel to 1, or engine to vllm")
    if (config.rollout.gpus > 0) != (config.policy.gpus_per_worker > 0):
        problems.append("rollout.gpus and policy.gpus_per_worker must both be 0 or both be above 0")
    if config.algorithm.needs_whole_weights and config.policy.deepspeed.zero_stage == 3:
        problems.append(f"algorithm.type = {config.algorithm.type} needs policy.deepspeed.zero_stage 0, 1 or 2")
    if config.algorithm.needs_whole_weights and config.policy.gradient_checkpointing:
        problems.append(f"algorithm.type = {config.algorithm.type} needs policy.gradient_checkpointing: false")
    if config.policy_freeze_steps >= config.train.num_steps:
        problems.append("critic.policy_freeze_steps must be smaller than train.num_steps")
    return problems


def _reward_problems(config: RunConfig) -> list[str]:
    costs = [source.name for source in config.reward.sources if source.cost]
    problems = []
    if config.algorithm.constrained and not costs:
        problems.append(f"algorithm.type = {config.algorithm.type} needs a reward source with `cost: true`")
    if costs and not config.algorithm.constrained:
        problems.append(
            f"reward source {costs[0]} is a cost, which algorithm.type = {config.algorithm.type} ignores: take "
            "ppo_lagrangian, or give it a negative weight instead of `cost: true`"
        )
    most = config.rollout.max_new_tokens
    problems += [
        f"reward source {source.name}: max_tokens = {source.max_tokens} is above rollout.max_new_tokens = {most}, "
        "so that no response would get the whole penalty"
        for source in config.reward.sources
        if isinstance(source, OverlongRewardConfig) and source.max_tokens > most
    ]
    return problems


def _rollout_problems(config: RunConfig) -> list[str]:
    algorithm, train, problems = config.algorithm, config.train, []
    if train.max_lag and isinstance(algorithm, PolicyGradientConfig) and algorithm.importance is None:
        problems.append(
            f"train.max_lag = {train.max_lag}: {algorithm.type} must weigh what an older policy sampled; set "
            "algorithm.importance to token or sequence, or max_lag to 0"
        )
    if train.max_lag and train.dynamic_sampling:
        problems.append("train.max_lag and train.dynamic_sampling exclude each other: drop one of them")
    if train.dynamic_sampling and config.rollout.samples_per_prompt < 2:
        problems.append("train.dynamic_sampling compares answers: set rollout.samples_per_prompt to 2 or more")
    return problems


def _size_problems(config: RunConfig) -> list[str]:
    problems, algorithm = [], config.algorithm
    rollouts, units, of_what = config.rollouts_per_step, config.units_per_step, config.algorithm.unit_name
    if config.rollout.samples_per_prompt < algorithm.min_samples:
        problems.append(
            f"rollout.samples_per_prompt = {config.rollout.samples_per_prompt}: algorithm.type = {algorithm.type} "
            f"compares answers to the same prompt and needs at least {algorithm.min_samples}"
        )
    if units % algorithm.num_minibatches:
        samples = " x rollout.samples_per_prompt" if algorithm.unit == 1 else ""
        problems.append(
            f"train.prompts_per_step{samples} = {units} {of_what} do not divide into "
            f"algorithm.num_minibatches = {algorithm.num_minibatches} equal minibatches"
        )
    else:
        problems += [
            f"a minibatch of {config.minibatch_size} {of_what} does not divide over "
            f"{role}.num_workers = {learner.num_workers} ranks"
            for role, learner in config.learners.items()
            if config.minibatch_size % learner.num_workers
        ]
    if algorithm.kl_target is not None and 0.2 * rollouts >= algorithm.kl_horizon:
        problems.append(
            f"algorithm.kl_horizon = {algorithm.kl_horizon} sequences is too short for {rollouts} rollouts a "
            "step: the controller could reach 0 in one step; take some fifty times the rollouts"
        )
    return problems
