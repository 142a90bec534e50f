"""What a loss says about itself, in a form that adds up over microbatches and ranks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_ray.ports import Metrics


@dataclass(frozen=True, slots=True)
class LossReport:
    """What the loss of one microbatch reports, by metric name, ready to be joined over microbatches and ranks."""

    sums: Metrics
    """Weighted by the token weights: their sum over a minibatch is the mean over its loss tokens."""
    maxima: Metrics

    def metrics(self) -> Metrics:
        """Both kinds under their names."""
        return {**self.sums, **self.maxima}


def join_reports(reports: Sequence[LossReport]) -> LossReport:
    """The report of a minibatch from those of all its microbatches on all ranks: sums are added, maxima compared.

    At least one report; all from the same loss.
    """
    first = reports[0]
    return LossReport(
        sums={name: math.fsum(report.sums[name] for report in reports) for name in first.sums},
        maxima={name: max(report.maxima[name] for report in reports) for name in first.maxima},
    )


def report_of(sums: Mapping[str, Tensor], maxima: Mapping[str, Tensor]) -> LossReport:
    """The scalars as floats, with one transfer from the device for all of them."""
    numbers = torch.stack([value.detach().float() for value in (*sums.values(), *maxima.values())]).tolist()
    return LossReport(
        sums=dict(zip(sums, numbers[: len(sums)], strict=True)),
        maxima=dict(zip(maxima, numbers[len(sums) :], strict=True)),
    )
