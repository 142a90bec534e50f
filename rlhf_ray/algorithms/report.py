"""What a loss says about itself, in a form that adds up over microbatches and ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf_ray import metrics as names
from rlhf_ray.algorithms import ops
from rlhf_ray.ports import Metrics


@dataclass(frozen=True, slots=True)
class LossReport:
    """What the loss of one microbatch reports, by metric name, ready to be joined over microbatches and ranks."""

    sums: Metrics
    """Parts of a loss, or of means whose weights add up to 1 over a minibatch: they are added."""
    maxima: Metrics
    means: Metrics = field(default_factory=dict)
    """Sums of weight times value: the total is divided by that of `weight`."""
    weight: float = 0.0

    def metrics(self) -> Metrics:
        """All kinds under their names; a mean over no weight is 0."""
        means = {name: value / self.weight if self.weight else 0.0 for name, value in self.means.items()}
        return {**self.sums, **means, **self.maxima}


def join_reports(reports: Sequence[LossReport]) -> LossReport:
    """The report of a minibatch from those of all its microbatches on all ranks: sums are added, maxima compared.

    At least one report; all from the same loss.
    """
    first = reports[0]
    return LossReport(
        sums={name: math.fsum(report.sums[name] for report in reports) for name in first.sums},
        maxima={name: max(report.maxima[name] for report in reports) for name in first.maxima},
        means={name: math.fsum(report.means[name] for report in reports) for name in first.means},
        weight=math.fsum(report.weight for report in reports),
    )


def report_of(
    sums: Mapping[str, Tensor],
    maxima: Mapping[str, Tensor],
    means: Mapping[str, Tensor] | None = None,
    weight: Tensor | None = None,
) -> LossReport:
    """The scalars as floats, with one transfer from the device for all of them. `means` need a `weight`."""
    means, total = means or {}, [] if weight is None else [weight]
    values = (*sums.values(), *maxima.values(), *means.values(), *total)
    numbers = iter(torch.stack([value.detach().float() for value in values]).tolist())
    return LossReport(
        sums={name: next(numbers) for name in sums},
        maxima={name: next(numbers) for name in maxima},
        means={name: next(numbers) for name in means},
        weight=next(numbers, 0.0),
    )


@torch.no_grad()
def surrogate_report(
    loss: Tensor,
    weights: Float[Tensor, "B T"],
    new: Float[Tensor, "B T"],
    old: Float[Tensor, "B T"],
    entropy: Float[Tensor, "B T"],
    clipped: Bool[Tensor, "B T"],
) -> LossReport:
    """What every surrogate loss tells: itself, weighted means over tokens, and the largest |ratio - 1|."""
    means = {
        names.POLICY_CLIP_FRACTION: (weights * clipped).sum(),
        names.POLICY_KL_TO_OLD: (weights * ops.k3(old, new)).sum(),
        names.ENTROPY: (weights * entropy).sum(),
        names.FIRST_DRIFT: (weights * (new - old).abs()).sum(),
    }
    return report_of({names.POLICY_LOSS: loss}, {names.FIRST_RATIO: ratio_deviation(new, old)}, means, weights.sum())


def ratio_deviation(new: Float[Tensor, "B T"], old: Float[Tensor, "B T"]) -> Float[Tensor, ""]:
    """The largest |ratio - 1| of the tokens, 0 without any."""
    deviation = torch.expm1(ops.log_ratio(new, old)).abs()
    return deviation.max() if deviation.numel() else deviation.sum()
