"""The carriers that flow through the loop, and the one alignment rule.

**Alignment.** Every per-token tensor is `[B, T]` and `x[b, t]` belongs to `token_ids[b, t]`:
`logprobs[b, t] = log p(token t | tokens < t)`, `values[b, t] = V(tokens < t)`, and `logprobs[b, 0] = 0`. Nothing is
stored shifted; the shift by one happens once, inside the model wrappers (`models/causal_lm.py`, `models/value.py`).

**Masks.** `response_mask` is a fact: the tokens that the policy sampled. `loss_mask` is a decision: those that count in
the loss and its denominator. Rows are padded on the right.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation, e.g. `Message("user", "Hello")`."""

    role: str
    content: str

    def as_dict(self) -> dict[str, str]:
        """The `{"role", "content"}` form that chat templates read."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation to be answered. `token_ids` is its rendered chat template, ready for sampling."""

    id: str
    messages: tuple[Message, ...]
    token_ids: tuple[int, ...]
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """A reward and what it is made of. `error` is set when scoring failed; the rollout is then quarantined. `cost` is
    what a constrained algorithm keeps within its budget."""

    reward: float
    breakdown: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    cost: float = 0.0


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled response.

    `response_ids[t]` was sampled with log-probability `rollout_logprobs[t]` by the engine that held `policy_version`;
    if weights arrived meanwhile, `versions` has all versions with the number of tokens of each, in order.
    An end-of-sequence token that the policy sampled is part of `response_ids`; `text` leaves it out.
    """

    prompt: Prompt
    sample_index: int
    response_ids: tuple[int, ...]
    rollout_logprobs: tuple[float, ...]
    text: str
    finish_reason: FinishReason
    policy_version: int
    """At the first token."""
    score: Score | None = None
    versions: tuple[tuple[int, int], ...] = ()

    @property
    def truncated(self) -> bool:
        """True if a limit cut the response, False if the policy ended it by itself (even at exactly the limit)."""
        return self.finish_reason == "length"

    @property
    def id(self) -> str:
        """`prompt id/sample index`, unique within a step."""
        return f"{self.prompt.id}/{self.sample_index}"

    def with_score(self, score: Score) -> Rollout:
        """The same rollout carrying `score`."""
        return replace(self, score=score)


@dataclass(frozen=True, slots=True)
class Batch:
    """The rollouts of one step as tensors. Fields below the blank line are filled in as the loop goes."""

    token_ids: Int[Tensor, "B T"]
    attention_mask: Bool[Tensor, "B T"]
    response_mask: Bool[Tensor, "B T"]
    loss_mask: Bool[Tensor, "B T"]
    rollout_logprobs: Float[Tensor, "B T"]
    rewards: Float[Tensor, " B"]
    truncated: Bool[Tensor, " B"]
    costs: Float[Tensor, " B"] | None = None

    old_logprobs: Float[Tensor, "B T"] | None = None
    ref_logprobs: Float[Tensor, "B T"] | None = None
    values: Float[Tensor, "B T"] | None = None
    advantages: Float[Tensor, "B T"] | None = None
    returns: Float[Tensor, "B T"] | None = None

    def __len__(self) -> int:
        return int(self.token_ids.shape[0])

    def with_(self, **tensors: Tensor) -> Batch:
        """A copy with the named fields replaced, e.g. `batch.with_(values=values)`."""
        return replace(self, **tensors)

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are there, contiguous and by name, as safetensors wants them."""
        found = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value.contiguous() for name, value in found.items() if value is not None}

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        return Batch(**{name: value.to(device) for name, value in self.tensors().items()})

    def rows(self, index: Int[Tensor, " n"], length: int | None = None) -> Batch:
        """The rows `index`, cut to the first `length` columns (all columns if None)."""
        return Batch(
            **{
                name: value[index] if value.dim() == 1 else value[index, :length]
                for name, value in self.tensors().items()
            }
        )


def present(value: Tensor | None, name: str) -> Tensor:
    """`value`, or a `ValueError` naming the batch field that an earlier stage should have filled."""
    if value is None:
        raise ValueError(f"batch.{name} is missing: the stage that fills it has not run")
    return value
