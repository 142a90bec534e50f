"""What all policy-gradient methods can be told."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from rlhf_ray.algorithms.aggregation import Aggregation
from rlhf_ray.algorithms.base import AlgorithmConfig


class PolicyGradientConfig(AlgorithmConfig):
    """What every policy-gradient method has."""

    needs_critic: ClassVar[bool] = False

    clip_range: PositiveFloat | None = 0.2
    """How far the ratio to the rollout-time policy may move a token's loss; null: no clipping."""
    clip_range_high: PositiveFloat | None = None
    """The same upwards; null: as `clip_range`. A larger one is DAPO's clip-higher (arXiv 2503.14476, section 3.1)."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    entropy_coef: Annotated[float, Field(ge=0)] = 0.0
    aggregation: Aggregation = "token_mean"
    aggregation_length: PositiveInt | None = None
    """The constant that `aggregation: constant` divides by: the most tokens a response may have."""
    kl_placement: Literal["reward", "loss"] = "reward"
    """k1 per token subtracted from the reward, or `kl_estimator` per token added to the loss."""
    kl_estimator: Literal["k1", "k2", "k3"] | None = None
    """Null: k1 in the reward, k2 in the loss. In the loss k3 has the value of k3 and the gradient of k2."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.05
    old_logprobs: Literal["learner", "engine"] = "learner"
    """Who says what the sampling policy gave to each token: the learner, in a pass of its own, or the engine, while it
    differs from the learner by less than `sentinels.rollout_drift_mean` (a switch is an event)."""
    importance: Literal["token", "sequence"] | None = None
    """Weigh what was sampled by the ratio of the learner's old policy to the engine's, of each token or of the whole
    response, cut off at `importance_cap`; null: 1."""
    importance_cap: PositiveFloat = 2.0
    max_kl_to_old: PositiveFloat | None = None
    """Stop the inner epochs when the mean k3 to the rollout-time policy passes this (nats per token)."""

    @model_validator(mode="after")
    def _sound(self) -> PolicyGradientConfig:
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError("kl_target needs a kl_coef above 0: the controller multiplies it, and 0 stays 0")
        if self.kl_placement == "loss" and self.kl_estimator == "k1":
            raise ValueError("kl_estimator = k1 has no gradient as a loss on average: take k2 or k3")
        if self.kl_placement == "reward" and self.kl_estimator not in (None, "k1"):
            raise ValueError(f"kl_estimator = {self.kl_estimator} is for the loss; in the reward take k1, or null")
        if (self.aggregation == "constant") != (self.aggregation_length is not None):
            raise ValueError("aggregation = constant and aggregation_length belong together: set both or neither")
        if self.clip_range is None and (self.clip_range_high is not None or self.dual_clip is not None):
            raise ValueError("clip_range = null switches clipping off: clip_range_high and dual_clip need a clip_range")
        return self
