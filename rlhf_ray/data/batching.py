"""From rollouts to one padded batch, and from a batch to minibatches and token-budgeted microbatches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf_ray.types import Batch, Rollout


def collate(
    rollouts: Sequence[Rollout],
    pad_token_id: int,
    truncated_mode: Literal["penalize", "mask", "score"],
    penalty: float,
) -> Batch:
    """The rollouts as rows `[prompt + response + padding]`, in their order, on the CPU.

    A truncated response is treated as `TruncatedConfig` says: `penalize` subtracts `penalty` from its reward, `mask`
    leaves its tokens out of the loss mask, `score` changes nothing. A `ValueError` names the first rollout that has
    no usable score, no response, or not one log-probability for each response token: quarantined rollouts are the
    caller's to leave out.
    """
    if not rollouts:
        raise ValueError("no rollouts to collate")
    for rollout in rollouts:
        _check(rollout)
    shape = (len(rollouts), max(len(r.prompt.token_ids) + len(r.response_ids) for r in rollouts))
    token_ids = torch.full(shape, pad_token_id, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.bool)
    response_mask = torch.zeros(shape, dtype=torch.bool)
    rollout_logprobs = torch.zeros(shape)
    for row, rollout in enumerate(rollouts):
        start = len(rollout.prompt.token_ids)
        end = start + len(rollout.response_ids)
        token_ids[row, :end] = torch.tensor(rollout.prompt.token_ids + rollout.response_ids)
        attention_mask[row, :end] = True
        response_mask[row, start:end] = True
        rollout_logprobs[row, start:end] = torch.tensor(rollout.rollout_logprobs)
    truncated = torch.tensor([rollout.truncated for rollout in rollouts])
    scores = [rollout.score for rollout in rollouts if rollout.score is not None]
    rewards = torch.tensor([score.reward for score in scores])
    return Batch(
        token_ids=token_ids,
        attention_mask=attention_mask,
        response_mask=response_mask,
        loss_mask=response_mask & ~truncated[:, None] if truncated_mode == "mask" else response_mask.clone(),
        rollout_logprobs=rollout_logprobs,
        rewards=rewards - penalty * truncated if truncated_mode == "penalize" else rewards,
        truncated=truncated,
        costs=torch.tensor([score.cost for score in scores]),
    )


def _check(rollout: Rollout) -> None:
    score = rollout.score
    if score is None or score.error is not None:
        cause = "was not scored" if score is None else f"could not be scored ({score.error})"
        raise ValueError(f"rollout {rollout.id} {cause}: leave it out of the batch")
    if not math.isfinite(score.reward):
        raise ValueError(f"rollout {rollout.id} has the reward {score.reward}: leave it out of the batch")
    if not rollout.prompt.token_ids or not rollout.response_ids:
        raise ValueError(f"rollout {rollout.id} has an empty prompt or response: leave it out of the batch")
    if len(rollout.rollout_logprobs) != len(rollout.response_ids):
        raise ValueError(
            f"rollout {rollout.id} has {len(rollout.rollout_logprobs)} log-probabilities for "
            f"{len(rollout.response_ids)} response tokens"
        )


def prompt_numbers(rollouts: Sequence[Rollout]) -> Int[Tensor, " B"]:
    """For each row of `collate(rollouts)` the number of the prompt that it answers, counted in order of appearance."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(rollout.prompt.id, len(numbers)) for rollout in rollouts])


def rows_together(batch: Batch, answers: Iterable[tuple[Tensor, Tensor]]) -> Float[Tensor, "B T"]:
    """A per-token answer about `batch` from parts: row numbers, and their `[n, t]` first columns; 0 elsewhere."""
    out = torch.zeros(batch.token_ids.shape)
    for rows, found in answers:
        out[rows, : found.shape[1]] = found
    return out


def share(weights: Float[Tensor, "B T"], rows: Int[Tensor, " n"], part: Batch) -> Float[Tensor, "n t"]:
    """The `rows` of `weights` that belong to microbatch `part`, as wide as it and on its device; zeros without rows."""
    size = part.token_ids.shape
    return (weights[rows, : size[1]] if len(rows) else torch.zeros(size)).to(part.token_ids.device)


def minibatches(
    num_rows: int, num_minibatches: int, generator: torch.Generator, unit: int = 1
) -> list[Int[Tensor, " _"]]:
    """One epoch: all rows in a random order, cut into `num_minibatches` parts whose sizes differ by one unit at most.

    `unit` neighbouring rows stay neighbours. Each call draws the next permutation from `generator`, so epochs differ;
    the same seed gives the same epochs. Fewer units than minibatches, or a unit that is cut off, are a `ValueError`.
    """
    units, rest = divmod(num_rows, unit)
    if rest or not 0 < num_minibatches <= units:
        of_units = f" in units of {unit}" if unit > 1 else ""
        raise ValueError(f"{num_rows} rollouts{of_units} cannot fill {num_minibatches} minibatches")
    order = torch.randperm(units, generator=generator, device=generator.device)
    return [_rows_of(part, unit) for part in torch.tensor_split(order.cpu(), num_minibatches)]


def microbatches(
    lengths: Int[Tensor, " n"], num_ranks: int, max_tokens: int, unit: int = 1
) -> list[list[Int[Tensor, " _"]]]:
    """For each rank its microbatches, each a tensor of positions in `lengths`; every position occurs once.

    A microbatch takes at most `max_tokens` tokens, padding included (rows x its longest row); `unit` neighbouring rows
    stay neighbours, and a unit that is larger has a microbatch of its own. Neighbours in length go together. All ranks
    get the same number of microbatches, and the j-th ones of all ranks are alike in size, because ranks wait for each
    other's collectives at each of them. If there are too few units for that, some ranks end with an empty tensor.
    """
    if num_ranks < 1 or max_tokens < 1 or bool((lengths < 1).any()):
        raise ValueError("num_ranks, max_tokens and all lengths must be positive")
    longest, budget = lengths.view(-1, unit).amax(dim=1), max(1, max_tokens // unit)
    order = torch.argsort(longest, descending=True, stable=True)
    ranks: list[list[Tensor]] = [[] for _ in range(num_ranks)]
    load = [0] * num_ranks
    for units in torch.split(order, _round_sizes(longest[order].tolist(), num_ranks, budget)):
        parts = sorted(torch.tensor_split(units, num_ranks), key=lambda part: -_padded_tokens(longest, part))
        # The largest part goes to the rank that has had the least so far.
        for rank, part in zip(sorted(range(num_ranks), key=load.__getitem__), parts, strict=True):
            ranks[rank].append(_rows_of(part, unit))
            load[rank] += _padded_tokens(longest, part)
    return ranks


def _rows_of(units: Int[Tensor, " n"], unit: int) -> Int[Tensor, " _"]:
    """The rows of each of `units`, in order."""
    return (units[:, None] * unit + torch.arange(unit)).flatten()


def _padded_tokens(lengths: Tensor, rows: Tensor) -> int:
    return int(lengths[rows].max()) * rows.numel() if rows.numel() else 0


def _round_sizes(lengths: Sequence[int], num_ranks: int, max_tokens: int) -> list[int]:
    """Rows in each round of one microbatch a rank, `lengths` descending: as few rounds as the budget allows."""
    sizes: list[int] = []
    while (start := sum(sizes)) < len(lengths):
        sizes.append(min(num_ranks * max(1, max_tokens // lengths[start]), len(lengths) - start))
    # A last round with fewer rows than ranks borrows from the one before, which stays full.
    if len(sizes) > 1 and sizes[-1] < num_ranks < sizes[-2]:
        missing = num_ranks - sizes[-1]
        sizes[-2:] = [sizes[-2] - missing, num_ranks]
    return sizes
