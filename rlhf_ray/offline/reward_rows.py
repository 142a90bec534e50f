"""Evidence for a reward model as rows of integers and numbers on disk, and back as a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from rlhf_ray.algorithms.evidence_loss import Judgements
from rlhf_ray.models.reward.batch import EncodedItem, RewardBatch, judgements, token_batch
from rlhf_ray.models.reward.spec import RewardSpec
from rlhf_ray.models.reward.text import Encoded

_NUMBERS = ("kind", "objective", "margin", "level", "weight")


def reward_row(item: EncodedItem, spec: RewardSpec) -> dict[str, object]:
    """One item: what was said, and the token ids of its answers. `length` is that of the longest text."""
    said = judgements([item.item], spec)
    row: dict[str, object] = {name: getattr(said, name)[0].item() for name in _NUMBERS}
    row["ranks"] = said.ranks[0, : len(item.answers)].tolist()
    row["member_weights"] = said.member_weights[0].tolist()
    row["answer_ids"] = [list(answer.ids) for answer in item.answers]
    row["prompt_lengths"] = [answer.prompt_length for answer in item.answers]
    row["prompt_ids"] = list(item.answers[0].prompt_ids or ())
    return row | {"length": len(item)}


def reward_batch(rows: Sequence[Mapping[str, Any]], spec: RewardSpec, padding: int) -> RewardBatch:
    """The batch of `rows`, equal to what `models.reward.batch.collate` makes of the items themselves."""
    answers = [
        Encoded(tuple(ids), length, tuple(row["prompt_ids"]) if spec.separate else None, truncated=False)
        for row in rows
        for ids, length in zip(row["answer_ids"], row["prompt_lengths"], strict=True)
    ]
    shape = (len(rows), max(2, *(len(row["ranks"]) for row in rows)))
    places, present = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.bool)
    ranks, start = torch.ones(shape, dtype=torch.long), 0
    for line, row in enumerate(rows):
        count = len(row["ranks"])
        places[line, :count] = torch.arange(start, start + count)
        present[line, :count] = True
        ranks[line, :count] = torch.tensor(row["ranks"])
        start += count
    numbers = {name: torch.tensor([row[name] for row in rows]) for name in _NUMBERS}
    members = torch.tensor([row["member_weights"] for row in rows])
    items = Judgements(answers=places, present=present, ranks=ranks, member_weights=members, **numbers)
    return RewardBatch(token_batch(answers, padding), items)
