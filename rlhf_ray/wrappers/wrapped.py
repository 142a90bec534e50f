"""Ports around the ports of a run, as its config asks: reused log-probs, dynamic sampling, rollouts that run ahead."""

from __future__ import annotations

from dataclasses import replace

from rlhf_ray.algorithms.policy_gradient_config import PolicyGradientConfig
from rlhf_ray.config import RunConfig
from rlhf_ray.ports import Roles
from rlhf_ray.wrappers.dynamic_sampling import DynamicSampling
from rlhf_ray.wrappers.lagged import LaggedRollouts
from rlhf_ray.wrappers.old_logprobs import ReusedLogprobs


def wrapped(config: RunConfig, roles: Roles, next_step: int) -> Roles:
    """What the training loop talks to; evaluations talk to `roles` themselves."""
    algorithm, train = config.algorithm, config.train
    if isinstance(algorithm, PolicyGradientConfig) and algorithm.old_logprobs == "engine":
        bound = config.sentinels.rollout_drift_mean
        roles = replace(roles, policy=ReusedLogprobs(roles.policy, bound, roles.journal))
    if train.dynamic_sampling is not None:
        rounds, truncated = train.dynamic_sampling.max_rounds, config.reward.truncated
        sampling = DynamicSampling(roles.prompts, roles.rollout, roles.reward, rounds, truncated)
        roles = replace(roles, rollout=sampling, reward=sampling, found=sampling.found)
    if train.max_lag:
        samples = config.rollout.samples_per_prompt
        ahead = LaggedRollouts(
            roles.prompts, roles.rollout, train.max_lag, samples, range(next_step, train.num_steps + 1)
        )
        roles = replace(roles, prompts=ahead, rollout=ahead, found=ahead.found)
    return roles
