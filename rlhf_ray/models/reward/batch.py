"""Evidence as tensors: tokenized items, and one carrier of a training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import xxhash
from jaxtyping import Bool, Int
from torch import Tensor

from rlhf_ray.algorithms.evidence_loss import Judgements
from rlhf_ray.errors import UserError
from rlhf_ray.evidence import KINDS, Evidence, Item, Pair, Ranking, Rating, Thumb
from rlhf_ray.models.reward.network import TokenBatch
from rlhf_ray.models.reward.spec import RewardSpec
from rlhf_ray.models.reward.text import Encoded, TextEncoder

_POISSON = (0.36787944, 0.73575888, 0.91969860, 0.98101184, 0.99634015, 0.99940582, 0.99991676, 0.99998975)
"""The cumulative distribution of Poisson(1) at 0, 1, 2, ..."""


@dataclass(frozen=True, slots=True)
class EncodedItem:
    """A piece of evidence and its answers as token ids."""

    item: Evidence
    answers: tuple[Encoded, ...]

    def __len__(self) -> int:
        """The longest answer with its prompt, in tokens."""
        return max(len(answer) for answer in self.answers)


@dataclass(frozen=True, slots=True)
class RewardBatch:
    """All answers of some items, and what was said about them."""

    tokens: TokenBatch
    items: Judgements

    def __len__(self) -> int:
        """The number of items."""
        return int(self.items.kind.shape[0])

    def to(self, device: torch.device) -> RewardBatch:
        """The same on `device`."""
        return RewardBatch(self.tokens.to(device), self.items.to(device))


def encode_items(items: Sequence[Item], encoder: TextEncoder) -> list[EncodedItem]:
    """`items` with token ids, in their order; a `UserError` names a row that the model cannot learn from."""
    checked = [encoder.spec.check(item) for item in items]
    try:
        rows = iter(encoder([(item.prompt, answer) for item in checked for answer in item.answers]))
    except UserError:
        _name_the_refused(checked, encoder)
        raise
    return [EncodedItem(item, tuple(next(rows) for _ in item.answers)) for item in checked]


def _name_the_refused(items: Sequence[Evidence], encoder: TextEncoder) -> None:
    for item in items:
        try:
            encoder([(item.prompt, answer) for answer in item.answers])
        except UserError as error:
            raise UserError(f"{item.label.where}: {error}") from error


def collate(items: Sequence[EncodedItem], encoder: TextEncoder) -> RewardBatch:
    """`items` as one batch, answers in their order. A prompt that several answers share is read once if it is read
    apart. A `ValueError` if there are none."""
    if not items:
        raise ValueError("a batch needs at least one item")
    answers = [answer for item in items for answer in item.answers]
    return RewardBatch(token_batch(answers, encoder.padding), judgements([item.item for item in items], encoder.spec))


def token_batch(answers: Sequence[Encoded], padding: int) -> TokenBatch:
    """`answers` as tensors, filled up on the right with the token id `padding`."""
    token_ids, mask = _padded([answer.ids for answer in answers], padding)
    lengths = torch.tensor([answer.prompt_length for answer in answers])
    prompts = [answer.prompt_ids for answer in answers if answer.prompt_ids is not None]
    if not prompts:
        return TokenBatch(token_ids, mask, lengths)
    places = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    prompt_ids, prompt_mask = _padded(list(places), padding)
    return TokenBatch(token_ids, mask, lengths, prompt_ids, prompt_mask, torch.tensor([places[p] for p in prompts]))


def bootstrap_weights(item: Evidence, members: int) -> list[float]:
    """How often each member's bootstrap sample holds `item`: Poisson(1) (Oza and Russell 2001), drawn from a hash of
    the item and the member, so the same in every epoch and on every rank. A single member sees every item once.

    Without it, members on one backbone agree by construction, and their disagreement says nothing.
    """
    if members == 1:
        return [1.0]
    label = item.label
    about = (item.kind, label.where, label.objective, label.annotator or "")
    text = "\x00".join([*about, *(message.content for message in item.prompt), *item.answers])
    drawn = [xxhash.xxh64_intdigest(text.encode("utf-8", "surrogatepass"), seed=m) / 2**64 for m in range(members)]
    return [float(sum(u >= bound for bound in _POISSON)) for u in drawn]


def _padded(rows: Sequence[tuple[int, ...]], padding: int) -> tuple[Int[Tensor, "N T"], Bool[Tensor, "N T"]]:
    lengths = torch.tensor([len(row) for row in rows])
    token_ids = torch.full((len(rows), int(lengths.max())), padding)
    for index, row in enumerate(rows):
        token_ids[index, : len(row)] = torch.tensor(row)
    return token_ids, torch.arange(token_ids.shape[1]) < lengths[:, None]


def judgements(items: Sequence[Evidence], spec: RewardSpec) -> Judgements:
    """What was said in `items` about their answers, which are numbered through."""
    width = max(2, *(len(item.answers) for item in items))
    shape = (len(items), width)
    answers, present, ranks = torch.zeros(shape, dtype=torch.long), torch.zeros(shape).bool(), torch.ones(shape).long()
    start = 0
    for row, item in enumerate(items):
        count = len(item.answers)
        answers[row, :count] = torch.arange(start, start + count)
        present[row, :count] = True
        ranks[row, :count] = torch.tensor(_ranks(item))
        start += count
    objectives = [spec.objective_index(item.label.objective, item.label.where) for item in items]
    return Judgements(
        kind=torch.tensor([KINDS.index(item.kind) for item in items]),
        objective=torch.tensor(objectives),
        answers=answers,
        present=present,
        ranks=ranks,
        margin=torch.tensor([item.margin if isinstance(item, Pair) else 0.0 for item in items]),
        level=torch.tensor([_level(item, spec) for item in items]),
        weight=torch.tensor([item.label.weight for item in items]),
        member_weights=torch.tensor([bootstrap_weights(item, spec.members) for item in items]),
    )


def _ranks(item: Evidence) -> tuple[int, ...]:
    if isinstance(item, Ranking):
        return item.ranks
    if isinstance(item, Pair):
        return (1, 1) if item.tie else (1, 2)
    return (1,)


def _level(item: Evidence, spec: RewardSpec) -> int:
    if isinstance(item, Rating) and spec.rating is not None:
        return spec.rating.level(item.value, item.label.where)
    return int(item.good) if isinstance(item, Thumb) else 0
