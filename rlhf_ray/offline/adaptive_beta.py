"""Measures what an adaptive beta follows, from the passes that TRL's loss makes anyway.

TRL's loss runs policy and reference, then uses `trainer.beta`. Hooks on both see their outputs in between, so the
batch's own gap can set its own beta, and the KL costs two more products with the language-model head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from rlhf_ray.algorithms.adaptive_beta import KLTarget, RewardGap
from rlhf_ray.algorithms.ops import full_kl
from rlhf_ray.config.offline import DPOConfig, KLTargetConfig
from rlhf_ray.models.causal_lm import unwrapped

Controller = KLTarget | RewardGap
_TOKENS = 256
"""Logits of so many tokens at a time: 50 MB a model with a vocabulary of 50,000."""


def make_controller(method: DPOConfig) -> Controller | None:
    """The controller that the config asks for."""
    asked = method.adaptive_beta
    if asked is None:
        return None
    if isinstance(asked, KLTargetConfig):
        return KLTarget(
            method.beta,
            asked.target_kl,
            asked.gain,
            asked.horizon,
            asked.band,
            asked.smoothing,
            asked.max_change,
            asked.beta_range or (method.beta / 4, 200 * method.beta),
        )
    return RewardGap(method.beta, asked.alpha, asked.momentum, asked.beta_range)


def gradient_scale(method: DPOConfig, beta: float) -> float:
    """What makes the gradient of `method.loss` at `beta` as large as at `method.beta`: it is proportional to beta if
    the loss is a function of beta times the margin, and to 1 / beta if it is a square around 1 / beta. 1 for mixtures.
    """
    squares = {"ipo", "sppo_hard"}
    if squares.issuperset(method.losses):
        return beta / method.beta
    return 1.0 if {*squares, "sft"}.intersection(method.losses) else method.beta / beta


class BetaProbe:
    """Feeds `controller` (a KL once a step, a gap once a microbatch) and puts its beta into `trainer`.

    The KL of a step is that per token times `answer_tokens`, the mean length of all answers: batches are of like
    length, and their own KL per sequence goes up and down with it.
    """

    def __init__(self, trainer: Any, controller: Controller, answer_tokens: float) -> None:
        self._trainer, self._controller, self._answer_tokens = trainer, controller, answer_tokens
        self._policy: Any = None
        self._hidden: list[Tensor] = []
        self._kl_and_tokens: list[Tensor] = []
        policy = unwrapped(trainer.model)
        self._heads = [policy.get_output_embeddings()] * 2  # type: ignore[operator]  # transformers' method
        if trainer.ref_model is not None:
            reference = unwrapped(trainer.accelerator.unwrap_model(trainer.ref_model))
            self._heads[1] = reference.get_output_embeddings()  # type: ignore[operator]  # likewise
            self._watch(reference)
        self._watch(policy)
        trainer.beta = controller.beta

    def _watch(self, causal: nn.Module) -> None:
        causal.register_forward_hook(self._after_forward, with_kwargs=True)
        decoder = causal.get_decoder()  # type: ignore[operator]  # transformers' method
        decoder.register_forward_hook(self._after_decoder)

    def _after_decoder(self, module: nn.Module, arguments: Any, output: Any) -> None:
        self._hidden.append(output.last_hidden_state.detach())

    def _after_forward(self, module: nn.Module, arguments: Any, inputs: dict[str, Any], output: Any) -> None:
        """The policy's pass comes first, then the reference's (the same module with its adapters off, if it has)."""
        if not self._trainer.model.training or "labels" not in inputs:
            self._hidden.clear()
            return
        if self._policy is None:
            self._policy = output.log_probs.detach()
            return
        answered = inputs["labels"][:, 1:] != -100
        if isinstance(self._controller, KLTarget):
            self._kl_and_tokens.append(torch.stack([self._kl(answered), answered.sum()]))
            if self._trainer.accelerator.sync_gradients:  # the last microbatch of the step
                kl, tokens = self._reduced(sum(self._kl_and_tokens), "sum")
                self._controller.observe(float(kl / tokens) * self._answer_tokens)
                self._kl_and_tokens.clear()
        else:
            self._controller.observe(float(self._reduced(self._gap(output.log_probs, answered).mean(), "mean")))
        self._trainer.beta = self._controller.beta
        self._policy = None
        self._hidden.clear()

    def _gap(self, reference: Tensor, answered: Tensor) -> Tensor:
        width = answered.shape[1]
        ratios: Tensor = ((self._policy - reference)[:, -width:] * answered).sum(dim=1)
        pairs = len(ratios) // 2
        return ratios[:pairs] - ratios[pairs:]

    @torch.no_grad()
    def _kl(self, answered: Tensor) -> Tensor:
        """Exact KL of the next-token distributions, summed over the tokens of all answers: a scalar, nats."""
        policy, reference = (hidden[:, :-1][answered].split(_TOKENS) for hidden in self._hidden)
        head, reference_head = self._heads
        parts = [full_kl(head(p), reference_head(r)).sum() for p, r in zip(policy, reference, strict=True)]
        return torch.stack(parts).sum()

    def _reduced(self, values: Any, how: str) -> Tensor:
        """Over all ranks."""
        reduced: Tensor = self._trainer.accelerator.reduce(values.float(), how)
        return reduced
