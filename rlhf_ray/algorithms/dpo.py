"""Online DPO: pairs of the policy's own samples, as the reward judges them, and the direct preference loss on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlhf_ray import metrics as names
from rlhf_ray.algorithms import ops
from rlhf_ray.algorithms.base import AlgorithmConfig, kl_to_reference
from rlhf_ray.algorithms.kl import KLController
from rlhf_ray.algorithms.report import LossReport, report_of
from rlhf_ray.ports import Metrics, State
from rlhf_ray.types import Batch, present

TIE = 1e-6
"""Rewards that differ by less than this share of the larger one are equal: float32 keeps seven digits."""
Loss = Literal["sigmoid", "ipo", "hinge"]


class OnlineDPOConfig(AlgorithmConfig):
    """Direct preference optimization on the policy's own samples (Guo et al. 2024, arXiv 2402.04792).

    Of the `rollout.samples_per_prompt` answers to a prompt the one with the highest reward is chosen and the one with
    the lowest rejected. `kl_target` steers `beta`, which is the coefficient of the KL in the objective behind DPO.

    Log-probabilities, of policy and reference alike, are those of the distribution that is sampled: `logits /
    rollout.temperature`. So the loss and the KL are about the same policy, and one pass of each model serves both. At
    temperature 1, the default, the loss is the one of the papers; at a lower one log-ratios are larger in proportion,
    so that `beta` acts like `beta / temperature` there.
    """

    needs_critic: ClassVar[bool] = False
    unit: ClassVar[int] = 2
    unit_name: ClassVar[str] = "pairs"
    min_samples: ClassVar[int] = 2

    type: Literal["online_dpo"] = "online_dpo"
    loss: Loss = "sigmoid"
    beta: PositiveFloat = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """The probability that the reward prefers the wrong answer, for `sigmoid` (conservative DPO)."""

    @model_validator(mode="after")
    def _smoothable(self) -> OnlineDPOConfig:
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError(f"label_smoothing is defined for loss = sigmoid only, not for {self.loss}: set it to 0")
        return self

    def units_per_step(self, prompts: int, samples: int) -> int:
        """A pair for each prompt."""
        return prompts

    def make(self) -> OnlineDPO:
        """The algorithm of this config."""
        return OnlineDPO(self)


class OnlineDPO:
    """Online direct preference optimization; implements `ports.Algorithm` and `base.OnlineAlgorithm`."""

    def __init__(self, config: OnlineDPOConfig) -> None:
        self.config = config
        self._controller = KLController(config.beta, config.kl_target, config.kl_horizon)
        self._beta_of_step = config.beta

    @property
    def kl_coef(self) -> float:
        """Beta of the step whose pairs were made last; `policy_loss` of that step takes it."""
        return self._beta_of_step

    def advantages(self, batch: Batch, prompts: Int[Tensor, " B"], adapt: bool = True) -> tuple[Batch, Metrics]:
        """The pairs as rows: chosen, rejected, chosen, rejected, ..., one pair for each of the `prompts` that rows
        answer; and the step's KL, beta, and number of prompts without a preference.

        Such a prompt has a pair too, so that minibatches keep their size, but its loss mask is empty. Rows that the
        loss mask leaves out are in no pair. The KL is that of every response, and moves beta for the next step unless
        `adapt` is false.
        """
        self._beta_of_step = self._controller.coef
        index, preferred = best_and_worst(batch.rewards, prompts, batch.loss_mask.any(dim=1))
        pairs = batch.rows(index)
        pairs = pairs.with_(loss_mask=pairs.loss_mask & preferred.repeat_interleave(2)[:, None])
        metrics = kl_to_reference(batch)
        if adapt:
            self._controller.update(metrics[names.KL_PER_SEQUENCE], len(batch))
        return pairs, metrics | {names.BETA: self.kl_coef, names.WITHOUT_PREFERENCE: float((~preferred).sum())}

    def weights(self, minibatch: Batch) -> Float[Tensor, "B T"]:
        """1 / (number of pairs in the minibatch) on every loss token of a pair."""
        pairs = minibatch.loss_mask.any(dim=1).sum() // 2
        return minibatch.loss_mask.float() / pairs.clamp(min=1)

    def policy_loss(
        self,
        logprobs: Float[Tensor, "B T"],
        entropy: Float[Tensor, "B T"],
        batch: Batch,
        weights: Float[Tensor, "B T"],
        kl_coef: float,
    ) -> tuple[Float[Tensor, ""], LossReport]:
        """The loss on a microbatch of pairs (chosen, rejected, chosen, ...): a weighted sum over pairs, to be added up
        without any division.

        `weights` are rows of those of the whole minibatch; a pair of weight 0 has no part in the loss, the gradients or
        the report. With none left the loss is a zero that still has a (zero) gradient. `kl_coef` is beta.
        """
        mask = batch.loss_mask & (weights > 0)
        new = torch.where(mask, logprobs, 0.0)
        of_pair = torch.where(mask, weights, 0.0).amax(dim=1)[::2]
        log_ratios = sequence_log_ratios(new, present(batch.ref_logprobs, "ref_logprobs"), mask)
        scores = log_ratios / mask.sum(dim=1).clamp(min=1) if self.config.loss == "ipo" else log_ratios
        losses = pair_losses(scores[::2] - scores[1::2], self.config.loss, kl_coef, self.config.label_smoothing)
        loss = (of_pair * losses).sum()
        with torch.no_grad():
            rewards = kl_coef * log_ratios
            chosen, rejected = rewards[::2], rewards[1::2]
            sums = {
                names.POLICY_LOSS: loss,
                names.TRAIN_ACCURACY: (of_pair * (chosen > rejected)).sum(),
                names.TRAIN_MARGIN: (of_pair * (chosen - rejected)).sum(),
                names.CHOSEN_REWARD: (of_pair * chosen).sum(),
                names.REJECTED_REWARD: (of_pair * rejected).sum(),
            }
            old = torch.where(mask, present(batch.old_logprobs, "old_logprobs"), 0.0)
            deviation = torch.expm1(ops.log_ratio(new, old)).abs().max()
        return loss, report_of(sums, {names.FIRST_RATIO: deviation})

    def stops(self, minibatch: Metrics) -> bool:
        """Never: the reference holds the policy back."""
        return False

    def state_dict(self) -> State:
        """Beta and what steers it, ready for JSON."""
        return {"beta": self._controller.state_dict()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continues from `state_dict()`; a `ValueError` if it is not one."""
        self._controller.load_state_dict(state.get("beta"))
        self._beta_of_step = self._controller.coef


def best_and_worst(
    rewards: Float[Tensor, " B"], prompts: Int[Tensor, " B"], usable: Bool[Tensor, " B"]
) -> tuple[Int[Tensor, " _"], Bool[Tensor, " _"]]:
    """The rows best, worst, best, worst, ... of the usable answers to each prompt, by the prompts' numbers, and for
    each prompt whether its best is better than its worst.

    Of equals the first is taken. A prompt whose answers cannot be used has its first row, twice.
    """
    index: list[Tensor] = []
    preferred: list[bool] = []
    for prompt in prompts.unique():
        rows = (prompts == prompt).nonzero().flatten()
        rows = rows[usable[rows]] if bool(usable[rows].any()) else rows[:1]
        best, worst = rows[rewards[rows].argmax()], rows[rewards[rows].argmin()]
        gap, size = rewards[best] - rewards[worst], torch.maximum(rewards[best].abs(), rewards[worst].abs())
        index += [best, worst]
        preferred.append(bool(gap > TIE * size))
    return torch.stack(index), torch.tensor(preferred)


def sequence_log_ratios(
    logprobs: Float[Tensor, "B T"], ref_logprobs: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, " B"]:
    """log(policy / reference) of each response in float32 (nats): the sum over its tokens, those of the mask."""
    return torch.where(mask, logprobs.float() - torch.where(mask, ref_logprobs.float(), 0.0), 0.0).sum(dim=1)


def pair_losses(
    delta: Float[Tensor, " P"], loss: Loss, beta: float, label_smoothing: float = 0.0
) -> Float[Tensor, " P"]:
    """The loss of each pair from the log-ratio of its chosen answer minus that of its rejected one.

    `sigmoid`: -log sigmoid(beta * delta) (Rafailov et al. 2023, arXiv 2305.18290, eq. 7), with the label flipped by a
    chance of `label_smoothing` (Mitchell 2023, "A note on DPO with noisy preferences", eq. 3); `hinge`:
    max(0, 1 - beta * delta) (SLiC; Zhao et al. 2023, arXiv 2305.10425); `ipo`: (delta - 1 / (2 beta))^2 (Azar et al.
    2023, arXiv 2310.12036, eq. 17), where delta is made of means over tokens, as its authors and TRL do, because sums
    would grow with the length and leave beta without a scale.
    """
    if loss == "ipo":
        return (delta - 1 / (2 * beta)).square()
    if loss == "hinge":
        return torch.relu(1 - beta * delta)
    logits = beta * delta
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)
