"""TRPO's update on a learner: gradient, conjugate gradient, line search; sums over all ranks."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from rlhf_ray import metrics as names
from rlhf_ray.actors.accounting import over_ranks
from rlhf_ray.actors.update import shards
from rlhf_ray.algorithms.aggregation import loss_weights
from rlhf_ray.algorithms.report import join_reports
from rlhf_ray.algorithms.trpo import TRPO, conjugate_gradient, fisher_product, flat, full_step
from rlhf_ray.data.batching import share
from rlhf_ray.models.device import device
from rlhf_ray.models.engine import Engine
from rlhf_ray.ports import Metrics
from rlhf_ray.types import Batch

_TWICE = 4
"""So much smaller are microbatches than those of one derivative: a second one keeps the activations of both passes.
SmolLM2 with microbatches of 1,024 tokens took 14 GB."""


class TrustRegion:
    """One update of `engine`'s policy on `batch`, whole on every rank.

    The distributions before the update are kept for the line search: response tokens x vocabulary x 4 bytes a rank.
    """

    def __init__(self, engine: Engine, algorithm: TRPO, batch: Batch, kl_coef: float) -> None:
        self._engine, self._algorithm, self._kl_coef = engine, algorithm, kl_coef
        self._module: Any = engine.module
        self._names, self._parameters = zip(*engine.trainable.items(), strict=True)
        self._parts = self._split(batch)
        counted = batch.loss_mask.any(dim=1).nonzero().flatten()
        few = math.ceil(algorithm.config.fisher_fraction * len(counted))
        spread = torch.arange(few) * len(counted) // max(1, few)
        self._sample = self._split(batch.rows(counted[spread])) if 0 < few < len(counted) else self._parts

    def _split(self, batch: Batch) -> list[tuple[Batch, Tensor, Tensor]]:
        """This rank's microbatches, with the weights of the loss `[B, T]` and those of the mean over tokens `[N]`."""
        losses, mean = self._algorithm.weights(batch), loss_weights(batch.loss_mask, "token_mean")
        return [
            (part, share(losses, rows, part), share(mean, rows, part)[part.response_mask])
            for rows, part in shards(batch, max(1, self._engine.config.microbatch_tokens // _TWICE))
        ]

    def update(self) -> Metrics:
        """Moves the weights, or leaves them exactly as they were if no step of the line search is good; metrics."""
        config = self._algorithm.config
        loss, gradient, missing, metrics = self._gradient()
        old = flat([parameter.detach() for parameter in self._parameters]).clone()
        norm = float(gradient.norm())
        metrics |= {
            names.GRAD_NORM.format(role="policy"): norm,
            names.MISSING_GRADIENTS.format(role="policy"): float(len(missing)),
            names.SKIPPED_UPDATES.format(role="policy"): float(not torch.isfinite(gradient).all()),
            names.UPDATES.format(role="policy"): 0.0,
            names.POLICY_KL_TO_OLD: 0.0,
            names.STEP_FRACTION: 0.0,
        }
        if not 0 < norm < float("inf"):
            return metrics
        step = full_step(conjugate_gradient(self._fisher, -gradient, config.cg_iterations), self._fisher, config.max_kl)
        before = [logits.log_softmax(dim=1) for logits in self._logits()]
        for halvings in range(config.line_search_steps):
            fraction = 0.5**halvings
            self._set(old + fraction * step)
            after, kl = self._measure(before)
            if after < loss and kl <= config.max_kl:
                found = {names.POLICY_KL_TO_OLD: kl, names.STEP_FRACTION: fraction}
                return metrics | found | {names.UPDATES.format(role="policy"): 1.0}
        self._set(old)
        return metrics

    def _gradient(self) -> tuple[float, Tensor, set[str], Metrics]:
        """The loss, its gradient, the parameters that no loss depends on, and metrics."""
        total, reports, missing = torch.zeros_like(flat(self._parameters)), [], set(self._names)
        for part, weights, _ in self._parts:
            loss, report = self._loss(part, weights)
            parts = torch.autograd.grad(loss, self._parameters, allow_unused=True)
            missing -= {name for name, part in zip(self._names, parts, strict=True) if part is not None}
            filled = zip(parts, self._parameters, strict=True)
            total += flat([torch.zeros_like(p) if part is None else part for part, p in filled])
            reports.append(report)
        metrics = over_ranks(join_reports(reports))
        dist.all_reduce(total)
        self._engine.forget_gradients()
        return metrics[names.POLICY_LOSS], total, missing, metrics

    def _loss(self, part: Batch, weights: Tensor) -> Any:
        logprobs, entropy = self._module(part.token_ids, part.attention_mask, part.response_mask)
        return self._algorithm.policy_loss(logprobs, entropy, part, weights, self._kl_coef)

    def _fisher(self, vector: Tensor) -> Tensor:
        total = torch.zeros_like(vector)
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            for part, _, mean in self._sample:
                if not part.response_mask.any():
                    continue  # what a rank with fewer rows has instead
                logits = self._module.logits(part.token_ids, part.attention_mask, part.response_mask)
                total += fisher_product(logits, mean, self._parameters, vector)
        dist.all_reduce(total)
        self._engine.forget_gradients()
        return total + self._algorithm.config.damping * vector

    @torch.no_grad()
    def _logits(self) -> list[Tensor]:
        asked = [(part.token_ids, part.attention_mask, part.response_mask) for part, *_ in self._parts]
        return [self._module.logits(*arguments).float() for arguments in asked]

    @torch.no_grad()
    def _measure(self, before: list[Tensor]) -> tuple[float, float]:
        """The surrogate loss and the KL from the old policy, over all ranks."""
        reports = [self._loss(part, weights)[1] for part, weights, _ in self._parts]
        kl = torch.zeros((), dtype=torch.float64, device=device())
        for (*_, mean), old, logits in zip(self._parts, before, self._logits(), strict=True):
            kl += (mean * (old.exp() * (old - logits.log_softmax(dim=1))).sum(dim=1)).sum()
        dist.all_reduce(kl)
        return over_ranks(join_reports(reports))[names.POLICY_LOSS], float(kl)

    def _set(self, values: Tensor) -> None:
        sizes = [parameter.numel() for parameter in self._parameters]
        pieces = zip(self._names, values.split(sizes), self._parameters, strict=True)
        self._engine.set_weights({name: piece.view_as(parameter) for name, piece, parameter in pieces})
