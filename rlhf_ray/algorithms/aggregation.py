"""How losses of tokens become the loss of a minibatch: the choice changes how much long answers count."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Bool, Float
from torch import Tensor

Aggregation = Literal["token_mean", "sequence_mean", "length_normalised", "constant"]


def loss_weights(
    loss_mask: Bool[Tensor, "B T"], aggregation: Aggregation, length: int | None = None
) -> Float[Tensor, "B T"]:
    """The weight of every token, 0 outside the mask: the minibatch's loss is the sum of weighted token losses.

    `token_mean`: 1 / tokens of the minibatch, so long answers count more (Yu et al. 2025, DAPO, arXiv 2503.14476,
    eq. 12). `sequence_mean`: 1 / answers, the mean over answers of the sum over their tokens, as the policy gradient
    is defined. `length_normalised`: 1 / (answers * tokens of the answer), the mean over answers of means over tokens
    (GRPO; Shao et al. 2024, arXiv 2402.03300, eq. 3), which makes a long wrong answer cheaper. `constant`:
    1 / (answers * `length`) (Dr. GRPO; Liu et al. 2025, arXiv 2503.20783, section 3.2).

    Called once with the loss mask of the whole minibatch, the weights make the loss the same however it is split over
    microbatches and ranks. Answers without a token in the mask count nowhere. All zeros if the mask is empty.
    """
    mask = loss_mask.float()
    if aggregation == "token_mean":
        return mask / mask.sum().clamp(min=1)
    answers = loss_mask.any(dim=1).sum().clamp(min=1)
    if aggregation == "length_normalised":
        return mask / (answers * mask.sum(dim=1, keepdim=True).clamp(min=1))
    if aggregation == "sequence_mean":
        return mask / answers
    if length is None:
        raise ValueError("aggregation = constant needs a length")
    return mask / (answers * length)
