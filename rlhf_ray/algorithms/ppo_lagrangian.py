"""Constrained PPO: as much reward as a budget of cost allows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

from jaxtyping import Int
from pydantic import PositiveFloat
from torch import Tensor

from rlhf_ray import metrics as names
from rlhf_ray.algorithms.ppo import PPO, PPOConfig
from rlhf_ray.ports import Metrics, State
from rlhf_ray.types import Batch, present


class PPOLagrangianConfig(PPOConfig):
    """PPO under a constraint on the mean cost of a response (Dai et al. 2023, Safe RLHF, arXiv 2310.12773, section
    3.3). The costs are the reward sources with `cost: true`."""

    constrained: ClassVar[bool] = True

    type: Literal["ppo_lagrangian"] = "ppo_lagrangian"  # type: ignore[assignment]  # another member of the union
    cost_budget: float
    """The mean cost of a response that is allowed."""
    multiplier: PositiveFloat = 1.0
    """The price of a unit of cost at the start."""
    multiplier_rate: PositiveFloat = 0.05
    """Each step multiplies the price by exp(rate * (mean cost - budget))."""
    multiplier_range: tuple[PositiveFloat, PositiveFloat] = (1e-3, 100.0)

    def make(self) -> PPOLagrangian:
        """The algorithm of this config."""
        return PPOLagrangian(self)


class PPOLagrangian(PPO):
    """PPO on `(reward - price * cost) / (1 + price)`, with one critic of that sum; the price rises while the mean cost
    is above the budget and falls while it is below."""

    config: PPOLagrangianConfig

    def __init__(self, config: PPOLagrangianConfig) -> None:
        super().__init__(config)
        self._multiplier = config.multiplier

    def advantages(self, batch: Batch, prompts: Int[Tensor, " B"], adapt: bool = True) -> tuple[Batch, Metrics]:
        """As PPO's, of reward and cost together; then the price moves, for the next step, if `adapt`."""
        costs, price = present(batch.costs, "costs"), self._multiplier
        combined = (batch.rewards - price * costs) / (1 + price)
        out, metrics = super().advantages(batch.with_(rewards=combined), prompts, adapt)
        mean = float(costs.double().mean())
        if adapt:
            low, high = self.config.multiplier_range
            moved = math.log(price) + self.config.multiplier_rate * (mean - self.config.cost_budget)
            self._multiplier = math.exp(min(max(moved, math.log(low)), math.log(high)))
        return out, metrics | {names.COST_MEAN: mean, names.MULTIPLIER: price}

    def state_dict(self) -> State:
        """PPO's, and the price."""
        return super().state_dict() | {"multiplier": self._multiplier}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continues from `state_dict()`."""
        super().load_state_dict(state)
        self._multiplier = float(str(state["multiplier"]))
