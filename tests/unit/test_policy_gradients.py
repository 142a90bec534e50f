"""Every policy-gradient method against plain loops in float64, and what no split, order or padding may change."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from rlhf_ray import metrics as names
from rlhf_ray.algorithms import ops
from rlhf_ray.algorithms.aggregation import loss_weights
from rlhf_ray.algorithms.groups import relative_to_group, returns_to_go
from rlhf_ray.algorithms.policy_gradient import PolicyGradient
from rlhf_ray.algorithms.report import join_reports
from rlhf_ray.conformance import oracles
from rlhf_ray.data.batching import microbatches
from rlhf_ray.types import Batch
from tests.conformance import methods
from tests.conformance.methods import method
from tests.unit.test_ppo import NAN, B, T, current, make_batch

GROUPS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2])
METHODS = [name for name in methods.METHODS if name != "ppo_lagrangian"]  # which has a file of its own


def loss_of(algorithm: PolicyGradient, batch: Batch, new: Tensor, weights: Tensor) -> Tensor:
    """The policy loss alone."""
    return algorithm.policy_loss(new, torch.zeros_like(new), batch, weights, 0.3)[0]


def rows_of(x: Tensor, mask: Tensor) -> list[list[float]]:
    """The entries of `x` at the mask, row by row."""
    return [x[i][mask[i]].tolist() for i in range(len(x))]


def token_rewards(batch: Batch, coef: float) -> list[list[float]]:
    """Per response token: minus coef times k1, plus the reward on the last."""
    assert batch.old_logprobs is not None and batch.ref_logprobs is not None
    old, ref = (rows_of(x, batch.response_mask) for x in (batch.old_logprobs, batch.ref_logprobs))
    found = [[-coef * (p - q) for p, q in zip(*pair, strict=True)] for pair in zip(old, ref, strict=True)]
    for row, reward in zip(found, batch.rewards.tolist(), strict=True):
        row[-1] += reward
    return found


def relative(scores: Sequence[float], usable: Sequence[bool], leave_one_out: bool, scale: bool) -> list[float]:
    """The definition, row by row."""
    found = []
    for i, score in enumerate(scores):
        group = [j for j in range(len(scores)) if GROUPS[j] == GROUPS[i] and usable[j]]
        if not usable[i] or len(group) < 2:
            found.append(0.0)
            continue
        others = [scores[j] for j in group if j != i or not leave_one_out]
        value = score - sum(others) / len(others)
        mean = sum(scores[j] for j in group) / len(group)
        deviation = math.sqrt(sum((scores[j] - mean) ** 2 for j in group) / (len(group) - 1))
        found.append(value / deviation if scale else value)
    return found


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "dapo", "rloo", "gspo", "cispo"])
@pytest.mark.parametrize("placement", ["reward", "loss"])
def test_advantages_relative_to_the_group_are_the_definition(name: str, placement: str) -> None:
    batch = make_batch()
    algorithm = method(name, kl_placement=placement, kl_coef=0.2)
    found, metrics = algorithm.advantages(batch, GROUPS)
    scores = [math.fsum(row) for row in token_rewards(batch, 0.2 if placement == "reward" else 0.0)]
    expected = relative(scores, batch.loss_mask.any(dim=1).tolist(), name == "rloo", name not in ("dr_grpo", "rloo"))
    assert found.advantages is not None
    for row in range(B):
        inside = found.advantages[row][batch.loss_mask[row]]
        assert inside.tolist() == pytest.approx([expected[row]] * len(inside), abs=1e-5)
    assert not found.advantages[~batch.loss_mask].any()
    assert metrics[names.KL_COEF] == 0.2


def test_equal_rewards_say_exactly_nothing() -> None:
    # In float32 the mean of 0.3 six times is not 0.3, and a standard deviation of 1e-8 would blow that up.
    for value, count in ((0.3, 6), (0.1, 7), (0.7, 7)):
        scores = torch.full((count,), value)
        group, usable = torch.zeros(count, dtype=torch.long), torch.ones(count, dtype=torch.bool)
        for scale in (False, True):
            assert not relative_to_group(scores, group, usable, "mean", scale).any()
            assert not relative_to_group(scores + 1e-8 * torch.rand(count), group, usable, "mean", scale).any()


def test_leave_one_out_of_three() -> None:
    scores, usable = torch.tensor([1.0, 2.0, 6.0]), torch.ones(3, dtype=torch.bool)
    found = relative_to_group(scores, torch.zeros(3, dtype=torch.long), usable, "leave_one_out")
    assert found.tolist() == pytest.approx([1 - 4, 2 - 3.5, 6 - 1.5])
    usable[2] = False
    found = relative_to_group(scores, torch.zeros(3, dtype=torch.long), usable, "leave_one_out")
    assert found.tolist() == pytest.approx([-1.0, 1.0, 0.0])


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_returns_pass_over_what_the_policy_did_not_write(gamma: float) -> None:
    batch = make_batch()
    rewards = token_rewards(batch, 0.2)
    placed = torch.full((B, T), NAN)
    for row in range(B):
        placed[row][batch.response_mask[row]] = torch.tensor(rewards[row])
    found = returns_to_go(placed, batch.response_mask, gamma)
    for row in range(B):
        each = rewards[row]
        expected = [sum(gamma**k * r for k, r in enumerate(each[t:])) for t in range(len(each))]
        assert found[row][batch.response_mask[row]].tolist() == pytest.approx(expected, abs=1e-5)
    assert not found[~batch.response_mask].any()


def test_reinforce_subtracts_what_earlier_steps_earned() -> None:
    batch = make_batch()
    algorithm = method("reinforce", kl_coef=0.2, baseline_momentum=0.5)
    rewards = token_rewards(batch, 0.2)
    counted = [math.fsum(row) for row, used in zip(rewards, batch.loss_mask.any(dim=1), strict=True) if used]
    mean = sum(counted) / len(counted)
    assert len(counted) < B, "an answer that is left out of the loss is left out of the baseline"
    for baseline in (0.0, mean, mean):  # nothing, then the first step's mean, then half of it and half of the same
        found, metrics = algorithm.advantages(batch, GROUPS, adapt=False)
        assert found.advantages is not None
        assert metrics[names.REWARD_BASELINE] == pytest.approx(baseline, abs=1e-5)
        expected = [math.fsum(rewards[0][t:]) - baseline for t in range(len(rewards[0]))]
        assert found.advantages[0][batch.loss_mask[0]].tolist() == pytest.approx(expected, abs=1e-5)
    again = method("reinforce", kl_coef=0.2)
    again.load_state_dict(json.loads(json.dumps(algorithm.state_dict())))
    assert again.advantages(batch, GROUPS)[1][names.REWARD_BASELINE] == pytest.approx(mean, abs=1e-5)


def test_reinforce_pp_whitens_returns_over_all_tokens() -> None:
    batch = make_batch()
    rewards = token_rewards(batch, 0.05)
    returns = [[math.fsum(row[t:]) for t in range(len(row))] for row in rewards]
    counted = [x for row, used in zip(returns, batch.loss_mask.any(dim=1), strict=True) if used for x in row]
    mean = math.fsum(counted) / len(counted)
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in counted) / (len(counted) - 1))
    found, _ = method("reinforce_pp").advantages(batch, GROUPS)
    assert found.advantages is not None
    expected = [(x - mean) / deviation for x in returns[0]]
    assert found.advantages[0][batch.loss_mask[0]].tolist() == pytest.approx(expected, abs=1e-5)


def test_aggregations_by_hand() -> None:
    mask = torch.tensor([[True, True, True, False], [True, False, False, False], [False] * 4])
    expected = {
        "token_mean": [1 / 4, 1 / 4],
        "sequence_mean": [1 / 2, 1 / 2],
        "length_normalised": [1 / 6, 1 / 2],
        "constant": [1 / 20, 1 / 20],
    }
    for name, (first, second) in expected.items():
        weights = loss_weights(mask, name, 10 if name == "constant" else None)  # type: ignore[arg-type]  # one of them
        torch.testing.assert_close(weights, torch.tensor([[first] * 3 + [0], [second] + [0] * 3, [0] * 4]))
        assert not loss_weights(torch.zeros_like(mask), name, 10).any()  # type: ignore[arg-type]  # as above


def _rows(batch: Batch) -> Callable[[Tensor], list[list[float]]]:
    return lambda x: rows_of(x, batch.loss_mask)


def test_gspo_clips_the_geometric_mean_of_an_answers_ratios() -> None:
    batch, _ = method("gspo").advantages(make_batch(), GROUPS)
    new = current(batch)
    assert batch.old_logprobs is not None and batch.advantages is not None
    of = _rows(batch)
    losses = []
    for logprobs, old, advantages in zip(of(new), of(batch.old_logprobs), of(batch.advantages), strict=True):
        if logprobs:
            ratio = math.exp(sum(a - b for a, b in zip(logprobs, old, strict=True)) / len(logprobs))
            clipped = min(max(ratio, 1 - 3e-4), 1 + 4e-4)
            losses.append(-min(ratio * advantages[0], clipped * advantages[0]))
    algorithm = method("gspo", clip_range=3e-4, clip_range_high=4e-4, kl_coef=0.0, kl_placement="reward")
    loss = loss_of(algorithm, batch, new, algorithm.weights(batch))
    assert float(loss.detach()) == pytest.approx(sum(losses) / len(losses), abs=1e-6)


def test_cispo_has_the_gradient_of_weighted_log_probabilities() -> None:
    batch, _ = method("cispo").advantages(make_batch(), GROUPS)
    new = current(batch).requires_grad_()
    algorithm = method("cispo", clip_range_high=0.1, kl_coef=0.0, kl_placement="reward")
    loss_of(algorithm, batch, new, algorithm.weights(batch)).backward()  # type: ignore[no-untyped-call]  # torch's
    assert batch.old_logprobs is not None and batch.advantages is not None and new.grad is not None
    count = int(batch.loss_mask.sum())
    for row, column in batch.loss_mask.nonzero().tolist():
        weight = min(math.exp(float((new[row, column] - batch.old_logprobs[row, column]).detach())), 1.1)
        expected = -weight * float(batch.advantages[row, column]) / count
        assert float(new.grad[row, column]) == pytest.approx(expected, abs=1e-7)
    assert not new.grad[~batch.loss_mask].any()


def test_clip_higher_lets_good_tokens_rise_further() -> None:
    new = torch.tensor([[math.log(1.25), math.log(1.25), math.log(0.7)]], requires_grad=True)
    advantages = torch.tensor([[1.0, -1.0, -1.0]])
    losses, clipped = ops.clipped_policy_loss(new, torch.zeros(1, 3), advantages, 0.2, None, 0.28)
    assert losses.tolist()[0] == pytest.approx([-1.25, 1.25, 0.8]) and clipped.tolist() == [[False, False, True]]
    losses, clipped = ops.clipped_policy_loss(new, torch.zeros(1, 3), advantages, None, None)
    assert losses.tolist()[0] == pytest.approx([-1.25, 1.25, 0.7]) and not clipped.any()


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_the_kl_loss_has_the_gradient_of_the_kl(estimator: str) -> None:
    """By enumeration over a vocabulary of 5: the policy's expectation of the gradient is that of KL(policy || ref)."""
    draw = torch.Generator().manual_seed(3)
    logits = torch.randn(5, generator=draw, dtype=torch.float64).requires_grad_()
    ref_logits = torch.randn(5, generator=draw, dtype=torch.float64)
    logprobs, ref = torch.log_softmax(logits, 0), torch.log_softmax(ref_logits, 0)
    penalties = ops.kl_loss(logprobs[None], ref[None], estimator)  # type: ignore[arg-type]  # one of them
    (penalties[0] * logprobs.exp().detach()).sum().backward()  # type: ignore[no-untyped-call]  # torch's
    assert logits.grad is not None
    assert logits.grad.tolist() == pytest.approx(oracles.kl_gradient(logits.tolist(), ref_logits.tolist()), abs=1e-6)
    if estimator == "k3":
        mean = float((penalties[0] * logprobs.exp()).sum().detach())
        assert mean == pytest.approx(oracles.kl_divergence(logits.tolist(), ref_logits.tolist()), abs=1e-6)
    with pytest.raises(ValueError, match="k1 cannot be a loss"):
        ops.kl_loss(logprobs[None], ref[None], "k1")


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(("num_ranks", "max_tokens"), [(1, 1), (2, 20), (3, 1000)])
def test_no_split_changes_the_loss_or_the_gradient(name: str, num_ranks: int, max_tokens: int) -> None:
    algorithm = method(name)
    batch, _ = algorithm.advantages(make_batch(), GROUPS)
    weights = algorithm.weights(batch)
    whole = current(batch).requires_grad_()
    loss, report = algorithm.policy_loss(whole, torch.zeros_like(whole), batch, weights, 0.3)
    loss.backward()  # type: ignore[no-untyped-call]  # torch's
    parts, reports = current(batch).requires_grad_(), []
    for rank in microbatches(batch.attention_mask.sum(dim=1), num_ranks, max_tokens):
        for rows in rank:
            entropy = torch.zeros(len(rows), T)
            value, one = algorithm.policy_loss(parts[rows], entropy, batch.rows(rows), weights[rows], 0.3)
            value.backward()  # type: ignore[no-untyped-call]  # torch's
            reports.append(one)
    assert whole.grad is not None and parts.grad is not None
    torch.testing.assert_close(parts.grad, whole.grad, atol=1e-7, rtol=1e-5)
    assert torch.isfinite(whole.grad).all() and whole.grad.any()
    assert join_reports(reports).metrics() == pytest.approx(report.metrics(), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_neither_the_order_of_rows_nor_that_of_groups_matters(name: str) -> None:
    batch = make_batch()
    order = torch.randperm(B, generator=torch.Generator().manual_seed(5))
    straight, _ = method(name).advantages(batch, GROUPS)
    renamed = torch.tensor([7, 3, 5])[GROUPS]
    mixed, _ = method(name).advantages(batch.rows(order), renamed[order])
    assert straight.advantages is not None and mixed.advantages is not None
    torch.testing.assert_close(mixed.advantages, straight.advantages[order], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_the_report_is_a_mean_over_tokens_or_answers(name: str) -> None:
    """With a policy that did not move, whatever the aggregation: entropy 2 everywhere is reported as 2."""
    algorithm = method(name)
    batch, _ = algorithm.advantages(make_batch(), GROUPS)
    assert batch.old_logprobs is not None
    _, report = algorithm.policy_loss(batch.old_logprobs, torch.full((B, T), 2.0), batch, algorithm.weights(batch), 0.0)
    assert report.metrics()[names.ENTROPY] == pytest.approx(2.0)
    assert report.metrics()[names.FIRST_RATIO] == 0.0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"type": "grpo", "kl_estimator": "k1"}, "kl_estimator = k1 has no gradient"),
        ({"type": "rloo", "kl_estimator": "k3"}, "kl_estimator = k3 is for the loss"),
        ({"type": "grpo", "aggregation": "constant"}, "aggregation_length belong together"),
        ({"type": "grpo", "aggregation_length": 5}, "aggregation_length belong together"),
        ({"type": "reinforce", "clip_range_high": 0.3}, "need a clip_range"),
        ({"type": "ppo", "kl_target": -1.0}, "greater than 0"),
        ({"type": "grpo", "kl_target": 2.0, "kl_coef": 0.0}, "kl_target needs a kl_coef above 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        methods.ADAPTER.validate_python(settings)
