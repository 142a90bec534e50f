"""PPO."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from rlhf_ray.strict import Strict


class PPOConfig(Strict):
    """Proximal policy optimization (Schulman et al. 2017, arXiv 1707.06347) with a KL penalty to the reference."""

    type: Literal["ppo"] = "ppo"
    num_epochs: PositiveInt = 1
    """Passes over a step's rollouts."""
    num_minibatches: PositiveInt = 1
    """Optimizer steps in one pass."""
    clip_range: PositiveFloat = 0.2
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    value_clip_range: PositiveFloat | None = 0.5
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    whiten_advantages: bool = True
    entropy_coef: Annotated[float, Field(ge=0)] = 0.0
    kl_placement: Literal["reward", "loss"] = "reward"
    """k1 per token subtracted from the reward, or k2 per token added to the loss."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.05
    kl_target: PositiveFloat | None = None
    """Mean k1 per response, summed over its tokens (nats per sequence), that the adaptive controller steers to;
    null keeps kl_coef fixed."""
    kl_horizon: PositiveInt = 2000
    """Sequences over which the controller acts (Ziegler et al. 2019, section 2.2)."""
    max_kl_to_old: PositiveFloat | None = None
    """Stop the inner epochs when the mean k3 to the rollout-time policy passes this (nats per token)."""
