"""Every method on conversations with observations, padded with the end of sequence, and NaN wherever nothing was said:
advantages, losses and gradients are those of the policy's own tokens alone."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_ray import metrics as names
from rlhf_ray.algorithms.dpo import OnlineDPO, OnlineDPOConfig
from rlhf_ray.algorithms.importance import truncated_importance
from rlhf_ray.algorithms.ppo import PPO, PPOConfig
from rlhf_ray.conformance import oracles
from rlhf_ray.data.batching import collate
from rlhf_ray.types import Batch, Message, Prompt, Rollout, Score, present
from tests.conformance.methods import METHODS, method
from tests.conformance.policies import LEFT_OUT, NAN, PROMPTS, multi_turn_batch, rows_of, spread

COEF = 0.3


def token_rewards(batch: Batch, coef: float) -> list[list[float]]:
    """Of the action tokens of each row: minus coef times k1, and the reward on the last one."""
    old, ref = (rows_of(present(x, "x"), batch.response_mask) for x in (batch.old_logprobs, batch.ref_logprobs))
    found = [[-coef * (p - q) for p, q in zip(*pair, strict=True)] for pair in zip(old, ref, strict=True)]
    for row, reward in zip(found, batch.rewards.tolist(), strict=True):
        row[-1] += reward
    return found


def expected_advantages(name: str, batch: Batch, coef: float) -> Tensor:
    """By the oracles. Rows that do not count are in no group and no statistic."""
    rewards = spread(token_rewards(batch, coef), batch.response_mask).tolist()
    mask, counts = batch.response_mask.tolist(), batch.loss_mask.any(dim=1)
    if name == "reinforce":
        rows = [oracles.returns_to_go(r, m, 1.0) for r, m in zip(rewards, mask, strict=True)]
    elif name == "reinforce_pp":
        returns = [oracles.returns_to_go(r, m, 1.0) for r, m in zip(rewards, mask, strict=True)]
        rows = oracles.whitened(returns, batch.loss_mask.tolist())
    elif name.startswith("ppo"):
        values = present(batch.values, "values").tolist()
        each = zip(rewards, values, mask, strict=True)
        rows = oracles.whitened([oracles.advantages(*row, 1.0, 0.95) for row in each], batch.loss_mask.tolist())
    else:
        totals = [math.fsum(row) for row, used in zip(rewards, counts, strict=True) if used]
        leave_one_out, scale = name == "rloo", name in ("grpo", "dapo", "gspo", "cispo")
        scores = oracles.group_advantages(totals, PROMPTS[counts].tolist(), leave_one_out, scale)
        whole = torch.zeros(len(batch)).masked_scatter(counts, torch.tensor(scores))
        rows = whole[:, None].expand(batch.loss_mask.shape).tolist()
        if name == "reinforce_pp_baseline":
            rows = oracles.whitened(rows, batch.loss_mask.tolist())
    return torch.where(batch.loss_mask, torch.tensor(rows), 0.0)


@pytest.mark.parametrize("placement", ["reward", "loss"])
@pytest.mark.parametrize("name", METHODS)
def test_advantages_are_those_of_the_policys_own_tokens(name: str, placement: str) -> None:
    batch = multi_turn_batch()
    algorithm = method(name, kl_placement=placement, kl_coef=COEF)
    found, metrics = algorithm.advantages(batch, PROMPTS)
    if name == "ppo_lagrangian":
        batch = batch.with_(rewards=(batch.rewards - 1.0 * present(batch.costs, "costs")) / 2.0)
    want = expected_advantages(name, batch, COEF if placement == "reward" else 0.0)
    torch.testing.assert_close(found.advantages, want, atol=2e-5, rtol=1e-4)
    k1 = [p - q for p, q in zip(*(_own(x, batch) for x in (batch.old_logprobs, batch.ref_logprobs)), strict=True)]
    assert metrics[names.KL_PER_TOKEN] == pytest.approx(math.fsum(k1) / len(k1), rel=1e-4)
    assert metrics[names.KL_PER_SEQUENCE] == pytest.approx(math.fsum(k1) / len(batch), rel=1e-4)


def _own(x: Tensor | None, batch: Batch) -> list[float]:
    found: list[float] = present(x, "x")[batch.response_mask].tolist()
    return found


def token_losses(name: str, new: list[float], old: list[float], advantages: list[float]) -> list[float]:
    """Of one answer's tokens, as the method defines them."""
    if name == "gspo":
        return [oracles.sequence_policy_loss(new, old, advantages[0], 0.1, 0.2)] * len(new)
    tokens = list(zip(new, old, advantages, strict=True))
    if name == "cispo":
        return [oracles.clipped_weight_gradient(p, q, a, 1.0, 5.0) * p for p, q, a in tokens]
    if name == "reinforce":
        return [-math.exp(p - q) * a for p, q, a in tokens]
    high = 0.28 if name == "dapo" else 0.2
    return [oracles.policy_token_loss(p, q, a, high if a >= 0 else 0.2, None) for p, q, a in tokens]


def moved(batch: Batch, seed: int = 7) -> Tensor:
    """What the policy says now: near the old log-probabilities, NaN where those are."""
    noise = torch.randn(batch.token_ids.shape, generator=torch.Generator().manual_seed(seed))
    return (present(batch.old_logprobs, "old_logprobs") + 0.3 * noise).requires_grad_()


@pytest.mark.parametrize("placement", ["reward", "loss"])
@pytest.mark.parametrize("name", METHODS)
def test_losses_are_those_of_the_policys_own_tokens(name: str, placement: str) -> None:
    algorithm = method(name, kl_placement=placement, entropy_coef=0.01)
    batch, _ = algorithm.advantages(multi_turn_batch(), PROMPTS)
    new = moved(batch)
    entropy = torch.where(batch.response_mask, 0.5 - new.detach(), NAN)
    loss, report = algorithm.policy_loss(new, entropy, batch, algorithm.weights(batch), COEF)
    fields = (new, batch.old_logprobs, batch.advantages, batch.ref_logprobs)
    rows = []
    for p, q, a, r in zip(*(rows_of(present(x, "x"), batch.loss_mask) for x in fields), strict=True):
        losses = token_losses(name, p, q, a) if p else []
        coef = COEF if placement == "loss" else 0.0
        penalties = [coef * oracles.kl_estimate(x, y, "k2") for x, y in zip(p, r, strict=True)]
        rows.append([x + y - 0.01 * (0.5 - z) for x, y, z in zip(losses, penalties, p, strict=True)])
    config = algorithm.config
    padded = spread(rows, batch.loss_mask).tolist()
    want = oracles.aggregated(padded, batch.loss_mask.tolist(), config.aggregation, config.aggregation_length or 1)
    assert loss.item() == pytest.approx(want, rel=1e-4, abs=1e-6)
    assert all(map(math.isfinite, report.metrics().values()))
    torch.autograd.backward(loss)
    assert new.grad is not None and bool(new.grad.isfinite().all())
    assert not new.grad[~batch.loss_mask].any(), "a token that the policy did not choose, or that does not count"


@pytest.mark.parametrize("name", METHODS)
def test_before_any_update_the_ratio_is_one_and_the_gradient_that_of_the_policy(name: str) -> None:
    algorithm = method(name)
    batch, _ = algorithm.advantages(multi_turn_batch(), PROMPTS)
    new = present(batch.old_logprobs, "old_logprobs").clone().requires_grad_()
    weights = algorithm.weights(batch)
    loss, report = algorithm.policy_loss(new, torch.zeros_like(new), batch, weights, 0.0)
    assert report.maxima[names.FIRST_RATIO] == 0.0 and report.metrics()[names.POLICY_CLIP_FRACTION] == 0.0
    torch.autograd.backward(loss)
    want = -weights * present(batch.advantages, "advantages")
    torch.testing.assert_close(new.grad, want, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_importance_weights_are_those_of_the_policys_own_tokens(level: Any) -> None:
    batch = multi_turn_batch()
    found = truncated_importance(batch, level, 1.4)
    pairs = (rows_of(present(x, "x"), batch.response_mask) for x in (batch.old_logprobs, batch.rollout_logprobs))
    rows = [oracles.importance_weights(p, q, level, 1.4) for p, q in zip(*pairs, strict=True)]
    want = torch.where(batch.response_mask, spread(rows, batch.response_mask), 1.0)
    torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-4)


def test_the_critics_loss_is_that_of_the_policys_own_tokens() -> None:
    ppo = PPO(PPOConfig(gamma=0.9))
    batch, metrics = ppo.advantages(multi_turn_batch(), PROMPTS)
    old, returns = present(batch.values, "values"), present(batch.returns, "returns")
    values = (old + 0.6 * torch.randn(old.shape, generator=torch.Generator().manual_seed(1))).requires_grad_()
    loss, _ = ppo.value_loss(values, batch, ppo.weights(batch))
    tokens = zip(*(x[batch.loss_mask].tolist() for x in (values, old, returns)), strict=True)
    losses = [oracles.value_token_loss(v, o, r, 0.5) for v, o, r in tokens]
    assert loss.item() == pytest.approx(math.fsum(losses) / len(losses), rel=1e-5)
    torch.autograd.backward(loss)
    assert values.grad is not None and bool(values.grad.isfinite().all()) and not values.grad[~batch.loss_mask].any()
    rewards = spread(token_rewards(batch, 0.05), batch.response_mask)
    for row in range(len(batch)):
        want = oracles.lambda_returns(
            rewards[row].tolist(), old[row].tolist(), batch.response_mask[row].tolist(), 0.9, 0.95
        )
        assert returns[row].tolist() == pytest.approx(want, abs=1e-5)
    picked, errors = returns[batch.loss_mask], (returns - old)[batch.loss_mask]
    explained = 1 - float(errors.double().var() / picked.double().var())
    assert metrics[names.CRITIC_EXPLAINED_VARIANCE] == pytest.approx(explained, rel=1e-4)


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo"])
def test_the_loss_of_pairs_is_that_of_the_policys_own_tokens(loss: Any) -> None:
    dpo = OnlineDPO(OnlineDPOConfig(loss=loss, beta=0.3))
    batch, metrics = dpo.advantages(multi_turn_batch(), PROMPTS)
    new = moved(batch)
    found, report = dpo.policy_loss(new, torch.zeros_like(new), batch, dpo.weights(batch), 0.3)
    ref, mask = present(batch.ref_logprobs, "ref_logprobs").tolist(), batch.loss_mask.tolist()
    each = zip(new.tolist(), ref, mask, strict=True)
    ratios = [oracles.answer_log_ratio(*row, loss) if any(row[2]) else None for row in each]
    pairs = [(c, r) for c, r in zip(ratios[::2], ratios[1::2], strict=True) if c is not None and r is not None]
    assert len(pairs) == 2 and metrics[names.WITHOUT_PREFERENCE] == 1.0, "of the second prompt one answer is left"
    assert found.item() == pytest.approx(sum(oracles.pair_loss(c, r, 0.3, loss) for c, r in pairs) / 2, rel=1e-4)
    best = [max(rows, key=lambda row: float(multi_turn_batch().rewards[row])) for rows in ([0, 1, 2], [5, 6, 7])]
    assert [float(x) for x in batch.rewards[[0, 4]]] == [float(multi_turn_batch().rewards[row]) for row in best]
    torch.autograd.backward(found)
    assert new.grad is not None and bool(new.grad.isfinite().all()) and not new.grad[~batch.loss_mask].any()
    assert all(map(math.isfinite, report.metrics().values()))


def test_a_sampled_end_of_sequence_is_no_padding() -> None:
    """Padding has the same id; the answer's last token counts, in the loss and as the place of the reward."""
    rollouts = [
        Rollout(Prompt("p", (Message("user", "x"),), (5, 6)), 0, ids, (-1.0,) * len(ids), "", "stop", 0, Score(1.0))
        for ids in ((7, 8, 9, 2), (7, 2), (2,))
    ]
    batch = collate(rollouts, 2, "mask", 0.0)
    assert batch.response_mask.sum(dim=1).tolist() == batch.loss_mask.sum(dim=1).tolist() == [4, 2, 1]
    assert batch.attention_mask.sum(dim=1).tolist() == [6, 4, 3]
    zeros = torch.zeros(batch.token_ids.shape)
    batch = batch.with_(old_logprobs=zeros, ref_logprobs=zeros, rewards=torch.tensor([1.0, 2.0, 4.0]))
    found, _ = method("reinforce", baseline="none", gamma=0.5).advantages(batch, torch.zeros(3, dtype=torch.long))
    advantages = present(found.advantages, "advantages").tolist()
    assert advantages == [[0, 0, 0.125, 0.25, 0.5, 1], [0, 0, 1, 2, 0, 0], [0, 0, 4, 0, 0, 0]]


def test_a_row_that_does_not_count_changes_no_other() -> None:
    for name in METHODS:
        plain, wild = multi_turn_batch(), multi_turn_batch()
        rewards = wild.rewards.clone()
        rewards[LEFT_OUT] = 1e4
        found = [
            present(method(name).advantages(b, PROMPTS)[0].advantages, "advantages")
            for b in (plain, wild.with_(rewards=rewards))
        ]
        assert torch.equal(*found), name
