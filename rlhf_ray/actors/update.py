"""The update: minibatches x epochs, microbatches on every rank, one optimizer step a minibatch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

import torch
import torch.distributed as dist
from torch import Tensor

from rlhf_ray.actors.accounting import UpdateAccount, over_ranks
from rlhf_ray.algorithms.base import OnlineAlgorithm
from rlhf_ray.algorithms.report import LossReport, join_reports
from rlhf_ray.data.batching import microbatches, minibatches, share
from rlhf_ray.models.device import device
from rlhf_ray.models.engine import Engine
from rlhf_ray.types import Batch

Loss = Callable[[Batch, Tensor], tuple[Tensor, LossReport]]


def run_epochs(
    engine: Engine,
    algorithm: OnlineAlgorithm,
    batch: Batch,
    order: torch.Generator,
    loss: Loss,
    keep: Callable[[Batch, int], None],
) -> UpdateAccount:
    """Trains `engine` on `batch`. `loss(part, weights)` is a weighted sum over a microbatch; the algorithm's weights
    are those of the whole minibatch, so the sum of the losses over all its microbatches and ranks is the minibatch's.

    Ends early when the algorithm says so. A minibatch in which nothing has weight makes no step. One whose gradient is
    not finite goes to `keep` with its number and never reaches the weights. `order` draws the minibatches, alike on all
    ranks.
    """
    account, config = UpdateAccount(), algorithm.config
    epochs = (minibatches(len(batch), config.num_minibatches, order, config.unit) for _ in range(config.num_epochs))
    for number, index in enumerate(chain.from_iterable(epochs)):
        minibatch = batch.rows(index)
        weights = algorithm.weights(minibatch)
        counted = weights.any(dim=1).nonzero().flatten()
        if not len(counted):
            continue  # a step without a gradient would still move the weights: Adam has momentum
        minibatch, weights = minibatch.rows(counted), weights[counted]
        reports: list[LossReport] = []
        for rows, part in shards(minibatch, engine.config.microbatch_tokens, config.unit):
            value, report = loss(part, share(weights, rows, part))
            engine.backward(value)
            reports.append(report)
        totals = over_ranks(join_reports(reports))
        if algorithm.stops(totals):
            engine.discard()
            account.stop(totals)
            break
        done = engine.step()
        if not done.applied:
            keep(minibatch, number)
        account.add(totals, done)
    return account


def shards(batch: Batch, max_tokens: int, unit: int = 1) -> Iterator[tuple[Tensor, Batch]]:
    """This rank's microbatches of whole units with their row numbers, on its device. A rank with fewer computes a
    masked one instead (no row numbers), because ZeRO-3 gathers weights on all ranks together."""
    lengths = batch.attention_mask.sum(dim=1)
    for rows in microbatches(lengths, dist.get_world_size(), max_tokens, unit)[dist.get_rank()]:
        if len(rows):
            picked = batch.rows(rows, int(lengths[rows].max()))
        else:
            first = batch.rows(torch.arange(unit), int(lengths[:unit].max()))
            nothing = torch.zeros_like(first.loss_mask)
            picked = first.with_(loss_mask=nothing, response_mask=nothing)
        yield rows, picked.to(device())


def gather_rows(batch: Batch, answers: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Row numbers and their `[n, T]` answers, padded back to the batch's width, from those of the microbatches."""
    width = batch.token_ids.shape[1]
    pad = torch.nn.functional.pad
    found = [(rows, pad(out.cpu(), (0, width - out.shape[1]))) for rows, out in answers if len(rows)]
    if not found:
        return torch.zeros(0, dtype=torch.long), torch.zeros(0, width)
    return torch.cat([rows for rows, _ in found]), torch.cat([out for _, out in found])
