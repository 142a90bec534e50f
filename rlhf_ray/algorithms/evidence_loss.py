"""Losses of a reward model on pairs, rankings, ratings and thumbs, and their sum over a mixed batch.

A score s is a log-strength: every model below is a probability of what people said, given scores, and its loss the
negative logarithm, in float32 at least. The losses return one number an item; `mixed_loss` weighs and adds up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from rlhf_ray.evidence import KINDS, Kind


@dataclass(frozen=True, slots=True)
class Judgements:
    """What people said about the N answers of a batch: I items on up to K answers each (K is at least 2), for M
    ensemble members."""

    kind: Int[Tensor, " I"]
    """Index into `KINDS`."""
    objective: Int[Tensor, " I"]
    """Index of the objective; -1 is the total."""
    answers: Int[Tensor, "I K"]
    """Which of the N answers an item is about; 0 where it has fewer than K."""
    present: Bool[Tensor, "I K"]
    """Where it has an answer at all."""
    ranks: Int[Tensor, "I K"]
    """1 is best, equal ranks are ties. A pair is 1, 2 or 1, 1."""
    margin: Float[Tensor, " I"]
    level: Int[Tensor, " I"]
    """Of a rating, from 0; a thumb's is 1 for a good answer and 0 for a bad one."""
    weight: Float[Tensor, " I"]
    member_weights: Float[Tensor, "I M"]
    """How often each member's bootstrap sample drew the item."""

    def to(self, device: torch.device) -> Judgements:
        """The same on `device`."""
        return Judgements(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


@dataclass(frozen=True, slots=True)
class Links:
    """The learned numbers that tie scores to what people say. Row r is objective r; the last row is the total's."""

    log_nu: Float[Tensor, ""] | None = None
    """Davidson's tie parameter; None is nu = 0: ties are impossible."""
    thresholds: Float[Tensor, "R T"] | None = None
    """Between the T + 1 levels of ratings, increasing along a row."""
    thumb_bias: Float[Tensor, " R"] | None = None


def pair_loss(
    better: Float[Tensor, "*n"],
    worse: Float[Tensor, "*n"],
    margin: Float[Tensor, "*n"],
    tie: Bool[Tensor, "*n"],
    log_nu: Float[Tensor, ""] | None,
) -> Float[Tensor, "*n"]:
    """-log p(better wins), or -log p(tie) where `tie` (Davidson 1970, with d = better - worse - margin):

    p(win) = 1 / Z, p(loss) = exp(-d) / Z, p(tie) = nu exp(-d / 2) / Z. With nu = 0 (`log_nu` None) this is
    Bradley-Terry, -log sigmoid(d), and a tie a `ValueError`. The margin is Touvron et al.'s (2023, arXiv 2307.09288).
    """
    difference = _wide(better) - _wide(worse) - _wide(margin)
    if log_nu is None:
        if bool(tie.any()):
            raise ValueError("a tie has probability 0 without a tie parameter")
        return F.softplus(-difference)
    half = difference / 2
    # Over the common factor exp(d / 2), so that nothing overflows at scores of any size.
    normalizer = torch.logaddexp(torch.logaddexp(half, -half), _wide(log_nu).expand_as(half))
    return normalizer - torch.where(tie, _wide(log_nu), half)


def ranking_loss(
    scores: Float[Tensor, "*n K"], ranks: Int[Tensor, "*n K"], present: Bool[Tensor, "*n K"]
) -> Float[Tensor, "*n"]:
    """-log p(ranking): one answer after the other, best first, wins against all that are ranked below it
    (Luce 1959; Plackett 1975). Answers of equal rank do not compete with each other.

    Only `present` answers count; the others may hold anything. Less than two ranks give 0, with a zero gradient.
    """
    scores = torch.where(present, _wide(scores), 0.0)
    below = (ranks.unsqueeze(-2) > ranks.unsqueeze(-1)) & present.unsqueeze(-2) & present.unsqueeze(-1)
    itself = torch.eye(ranks.shape[-1], dtype=torch.bool, device=ranks.device)
    rivals = scores.unsqueeze(-2).masked_fill(~(below | itself), -torch.inf)
    contests = torch.logsumexp(rivals, dim=-1) - scores
    return torch.where(below.any(-1), contests, 0.0).sum(-1)


def rating_loss(
    scores: Float[Tensor, "*n"], level: Int[Tensor, "*n"], thresholds: Float[Tensor, "*n T"]
) -> Float[Tensor, "*n"]:
    """-log p(level) where p(level <= k) = sigmoid(thresholds[k] - score): cumulative logits (McCullagh 1980).

    Levels run from 0 to T. `thresholds` must increase along their last dimension.
    """
    logits = _wide(thresholds) - _wide(scores).unsqueeze(-1)
    last = thresholds.shape[-1]
    upper = logits.gather(-1, level.clamp(max=last - 1).unsqueeze(-1)).squeeze(-1)
    lower = logits.gather(-1, (level - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1)
    inner = (level > 0) & (level < last)
    # sigmoid(a) - sigmoid(b) = sigmoid(a) sigmoid(-b) (1 - exp(b - a)): no difference of two numbers near 0 or 1.
    gap = torch.where(inner, upper - lower, 1.0)
    below_upper = torch.where(level < last, F.softplus(-upper), 0.0)
    above_lower = torch.where(level > 0, F.softplus(lower), 0.0)
    return below_upper + above_lower - torch.where(inner, torch.log(-torch.expm1(-gap)), 0.0)


def thumb_loss(scores: Float[Tensor, "*n"], good: Bool[Tensor, "*n"], bias: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """-log p(thumb) where p(good) = sigmoid(score + bias): the binary cross-entropy."""
    logits = _wide(scores) + _wide(bias)
    return F.softplus(torch.where(good, -logits, logits))


def item_weights(items: Judgements, kind_weights: Mapping[Kind, float]) -> Float[Tensor, " I"]:
    """The weight of each item in the loss: its own times its kind's (1 for a kind that is not named).

    Their sum over the whole batch, all ranks and microbatches together, is the `denominator` of `mixed_loss`.
    """
    of_kind = torch.tensor([kind_weights.get(kind, 1.0) for kind in KINDS], device=items.kind.device)
    return items.weight * of_kind[items.kind]


def mixed_loss(
    scores: Float[Tensor, "N M O"],
    totals: Float[Tensor, "N M"],
    items: Judgements,
    links: Links,
    kind_weights: Mapping[Kind, float],
    center_coef: float,
    denominator: float,
) -> Float[Tensor, ""]:
    """The weighted sum over items and members of each item's loss, divided by `denominator` and the members.

    Each item's loss is that of its kind plus `center_coef` times the squared mean score of its answers, which keeps
    scores around zero (Eisenstein et al. 2023, arXiv 2312.09244). `denominator` is the sum of `item_weights` over the
    *whole* batch, so the losses of any split into ranks and microbatches add up to the same number and gradient.
    Every learned number gets a gradient, zero if need be: ranks that reduce gradients together count on it.
    """
    if not denominator > 0:
        raise ValueError(f"denominator must be positive, got {denominator}: no item of the batch has a weight")
    picked = _picked(scores, totals, items)
    losses = _item_losses(picked, items, links) + center_coef * _mean_score(picked, items).square()
    weights = item_weights(items, kind_weights)[:, None] * items.member_weights
    return (weights * losses).sum() / (denominator * scores.shape[1])


@torch.no_grad()
def ordered_pairs(scores: Float[Tensor, " N"], items: Judgements) -> tuple[int, int]:
    """How many pairs of answers that people told apart `scores` order the same way, and how many there are.

    Rankings count all their pairs. Equal scores are wrong.
    """
    picked = scores[items.answers]
    both = items.present[:, :, None] & items.present[:, None, :]
    better = both & (items.ranks[:, :, None] < items.ranks[:, None, :])
    right = better & (picked[:, :, None] > picked[:, None, :])
    return int(right.sum()), int(better.sum())


@torch.no_grad()
def ordered_items(
    scores: Float[Tensor, "N M O"], totals: Float[Tensor, "N M"], items: Judgements
) -> Float[Tensor, " 3"]:
    """How many pairs of answers that people told apart the members' mean score of the item's objective orders the same
    way (equal scores count half), how many there are, and the sum of the score differences, better minus worse."""
    picked = _picked(scores, totals, items).mean(dim=1)
    both = items.present[:, :, None] & items.present[:, None, :]
    better = both & (items.ranks[:, :, None] < items.ranks[:, None, :])
    margins = (picked[:, :, None] - picked[:, None, :])[better]
    right = (margins > 0).sum() + 0.5 * (margins == 0).sum()
    return torch.stack([right, better.sum(), margins.sum()]).float()


def _picked(scores: Tensor, totals: Tensor, items: Judgements) -> Float[Tensor, "I M K"]:
    """The score that each item speaks of, for each of its answers and each member."""
    everything = torch.cat([_wide(scores), _wide(totals)[..., None]], dim=-1)  # -1 is the total
    return everything[items.answers[:, None, :], _members(scores)[None, :, None], items.objective[:, None, None]]


def _members(scores: Tensor) -> Int[Tensor, " M"]:
    return torch.arange(scores.shape[1], device=scores.device)


def _mean_score(picked: Tensor, items: Judgements) -> Float[Tensor, "I M"]:
    there = items.present[:, None, :]
    return torch.where(there, picked, 0.0).sum(-1) / there.sum(-1)


def _item_losses(picked: Float[Tensor, "I M K"], items: Judgements, links: Links) -> Float[Tensor, "I M"]:
    """The loss of every item by its kind. Kinds without items take part with no rows, for the sake of gradients."""
    losses = torch.zeros_like(picked[..., 0])
    for number, kind in enumerate(KINDS):
        rows = (items.kind == number).nonzero().flatten()
        if rows.numel() or _has_link(kind, links):
            losses = losses.index_add(0, rows, _losses_of(kind, picked[rows], _rows(items, rows), links))
    return losses


def _has_link(kind: Kind, links: Links) -> bool:
    named = {"pair": links.log_nu, "ranking": None, "rating": links.thresholds, "thumb": links.thumb_bias}
    return named[kind] is not None


def _losses_of(kind: Kind, scores: Float[Tensor, "n M K"], items: Judgements, links: Links) -> Float[Tensor, "n M"]:
    """The losses of `items`, which are all of one kind."""
    first = scores[..., 0]
    if kind == "pair":
        tie = (items.ranks[:, :1] == items.ranks[:, 1:2]).expand_as(first)
        return pair_loss(first, scores[..., 1], items.margin[:, None].expand_as(first), tie, links.log_nu)
    if kind == "ranking":
        ranks, present = items.ranks[:, None, :].expand_as(scores), items.present[:, None, :].expand_as(scores)
        return ranking_loss(scores, ranks, present)
    if kind == "rating":
        if links.thresholds is None:
            raise ValueError("ratings need thresholds")
        rows = links.thresholds[items.objective][:, None, :].expand(*first.shape, -1)
        return rating_loss(first, items.level[:, None].expand_as(first), rows)
    if links.thumb_bias is None:
        raise ValueError("thumbs need a bias")
    bias = links.thumb_bias[items.objective][:, None].expand_as(first)
    return thumb_loss(first, (items.level[:, None] > 0).expand_as(first), bias)


def _rows(items: Judgements, rows: Int[Tensor, " n"]) -> Judgements:
    return Judgements(**{field.name: getattr(items, field.name)[rows] for field in fields(items)})


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
