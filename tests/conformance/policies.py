"""Policies that are small enough to be enumerated, behind the production's own model wrapper, and batches for them."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_ray.models.causal_lm import CausalLM
from rlhf_ray.types import Batch

NAN = float("nan")


class FeatureLM(nn.Module):
    """Logits of the next token are features of the last token times `theta` `[D, V]`. Has what `CausalLM` asks of a
    Hugging Face model."""

    def __init__(self, features: Tensor, theta: Tensor) -> None:
        super().__init__()
        self.features = features.float()
        self.theta = nn.Parameter(theta.float().clone())  # the wrapper answers in float32

    def get_decoder(self) -> Any:
        return lambda input_ids, attention_mask, use_cache: SimpleNamespace(last_hidden_state=self.features[input_ids])

    def get_output_embeddings(self) -> Any:
        return lambda hidden: hidden @ self.theta


def table_policy(table: Tensor, temperature: float = 1.0) -> CausalLM:
    """Row v of `table` `[V + 1, V]` has the logits after token v, the last row those of the first token of an answer,
    which follows a prompt of token V."""
    return CausalLM(FeatureLM(torch.eye(len(table)), table), temperature)


def theta_of(policy: CausalLM) -> nn.Parameter:
    """The one parameter."""
    theta = policy.model.theta
    assert isinstance(theta, nn.Parameter)
    return theta


def answers_batch(prompt: int | Tensor, answers: Tensor, rewards: Tensor) -> Batch:
    """One prompt token (of each row), then its answer `[B, T]`; no padding."""
    first = torch.as_tensor(prompt).expand(len(answers))[:, None]
    ids = torch.cat([first, answers], dim=1)
    response = torch.ones(ids.shape, dtype=torch.bool)
    response[:, 0] = False
    return Batch(
        token_ids=ids,
        attention_mask=torch.ones_like(response),
        response_mask=response,
        loss_mask=response,
        rollout_logprobs=torch.zeros(ids.shape),
        rewards=rewards,
        truncated=torch.zeros(len(ids), dtype=torch.bool),
    )


TURNS = torch.tensor(
    [
        [0, 0, 1, 1, 1, 1, 1, 1, 1, 1],
        [0, 1, 1, 0, 0, 1, 1, 1, 0, 0],  # an observation between two turns
        [0, 0, 0, 1, 1, 0, 0, 0, 0, 0],
        [0, 1, 0, 1, 0, 0, 1, 0, 0, 0],  # turns of one token
        [0, 1, 1, 1, 0, 0, 0, 0, 0, 0],  # ends with an observation
        [0, 0, 1, 1, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 1, 1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 1, 1, 1, 1, 1, 0],
    ],
    dtype=torch.bool,
)
LENGTHS = torch.tensor([10, 8, 5, 9, 7, 6, 10, 9])
PROMPTS = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
LEFT_OUT = 3
"""The row that counts in no loss."""


def multi_turn_batch(seed: int = 0, vocabulary: int = 6) -> Batch:
    """Conversations with observations, padded with the end of sequence (0), which also ends turns. All numbers outside
    the policy's own tokens are NaN."""
    draw = torch.Generator().manual_seed(seed)
    attention = torch.arange(TURNS.shape[1]) < LENGTHS[:, None]
    ids = torch.randint(0, vocabulary, TURNS.shape, generator=draw)
    loss = TURNS.clone()
    loss[LEFT_OUT] = False

    def noise(centre: float) -> Tensor:
        return torch.where(TURNS, centre + 0.5 * torch.randn(TURNS.shape, generator=draw), NAN)

    return Batch(
        token_ids=torch.where(attention, ids, 0),
        attention_mask=attention,
        response_mask=TURNS,
        loss_mask=loss,
        rollout_logprobs=noise(-2.0),
        rewards=torch.randn(len(TURNS), generator=draw),
        truncated=torch.zeros(len(TURNS), dtype=torch.bool),
        costs=torch.rand(len(TURNS), generator=draw),
        old_logprobs=noise(-2.0),
        ref_logprobs=noise(-2.2),
        values=noise(0.1),
    )


def rows_of(x: Tensor, mask: Tensor) -> list[list[float]]:
    """The entries of `x` at the mask, row by row."""
    return [x[row][mask[row]].tolist() for row in range(len(x))]


def spread(rows: Sequence[Sequence[float]], mask: Tensor) -> Tensor:
    """The numbers of each row on its tokens of the mask, 0 elsewhere."""
    out = torch.zeros(mask.shape)
    for row, numbers in enumerate(rows):
        out[row][mask[row]] = torch.tensor(list(numbers))
    return out
