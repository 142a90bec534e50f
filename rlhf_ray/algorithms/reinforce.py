"""REINFORCE with a baseline: returns of tokens, without a critic and without groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from jaxtyping import Float, Int
from pydantic import Field, PositiveFloat
from torch import Tensor

from rlhf_ray import metrics as names
from rlhf_ray.algorithms.aggregation import Aggregation
from rlhf_ray.algorithms.groups import returns_to_go
from rlhf_ray.algorithms.policy_gradient import Estimate, PolicyGradient
from rlhf_ray.algorithms.policy_gradient_config import PolicyGradientConfig
from rlhf_ray.ports import State
from rlhf_ray.types import Batch


class REINFORCEConfig(PolicyGradientConfig):
    """The policy gradient itself (Williams 1992, section 4), with a baseline that does not depend on the answer."""

    type: Literal["reinforce"] = "reinforce"
    clip_range: PositiveFloat | None = None
    aggregation: Aggregation = "sequence_mean"
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    baseline: Literal["none", "moving_average"] = "moving_average"
    """Subtracted from every token's return: nothing, or the average of earlier steps' mean rewards (of
    answers that count in the loss). It is taken before this step moves it, so the gradient stays unbiased."""
    baseline_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9

    def make(self) -> REINFORCE:
        """The algorithm of this config."""
        return REINFORCE(self)


class REINFORCE(PolicyGradient[REINFORCEConfig]):
    """Returns less a baseline. In later minibatches the ratio corrects for what the policy has moved meanwhile."""

    def __init__(self, config: REINFORCEConfig) -> None:
        super().__init__(config)
        self._baseline: float | None = None

    def estimate(self, batch: Batch, rewards: Float[Tensor, "B T"], prompts: Int[Tensor, " B"]) -> Estimate:
        """The batch with each token's return less the baseline."""
        returns = returns_to_go(rewards, batch.response_mask, self.config.gamma)
        usable = batch.loss_mask.any(dim=1)
        baseline = self._baseline or 0.0
        if self.config.baseline == "moving_average" and bool(usable.any()):
            mean = float(rewards.sum(dim=1)[usable].mean())
            momentum = self.config.baseline_momentum if self._baseline is not None else 0.0
            self._baseline = momentum * baseline + (1 - momentum) * mean
        return batch.with_(advantages=returns - baseline), {names.REWARD_BASELINE: baseline}

    def state_dict(self) -> State:
        """The KL controller's state and the baseline, ready for JSON."""
        return {**super().state_dict(), "baseline": self._baseline}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continues from `state_dict()`; a `ValueError` if it is not one."""
        super().load_state_dict(state)
        baseline = state.get("baseline")
        self._baseline = None if baseline is None else float(str(baseline))
