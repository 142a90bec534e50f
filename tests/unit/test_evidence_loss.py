"""Each loss is the negative logarithm of a probability: against slow float64 formulas, and against sums to one."""

from __future__ import annotations

import itertools
import math
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from rlhf_ray.algorithms.evidence_loss import (
    Judgements,
    Links,
    item_weights,
    mixed_loss,
    ordered_pairs,
    pair_loss,
    ranking_loss,
    rating_loss,
    thumb_loss,
)
from rlhf_ray.evidence import KINDS

NO, YES = torch.tensor(False), torch.tensor(True)


def _t(*values: float) -> Tensor:
    return torch.tensor(values)


def test_bradley_terry_with_margin() -> None:
    better, worse, margin = [1.0, -2.0, 0.3], [0.5, 1.0, 0.3], [0.0, 0.5, 1.0]
    slow = [-math.log(1 / (1 + math.exp(-(b - w - m)))) for b, w, m in zip(better, worse, margin, strict=True)]
    loss = pair_loss(_t(*better), _t(*worse), _t(*margin), torch.zeros(3).bool(), None)
    assert loss.tolist() == pytest.approx(slow, rel=1e-6)


@pytest.mark.parametrize("nu", [0.01, 1.0, 7.0])
def test_davidson_is_davidsons_formula(nu: float) -> None:
    first, second = math.exp(0.8), math.exp(-0.4)
    total = first + second + nu * math.sqrt(first * second)
    a, b, zero, log_nu = _t(0.8), _t(-0.4), _t(0.0), torch.tensor(math.log(nu))
    win, loss = (float(pair_loss(x, y, zero, NO[None], log_nu)) for x, y in ((a, b), (b, a)))
    tie = float(pair_loss(a, b, zero, YES[None], log_nu))
    assert (win, loss) == pytest.approx((-math.log(first / total), -math.log(second / total)), rel=1e-5)
    assert tie == pytest.approx(-math.log(nu * math.sqrt(first * second) / total), rel=1e-5)
    assert sum(math.exp(-x) for x in (win, loss, tie)) == pytest.approx(1, abs=1e-6)


def test_davidson_without_ties_is_bradley_terry() -> None:
    scores, zero, no = torch.linspace(-30, 30, 13), torch.zeros(13), torch.zeros(13).bool()
    limit = pair_loss(scores, zero, zero, no, torch.tensor(-torch.inf))
    assert torch.allclose(limit, pair_loss(scores, zero, zero, no, None), atol=1e-6)
    with pytest.raises(ValueError, match="without a tie parameter"):
        pair_loss(_t(1.0), _t(0.0), _t(0.0), YES[None], None)


def test_plackett_luce_adds_up_to_one_over_all_orders() -> None:
    scores = [0.3, -1.2, 2.0, 0.7]
    probabilities = []
    for order in itertools.permutations(range(4)):
        ranks = torch.tensor([[order.index(i) + 1 for i in range(4)]])
        loss = float(ranking_loss(_t(*scores)[None], ranks, torch.ones(1, 4).bool()))
        left, slow = list(order), 0.0
        while left:
            slow -= math.log(math.exp(scores[left[0]]) / sum(math.exp(scores[i]) for i in left))
            left.pop(0)
        assert loss == pytest.approx(slow, rel=1e-5)
        probabilities.append(math.exp(-loss))
    assert sum(probabilities) == pytest.approx(1, abs=1e-5)


def test_equal_ranks_do_not_compete() -> None:
    scores, there = _t(0.3, -1.2, 2.0, 0.7), torch.ones(4).bool()
    e = [math.exp(float(s)) for s in scores]
    # 0 and 2 share the first place, 1 and 3 the second: each of the first beats both of the second.
    slow = -math.log(e[0] / (e[0] + e[1] + e[3])) - math.log(e[2] / (e[2] + e[1] + e[3]))
    assert float(ranking_loss(scores, torch.tensor([1, 2, 1, 2]), there)) == pytest.approx(slow, rel=1e-6)
    assert float(ranking_loss(scores, torch.ones(4).long(), there)) == 0


def test_a_ranking_of_two_is_a_pair() -> None:
    a, b = _t(0.3, -1.0, 4.0), _t(1.3, -2.0, 4.0)
    ranks = torch.tensor([1, 2]).expand(3, 2)
    ranking = ranking_loss(torch.stack([a, b], dim=1), ranks, torch.ones(3, 2).bool())
    assert torch.allclose(ranking, pair_loss(a, b, torch.zeros(3), torch.zeros(3).bool(), None), atol=1e-6)


def test_padding_of_a_ranking_may_hold_anything() -> None:
    scores = torch.tensor([[1.0, 0.5, torch.nan, 1e30]], requires_grad=True)
    there = torch.tensor([[True, True, False, False]])
    loss = ranking_loss(scores, torch.tensor([[2, 1, 1, 9]]), there)
    assert float(loss.detach()) == pytest.approx(math.log(1 + math.exp(0.5)), rel=1e-6)
    loss.sum().backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all() and (scores.grad[0, 2:] == 0).all() and scores.grad[0, 0] > 0


@pytest.mark.parametrize("score", [-3.0, 0.0, 0.4, 25.0])
def test_levels_add_up_to_one(score: float) -> None:
    thresholds = [-1.5, -0.2, 0.1, 2.0]
    below = [0.0, *(1 / (1 + math.exp(score - t)) for t in thresholds), 1.0]
    losses = [float(rating_loss(_t(score), torch.tensor([k]), _t(*thresholds)[None])) for k in range(5)]
    if abs(score) < 20:  # beyond, the slow formula subtracts two numbers that are equal in floating point
        assert losses == pytest.approx([-math.log(below[k + 1] - below[k]) for k in range(5)], rel=1e-4)
    assert sum(math.exp(-x) for x in losses) == pytest.approx(1, abs=1e-5)


def test_two_levels_are_a_thumb() -> None:
    scores, level = _t(-2.0, 0.3, 1.0), torch.tensor([0, 1, 1])
    rating = rating_loss(scores, level, torch.full((3, 1), -0.7))
    assert torch.allclose(rating, thumb_loss(scores, level > 0, torch.full((3,), 0.7)), atol=1e-6)
    slow = [-math.log(1 - 1 / (1 + math.exp(1.3))), *(-math.log(1 / (1 + math.exp(-x - 0.7))) for x in (0.3, 1.0))]
    assert rating.tolist() == pytest.approx(slow, rel=1e-5)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_scores_stay_finite(size: float) -> None:
    big = torch.tensor([[size, -size, 0.0]], requires_grad=True)
    thresholds, log_nu = torch.tensor([[-1.0, 0.0, 1.0]], requires_grad=True), torch.tensor(0.5, requires_grad=True)
    losses = [pair_loss(big[:, 0], big[:, 1], torch.zeros(1), tie[None], log_nu) for tie in (NO, YES)]
    losses.append(pair_loss(big[:, 0], big[:, 1], torch.zeros(1), NO[None], None))
    losses.append(ranking_loss(big, torch.tensor([[1, 2, 3]]), torch.ones(1, 3).bool()))
    losses += [rating_loss(big[:, 0], torch.tensor([k]), thresholds) for k in range(4)]
    losses += [thumb_loss(big[:, 0], good[None], torch.zeros(1)) for good in (NO, YES)]
    assert all(loss.isfinite().all() and (loss >= 0).all() for loss in losses)
    gradients = torch.autograd.grad(torch.stack([x.sum() for x in losses]).sum(), [big, thresholds, log_nu])
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_gradients_are_the_derivatives() -> None:
    def losses(x: Tensor, thresholds: Tensor) -> tuple[Tensor, ...]:
        tie = torch.tensor([False, True])
        pairs = pair_loss(x[:2], x[2:4], torch.tensor([0.2, 0.0]), tie, x[4])
        plain = pair_loss(x[:1], x[1:2], torch.zeros(1), NO[None], None)
        ranking = ranking_loss(x[:4].view(1, 4), torch.tensor([[2, 1, 3, 2]]), torch.tensor([[True] * 3 + [False]]))
        levels = rating_loss(x[:1].expand(4), torch.arange(4), thresholds.expand(4, -1))
        return pairs, plain, ranking, levels, thumb_loss(x[:2], tie, x[4:].expand(2))

    x = torch.tensor([0.4, -0.7, 1.1, 0.2, -0.3], dtype=torch.float64, requires_grad=True)
    thresholds = torch.tensor([[-1.0, 0.1, 0.8]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(losses, (x, thresholds))


def test_low_precision_is_widened() -> None:
    half = torch.tensor([0.3, -0.2], dtype=torch.bfloat16)
    losses = [pair_loss(half, half, half, torch.zeros(2).bool(), None), thumb_loss(half, half > 0, half)]
    losses += [ranking_loss(half, torch.tensor([1, 2]), torch.ones(2).bool())]
    losses += [rating_loss(half, torch.tensor([0, 1]), half[:, None])]
    assert {loss.dtype for loss in losses} == {torch.float32}


def _batch(seed: int = 0, items: int = 12, members: int = 2) -> tuple[Tensor, Judgements, Links]:
    """Random scores of 3 objectives and a judgement of every kind, some on an objective and some on the total."""
    g = torch.Generator().manual_seed(seed)
    kinds = torch.arange(items) % 4
    counts = torch.tensor([2, 3, 1, 1])[kinds]
    starts = counts.cumsum(0) - counts
    place = torch.arange(3).expand(items, 3)
    present = place < counts[:, None]
    judged = Judgements(
        kind=kinds,
        objective=torch.arange(items) % 5 % 4 - 1,
        answers=torch.where(present, starts[:, None] + place, 0),
        present=present,
        ranks=torch.where(torch.arange(items)[:, None] % 8 == 0, 1, place + 1),  # some pairs are ties
        margin=torch.where(kinds == 0, torch.rand(items, generator=g), 0.0) * (torch.arange(items) % 8 != 0),
        level=torch.randint(0, 2, (items,), generator=g) + 2 * (kinds == 2),
        weight=torch.rand(items, generator=g) + 0.5,
        member_weights=torch.randint(0, 3, (items, members), generator=g).float(),
    )
    scores = torch.randn(int(counts.sum()), members, 3, generator=g)
    links = Links(torch.tensor(0.3), torch.randn(4, 1, generator=g) + torch.arange(4.0), torch.randn(4, generator=g))
    return scores, judged, links


def _slow(scores: Tensor, items: Judgements, links: Links, weights: dict[str, float], center: float) -> float:
    """The mixed loss one item and one member at a time, with each kind's own loss on plain numbers."""
    total, totals = 0.0, scores.mean(dim=-1)
    for i in range(len(items.kind)):
        kind, objective = KINDS[int(items.kind[i])], int(items.objective[i])
        rows = items.answers[i][items.present[i]]
        for m in range(scores.shape[1]):
            s = totals[rows, m] if objective == -1 else scores[rows, m, objective]
            if kind == "pair":
                tie = items.ranks[i, 0] == items.ranks[i, 1]
                loss = pair_loss(s[:1], s[1:2], items.margin[i : i + 1], tie[None], links.log_nu).sum()
            elif kind == "ranking":
                loss = ranking_loss(s, items.ranks[i], torch.ones(3).bool())
            elif kind == "rating":
                assert links.thresholds is not None
                loss = rating_loss(s, items.level[i : i + 1], links.thresholds[objective][None]).sum()
            else:
                assert links.thumb_bias is not None
                loss = thumb_loss(s, items.level[i : i + 1] == 1, links.thumb_bias[objective][None]).sum()
            weight = weights.get(kind, 1.0) * float(items.weight[i]) * float(items.member_weights[i, m])
            total += weight * (float(loss) + center * float(s.mean()) ** 2)
    everything = sum(weights.get(KINDS[int(k)], 1.0) * float(w) for k, w in zip(items.kind, items.weight, strict=True))
    return total / (everything * scores.shape[1])


def test_the_mixed_loss_is_the_weighted_sum_of_its_parts() -> None:
    scores, items, links = _batch()
    weights = {"pair": 1.0, "ranking": 0.5, "rating": 2.0, "thumb": 0.0}
    whole = float(item_weights(items, weights).sum())
    loss = mixed_loss(scores, scores.mean(dim=-1), items, links, weights, 0.1, whole)
    assert float(loss) == pytest.approx(_slow(scores, items, links, weights, 0.1), rel=1e-5)


def _part(scores: Tensor, items: Judgements, rows: range) -> tuple[Tensor, Judgements]:
    """Some items, their answers renumbered."""
    picked = Judgements(**{f.name: getattr(items, f.name)[list(rows)] for f in fields(items)})
    first, last = int(picked.answers[picked.present].min()), int(picked.answers[picked.present].max())
    answers = torch.where(picked.present, picked.answers - first, 0)
    return scores[first : last + 1], replace(picked, answers=answers)


@pytest.mark.parametrize("cuts", [[6], [1, 2, 9], list(range(1, 12))])
def test_any_split_gives_the_same_loss_and_gradient(cuts: list[int]) -> None:
    scores, items, links = _batch()
    assert links.log_nu is not None and links.thresholds is not None and links.thumb_bias is not None
    learned = [links.log_nu.requires_grad_(), links.thresholds.requires_grad_(), links.thumb_bias.requires_grad_()]
    scores.requires_grad_()
    whole = float(item_weights(items, {}).sum())
    loss = mixed_loss(scores, scores.mean(dim=-1), items, links, {}, 0.1, whole)
    gradient = torch.autograd.grad(loss, [scores, *learned])
    parts = []
    for start, end in itertools.pairwise([0, *cuts, 12]):
        s, judged = _part(scores, items, range(start, end))
        parts.append(mixed_loss(s, s.mean(dim=-1), judged, links, {}, 0.1, whole))
        alone = torch.autograd.grad(parts[-1], learned, retain_graph=True)  # each part reaches every learned number
        assert all(g.isfinite().all() for g in alone)
    split = torch.autograd.grad(torch.stack(parts).sum(), [scores, *learned])
    assert torch.allclose(torch.stack(parts).sum(), loss, rtol=1e-5)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(gradient, split, strict=True))


def test_members_learn_from_their_own_sample() -> None:
    scores, items, links = _batch()
    items = replace(items, member_weights=torch.tensor([[1.0, 0.0]]).expand(12, 2))
    scores.requires_grad_()
    mixed_loss(scores, scores.mean(dim=-1), items, links, {}, 0.1, 1.0).backward()
    assert scores.grad is not None
    assert scores.grad[:, 0].abs().sum() > 0 and scores.grad[:, 1].abs().sum() == 0


def test_what_cannot_be_is_refused() -> None:
    scores, items, links = _batch()
    with pytest.raises(ValueError, match="denominator"):
        mixed_loss(scores, scores.mean(dim=-1), items, links, {}, 0.0, 0.0)
    for name, message in (("thresholds", "need thresholds"), ("thumb_bias", "need a bias"), ("log_nu", "a tie")):
        with pytest.raises(ValueError, match=message):
            mixed_loss(scores, scores.mean(dim=-1), items, replace(links, **{name: None}), {}, 0.0, 1.0)


def test_ordered_pairs_are_counted_by_hand() -> None:
    _, items, _ = _batch(items=2)  # a tie of answers 0 and 1, a ranking 2 > 3 > 4
    assert ordered_pairs(_t(9.0, 1.0, 3.0, 2.0, 2.5), items) == (2, 3)
    assert ordered_pairs(_t(9.0, 1.0, 3.0, 3.0, 3.0), items) == (0, 3)
    assert ordered_pairs(torch.zeros(5), replace(items, ranks=torch.ones(2, 3).long())) == (0, 0)
