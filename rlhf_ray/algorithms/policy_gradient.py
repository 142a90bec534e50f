"""What policy-gradient methods share. A method adds its config, `estimate`, and, if not the clipped, `token_losses`."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Generic, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf_ray import metrics as names
from rlhf_ray.algorithms import ops
from rlhf_ray.algorithms.aggregation import loss_weights
from rlhf_ray.algorithms.base import kl_to_reference
from rlhf_ray.algorithms.importance import importance_metrics, truncated_importance
from rlhf_ray.algorithms.kl import KLController
from rlhf_ray.algorithms.policy_gradient_config import PolicyGradientConfig
from rlhf_ray.algorithms.report import LossReport, surrogate_report
from rlhf_ray.ports import Metrics, State
from rlhf_ray.types import Batch, present

Config = TypeVar("Config", bound=PolicyGradientConfig)
Estimate = tuple[Batch, Metrics]
"""A batch with advantages, and what was found on the way."""
TokenLosses = tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]


class PolicyGradient(abc.ABC, Generic[Config]):
    """Implements `ports.Algorithm`, whose `advantages` the controller calls once a step, and `base.OnlineAlgorithm`,
    whose losses the learners' workers call: those use the config alone."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._controller = KLController(config.kl_coef, config.kl_target, config.kl_horizon)
        self._coef_of_step = config.kl_coef

    @abc.abstractmethod
    def estimate(self, batch: Batch, rewards: Float[Tensor, "B T"], prompts: Int[Tensor, " B"]) -> Estimate:
        """The whole step's batch with `advantages`, and metrics of the method's own. `rewards` are those of tokens: the
        row's reward on its last response token, less the KL penalty if that is placed in the reward."""

    @property
    def kl_coef(self) -> float:
        """The KL coefficient of the step whose advantages were computed last; `policy_loss` of that step takes it."""
        return self._coef_of_step

    def advantages(self, batch: Batch, prompts: Int[Tensor, " B"], adapt: bool = True) -> tuple[Batch, Metrics]:
        """The batch with `advantages`, 0 outside the loss mask, and the step's KL and coefficient. The KL is that of
        every response, and moves the coefficient of the next step unless `adapt` is false (the policy is frozen)."""
        old, ref = present(batch.old_logprobs, "old_logprobs"), present(batch.ref_logprobs, "ref_logprobs")
        self._coef_of_step = self._controller.coef
        rewards = ops.place_reward(batch.rewards.float(), batch.response_mask)
        if self.config.kl_placement == "reward":
            rewards = rewards - self.kl_coef * torch.where(batch.response_mask, ops.k1(old, ref), 0.0)
        estimated, found = self.estimate(batch, rewards, prompts)
        advantages = torch.where(batch.loss_mask, present(estimated.advantages, "advantages"), 0.0)
        if self.config.importance is not None:  # every loss is proportional to a positive factor of its advantage
            cap = self.config.importance_cap
            weights = truncated_importance(batch, self.config.importance, cap)
            advantages, found = advantages * weights, found | importance_metrics(batch, weights, cap)
        metrics = kl_to_reference(batch) | {names.KL_COEF: self.kl_coef} | found
        if adapt:
            self._controller.update(metrics[names.KL_PER_SEQUENCE], len(batch))
        return estimated.with_(advantages=advantages), metrics

    def weights(self, minibatch: Batch) -> Float[Tensor, "B T"]:
        """Those of the config's aggregation over the minibatch."""
        return loss_weights(minibatch.loss_mask, self.config.aggregation, self.config.aggregation_length)

    def token_losses(self, logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> TokenLosses:
        """The loss of each token, and where a clip cut its gradient. The arguments are `[B, T]`, 0 outside the mask."""
        clips = self.config.clip_range, self.config.dual_clip, self.config.clip_range_high
        return ops.clipped_policy_loss(logprobs, old, advantages, *clips)

    def policy_loss(
        self,
        logprobs: Float[Tensor, "B T"],
        entropy: Float[Tensor, "B T"],
        batch: Batch,
        weights: Float[Tensor, "B T"],
        kl_coef: float,
    ) -> tuple[Float[Tensor, ""], LossReport]:
        """The policy's loss on a microbatch: a weighted sum over tokens, to be added up without any division.

        A token of weight 0 has no part in anything; with none left the loss is a zero that still has a (zero) gradient.
        `kl_coef` matters with `kl_placement: loss` only.
        """
        config = self.config
        mask = batch.loss_mask & (weights > 0)
        weights = torch.where(mask, weights, 0.0)
        new = torch.where(mask, logprobs, 0.0)
        old = torch.where(mask, present(batch.old_logprobs, "old_logprobs"), 0.0)
        advantages = torch.where(mask, present(batch.advantages, "advantages"), 0.0)
        entropy = torch.where(mask, entropy if config.entropy_coef else entropy.detach(), 0.0)
        losses, clipped = self.token_losses(new, old, advantages, mask)
        if config.entropy_coef:
            losses = losses - config.entropy_coef * entropy
        if config.kl_placement == "loss":
            ref = torch.where(mask, present(batch.ref_logprobs, "ref_logprobs"), 0.0)
            kl = ops.kl_loss(new, ref, config.kl_estimator or "k2")
            weigh = truncated_importance(batch, config.importance, config.importance_cap) if config.importance else 1.0
            losses = losses + kl_coef * weigh * kl
        loss = (weights * losses).sum()
        return loss, surrogate_report(loss, weights, new, old, entropy, clipped)

    def stops(self, minibatch: Metrics) -> bool:
        """Once the policy is further from the one that sampled than `max_kl_to_old`."""
        limit = self.config.max_kl_to_old
        return limit is not None and minibatch.get(names.POLICY_KL_TO_OLD, 0.0) > limit

    def state_dict(self) -> State:
        """The KL controller's state, ready for JSON."""
        return {"kl": self._controller.state_dict()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continues from `state_dict()`; a `ValueError` if it is not one."""
        self._controller.load_state_dict(state.get("kl"))
        self._coef_of_step = self._controller.coef
