"""PPO: from a scored batch to advantages, and from advantages to the losses of the policy and of the critic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from rlhf_ray import metrics as names
from rlhf_ray.algorithms import ops
from rlhf_ray.algorithms.base import AlgorithmConfig, kl_to_reference
from rlhf_ray.algorithms.kl import KLController
from rlhf_ray.algorithms.report import LossReport, report_of
from rlhf_ray.ports import Metrics, State
from rlhf_ray.types import Batch, present


class PPOConfig(AlgorithmConfig):
    """Proximal policy optimization (Schulman et al. 2017, arXiv 1707.06347) with a KL penalty to the reference."""

    needs_critic: ClassVar[bool] = True

    type: Literal["ppo"] = "ppo"
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
    max_kl_to_old: PositiveFloat | None = None
    """Stop the inner epochs when the mean k3 to the rollout-time policy passes this (nats per token)."""

    @model_validator(mode="after")
    def _controllable(self) -> PPOConfig:
        if self.kl_target is not None and self.kl_coef == 0:
            raise ValueError("kl_target needs a kl_coef above 0: the controller multiplies it, and 0 stays 0")
        return self

    def make(self) -> PPO:
        """The algorithm of this config."""
        return PPO(self)


class PPO:
    """Proximal policy optimization with generalized advantage estimation; implements `ports.Algorithm` and
    `base.OnlineAlgorithm`.

    The controller calls `advantages` once a step; the learners' workers call the losses, which use the config alone.
    """

    def __init__(self, config: PPOConfig) -> None:
        self.config = config
        self._controller = KLController(config.kl_coef, config.kl_target, config.kl_horizon)
        self._coef_of_step = config.kl_coef

    @property
    def kl_coef(self) -> float:
        """The KL coefficient of the step whose advantages were computed last; `policy_loss` of that step takes it."""
        return self._coef_of_step

    def advantages(
        self, batch: Batch, prompts: Int[Tensor, " B"], adapt: bool = True
    ) -> tuple[Batch, Metrics]:
        """The batch with `advantages` and `returns`, and the step's KL, coefficient and explained variance.

        Takes the whole step's batch, with `old_logprobs`, `ref_logprobs` and `values`; which row answers which of the
        `prompts` is nothing to PPO. Rows that the loss mask leaves out keep out of the whitening and of the explained
        variance; the KL is that of every response. Then the KL controller moves, for the next step, unless `adapt` is
        false (the policy is not trained now). Without a defined explained variance that metric is left out.
        """
        old, ref = present(batch.old_logprobs, "old_logprobs"), present(batch.ref_logprobs, "ref_logprobs")
        values = present(batch.values, "values").float()
        self._coef_of_step = self._controller.coef
        kl = ops.k1(old, ref)
        rewards = ops.place_reward(batch.rewards.float(), batch.response_mask)
        if self.config.kl_placement == "reward":
            rewards = rewards - self.kl_coef * kl
        advantages, returns = ops.gae(rewards, values, batch.response_mask, self.config.gamma, self.config.gae_lambda)
        if self.config.whiten_advantages:
            advantages = ops.whiten(advantages, batch.loss_mask)
        metrics = kl_to_reference(batch) | {names.KL_COEF: self.kl_coef}
        explained = float(ops.explained_variance(values, returns, batch.loss_mask))
        if not math.isnan(explained):
            metrics[names.CRITIC_EXPLAINED_VARIANCE] = explained
        if adapt:
            self._controller.update(metrics[names.KL_PER_SEQUENCE], len(batch))
        return batch.with_(advantages=torch.where(batch.loss_mask, advantages, 0.0), returns=returns), metrics

    def weights(self, minibatch: Batch) -> Float[Tensor, "B T"]:
        """Those of the mean over the loss tokens of the minibatch."""
        return ops.token_weights(minibatch.loss_mask)

    def policy_loss(
        self,
        logprobs: Float[Tensor, "B T"],
        entropy: Float[Tensor, "B T"],
        batch: Batch,
        weights: Float[Tensor, "B T"],
        kl_coef: float,
    ) -> tuple[Float[Tensor, ""], LossReport]:
        """The policy's loss on a microbatch: a weighted sum over tokens, to be added up without any division.

        `weights` are rows of those of the whole minibatch; a token of weight 0 has no part in the
        loss, the gradients or the report. With none left the loss is a zero that still has a (zero) gradient.
        `kl_coef` is `PPO.kl_coef` of the controller; it matters with `kl_placement: loss` only, where
        `kl_coef * k2(policy, reference)` joins the loss.
        """
        mask = batch.loss_mask & (weights > 0)
        weights = torch.where(mask, weights, 0.0)
        new = torch.where(mask, logprobs, 0.0)
        old = torch.where(mask, present(batch.old_logprobs, "old_logprobs"), 0.0)
        advantages = torch.where(mask, present(batch.advantages, "advantages"), 0.0)
        entropy = torch.where(mask, entropy if self.config.entropy_coef else entropy.detach(), 0.0)
        losses, clipped = ops.clipped_policy_loss(new, old, advantages, self.config.clip_range, self.config.dual_clip)
        if self.config.entropy_coef:
            losses = losses - self.config.entropy_coef * entropy
        if self.config.kl_placement == "loss":
            ref = torch.where(mask, present(batch.ref_logprobs, "ref_logprobs"), 0.0)
            losses = losses + kl_coef * ops.k2(new, ref)
        loss = (weights * losses).sum()
        with torch.no_grad():
            sums = {
                names.POLICY_LOSS: loss,
                names.POLICY_CLIP_FRACTION: (weights * clipped).sum(),
                names.POLICY_KL_TO_OLD: (weights * ops.k3(old, new)).sum(),
                names.ENTROPY: (weights * entropy).sum(),
            }
            deviation = torch.expm1(ops.log_ratio(new, old)).abs()
            peak = deviation.max() if deviation.numel() else torch.zeros_like(loss)
        return loss, report_of(sums, {names.FIRST_RATIO: peak})

    def value_loss(
        self, values: Float[Tensor, "B T"], batch: Batch, weights: Float[Tensor, "B T"]
    ) -> tuple[Float[Tensor, ""], LossReport]:
        """The critic's loss on a microbatch, a weighted sum over tokens like `policy_loss`."""
        mask = batch.loss_mask & (weights > 0)
        weights = torch.where(mask, weights, 0.0)
        losses, clipped = ops.clipped_value_loss(
            torch.where(mask, values, 0.0),
            torch.where(mask, present(batch.values, "values"), 0.0),
            torch.where(mask, present(batch.returns, "returns"), 0.0),
            self.config.value_clip_range,
        )
        loss = (weights * losses).sum()
        return loss, report_of({names.CRITIC_LOSS: loss, names.CRITIC_CLIP_FRACTION: (weights * clipped).sum()}, {})

    def stops(self, minibatch: Metrics) -> bool:
        """Once the policy is further from the one that sampled than `max_kl_to_old`."""
        limit = self.config.max_kl_to_old
        return limit is not None and minibatch.get(names.POLICY_KL_TO_OLD, 0.0) > limit

    def state_dict(self) -> State:
        """The KL controller's state, ready for JSON."""
        return {"kl": self._controller.state_dict()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continues from `state_dict()`; a `ValueError` if it is not one."""
        kl = state.get("kl")
        if not isinstance(kl, Mapping):
            raise ValueError("the saved algorithm state has no 'kl' part: it is not PPO's")
        self._controller.load_state_dict(kl)
        self._coef_of_step = self._controller.coef
