"""Online DPO: pairs of the policy's own samples, as the reward judges them, and the direct preference loss on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field, PositiveFloat, model_validator
from torch import Tensor

from rlhf_ray import metrics as names
from rlhf_ray.algorithms.base import AlgorithmConfig, kl_to_reference
from rlhf_ray.algorithms.kl import KLController
from rlhf_ray.algorithms.pairs import Loss, best_and_worst, pair_losses, pairs_report, sequence_log_ratios
from rlhf_ray.algorithms.report import LossReport
from rlhf_ray.ports import Metrics, State
from rlhf_ray.types import Batch, present


class OnlineDPOConfig(AlgorithmConfig):
    """Direct preference optimization on the policy's own samples (Guo et al. 2024, arXiv 2402.04792).

    Of the `rollout.samples_per_prompt` answers to a prompt the one with the highest reward is chosen and the one with
    the lowest rejected. `kl_target` steers `beta`, which is the coefficient of the KL in the objective behind DPO.
    All log-probabilities are those of `logits / rollout.temperature`, which is what is sampled: at temperature 1 the
    loss is that of the papers; at a lower one log-ratios are larger, and `beta` acts like `beta / temperature`.
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
        """A pair of rows, chosen and rejected, for each of the `prompts`. One without a preference has a pair too, so
        that minibatches keep their size, but its loss mask is empty. The KL is that of every response, and moves beta
        for the next step unless `adapt` is false."""
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
        """The loss on a microbatch of pairs, chosen and rejected in turn; `kl_coef` is beta. A pair of weight 0 has no
        part in anything; with none left the loss is a zero that still has a (zero) gradient."""
        mask = batch.loss_mask & (weights > 0)
        new = torch.where(mask, logprobs, 0.0)
        of_pair = torch.where(mask, weights, 0.0).amax(dim=1)[::2]
        log_ratios = sequence_log_ratios(new, present(batch.ref_logprobs, "ref_logprobs"), mask)
        scores = log_ratios / mask.sum(dim=1).clamp(min=1) if self.config.loss == "ipo" else log_ratios
        losses = pair_losses(scores[::2] - scores[1::2], self.config.loss, kl_coef, self.config.label_smoothing)
        loss = (of_pair * losses).sum()
        old = torch.where(mask, present(batch.old_logprobs, "old_logprobs"), 0.0)
        return loss, pairs_report(loss, of_pair, kl_coef * log_ratios, new, old)

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
