"""Metrics of an update: summed over microbatches and ranks, averaged over optimizer steps."""

from __future__ import annotations

import torch
import torch.distributed as dist

from rlhf_ray import metrics as names
from rlhf_ray.algorithms.report import LossReport
from rlhf_ray.models.device import device
from rlhf_ray.models.engine import StepReport
from rlhf_ray.ports import Metrics


def over_ranks(report: LossReport) -> Metrics:
    """Metrics of one minibatch from this rank's share: sums and weights are added over the ranks, maxima compared."""
    added = torch.tensor([*report.sums.values(), *report.means.values(), report.weight], dtype=torch.float64)
    maxima = torch.tensor(list(report.maxima.values()), dtype=torch.float64, device=device())
    added = added.to(device())
    dist.all_reduce(added, op=dist.ReduceOp.SUM)
    if report.maxima:
        dist.all_reduce(maxima, op=dist.ReduceOp.MAX)
    numbers = iter(added.tolist())
    whole = LossReport(
        sums={name: next(numbers) for name in report.sums},
        maxima=dict(zip(report.maxima, maxima.tolist(), strict=True)),
        means={name: next(numbers) for name in report.means},
        weight=next(numbers),
    )
    return whole.metrics()


class UpdateAccount:
    """Collects the minibatches of one `update`."""

    def __init__(self) -> None:
        self._minibatches: list[Metrics] = []
        self._stopped: list[Metrics] = []
        self._norms: list[float] = []
        self._skipped = 0
        self._missing: set[str] = set()

    def add(self, metrics: Metrics, report: StepReport) -> None:
        """One minibatch and what its optimizer step did."""
        self._minibatches.append(metrics)
        self._skipped += not report.applied
        if report.applied:
            self._norms.append(report.grad_norm)
        self._missing |= set(report.missing)

    def stop(self, metrics: Metrics) -> None:
        """The minibatch at which the update ended, without a step of its own: what was measured if it was the first."""
        self._stopped = [metrics]

    def metrics(self, role: str) -> Metrics:
        """Means over the minibatches (first ratio and drift: of the first), counts, and the sentinels."""
        done = self._minibatches or self._stopped
        out = {key: sum(m[key] for m in done) / len(done) for key in (done[0] if done else {})}
        out |= {key: done[0][key] for key in (names.FIRST_RATIO, names.FIRST_DRIFT) if key in out}
        out[names.GRAD_NORM.format(role=role)] = sum(self._norms) / max(1, len(self._norms))
        out[names.UPDATES.format(role=role)] = float(len(self._norms))
        out[names.SKIPPED_UPDATES.format(role=role)] = float(self._skipped)
        out[names.MISSING_GRADIENTS.format(role=role)] = float(len(self._missing))
        return out
