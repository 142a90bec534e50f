"""A frozen reward model that scores conversations, and how the scale of its scores is measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from rlhf_ray.errors import UserError
from rlhf_ray.models.device import compute_dtype, device
from rlhf_ray.models.reward.batch import token_batch
from rlhf_ray.models.reward.network import RewardNetwork, uncertainty
from rlhf_ray.models.reward.saving import load_reward_network
from rlhf_ray.models.reward.text import Conversation, Encoded, TextEncoder
from rlhf_ray.models.reward_model import RewardStats

TOKEN_BUDGET = 4096
"""Tokens of one forward pass, padding included."""


@dataclass(frozen=True, slots=True)
class RewardDetails:
    """One conversation's score and what it is made of."""

    total: float
    """Standardised and conservative, as `RewardScorer.score` gives it."""
    objectives: Mapping[str, float]
    """Raw scores by objective, the members' mean."""
    uncertainty: float
    """The members' standard deviation, in the units of `total`; 0 for a single member."""


class RewardScorer:
    """A reward model for scoring alone. `standardised` is False for a model without statistics, whose scores stay raw;
    `truncated` counts the conversations that were cut so far."""

    def __init__(self, network: RewardNetwork, encoder: TextEncoder, stats: RewardStats | None) -> None:
        self._network = network
        self._encoder = encoder
        self._mean, self._std = (stats.mean, stats.std) if stats else (0.0, 1.0)
        self.standardised = stats is not None
        self.truncated = 0

    @classmethod
    def load(cls, folder: Path, dtype: str = "auto") -> RewardScorer:
        """The reward model in `folder`, of any architecture, on this process's device.

        Raises `UserError` if the folder holds something else.
        """
        network, tokenizer, stats = load_reward_network(folder, compute_dtype(dtype))
        return cls(network.to(device()).eval(), TextEncoder(tokenizer, network.spec), stats)

    def score(self, conversations: Sequence[Conversation], token_budget: int = TOKEN_BUDGET) -> list[float]:
        """(raw score - mean) / std of each conversation, in their order."""
        return [(raw - self._mean) / self._std for raw in self.raw_scores(conversations, token_budget)]

    def raw_scores(self, conversations: Sequence[Conversation], token_budget: int = TOKEN_BUDGET) -> list[float]:
        """The conservative total of each conversation, in their order; for a plain model its head's output."""
        if not conversations:
            return []
        scores: list[float] = self._network.conservative(self._measure(conversations, token_budget)[0]).tolist()
        return scores

    def details(self, conversations: Sequence[Conversation], token_budget: int = TOKEN_BUDGET) -> list[RewardDetails]:
        """Total, objectives and uncertainty of each conversation, in their order."""
        if not conversations:
            return []
        totals, objectives = self._measure(conversations, token_budget)
        raw, spread = self._network.conservative(totals).tolist(), uncertainty(totals).tolist()
        names = self._network.spec.objectives
        return [
            RewardDetails((r - self._mean) / self._std, dict(zip(names, o, strict=True)), s / self._std)
            for r, o, s in zip(raw, objectives.tolist(), spread, strict=True)
        ]

    def _measure(
        self, conversations: Sequence[Conversation], token_budget: int
    ) -> tuple[Float[Tensor, "N M"], Float[Tensor, "N O"]]:
        rows = self._encoder(conversations)
        self.truncated += sum(row.truncated for row in rows)
        return score_rows(self._network, rows, self._encoder.padding, token_budget)


@torch.inference_mode()
def score_rows(
    network: RewardNetwork, rows: Sequence[Encoded], padding: int, token_budget: int = TOKEN_BUDGET
) -> tuple[Float[Tensor, "N M"], Float[Tensor, "N O"]]:
    """Totals, and the members' mean score on each objective, of `rows` in their order, in main memory.

    Neither the batch nor the padding changes a score. No gradients; `network` is used in the mode it is in.
    """
    where = network.offsets.device
    totals = torch.zeros(len(rows), network.spec.members)
    objectives = torch.zeros(len(rows), len(network.spec.objectives))
    for chunk in _chunks([len(row) for row in rows], token_budget):
        output = network(token_batch([rows[index] for index in chunk], padding).to(where))
        totals[chunk] = output.totals.cpu()
        objectives[chunk] = output.scores.mean(dim=1).cpu()
    return totals, objectives


@torch.no_grad()
def measure_scale(network: RewardNetwork, totals: Float[Tensor, "N M"]) -> RewardStats:
    """The statistics of a trained model's conservative scores, from its `totals` on a sample of its training answers.

    First gives all members of an ensemble the same mean on them (`RewardNetwork.align`), so call it before saving.
    Raises `UserError` if all scores are the same or not finite.
    """
    network.align(totals)
    level = totals - totals.mean(dim=0) + totals.mean() if network.spec.members > 1 else totals
    scores = network.conservative(level).double()
    mean, std = float(scores.mean()), float(scores.std(correction=0))
    if not math.isfinite(mean):
        raise UserError("the reward model's scores are not finite; lower learning_rate")
    if not std > 0:
        raise UserError("the reward model gives every answer the same score; raise learning_rate or epochs")
    return RewardStats(mean=mean, std=std, answers=len(scores), max_tokens=network.spec.max_tokens)


def _chunks(lengths: Sequence[int], token_budget: int) -> Iterator[list[int]]:
    """Indices sorted by length, longest first, in chunks of at most `token_budget` tokens, padding included."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    start = 0
    while start < len(order):
        rows = max(1, token_budget // max(1, lengths[order[start]]))
        yield order[start : start + rows]
        start += rows
