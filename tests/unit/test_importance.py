"""Truncated importance weights, by hand and as what they must do to a gradient."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_ray import metrics as names
from rlhf_ray.algorithms.grpo import GRPOConfig
from rlhf_ray.algorithms.importance import importance_metrics, truncated_importance
from rlhf_ray.types import Batch
from tests.builders import random_batch


def _batch(old: list[list[float]], engine: list[list[float]]) -> Batch:
    """Two prompt tokens, then responses; the second row has one token less."""
    mask = torch.tensor([[False, False, True, True, True], [False, False, True, True, False]])
    nan = torch.full((2, 5), math.nan)
    spread = [nan.masked_scatter(mask, torch.tensor([x for row in rows for x in row])) for rows in (old, engine)]
    return Batch(
        token_ids=torch.zeros(2, 5, dtype=torch.long), attention_mask=torch.ones(2, 5, dtype=torch.bool),
        response_mask=mask, loss_mask=mask, rollout_logprobs=spread[1], rewards=torch.zeros(2),
        truncated=torch.zeros(2, dtype=torch.bool), old_logprobs=spread[0],
    )  # fmt: skip


BATCH = _batch([[-1.0, -2.0, -0.5], [-3.0, -1.0]], [[-1.5, -1.5, -2.5], [-2.0, -1.0]])


def test_each_token_is_weighed_by_its_ratio_up_to_the_cap() -> None:
    found = truncated_importance(BATCH, "token", 2.0)
    want = [[1, 1, math.exp(0.5), math.exp(-0.5), 2.0], [1, 1, math.exp(-1.0), 1, 1]]  # exp(2) is cut; padding is NaN
    torch.testing.assert_close(found, torch.tensor(want))
    metrics = importance_metrics(BATCH, found, 2.0)
    assert metrics[names.IMPORTANCE_CUT] == pytest.approx(1 / 5)
    assert metrics[names.IMPORTANCE_MEAN] == pytest.approx((math.exp(0.5) + math.exp(-0.5) + 2 + math.exp(-1) + 1) / 5)


def test_a_sequence_is_weighed_by_the_product_of_its_ratios() -> None:
    found = truncated_importance(BATCH, "sequence", 100.0)
    row, other = math.exp(0.5 - 0.5 + 2.0), math.exp(-1.0)
    torch.testing.assert_close(found, torch.tensor([[1, 1, row, row, row], [1, 1, other, other, 1]]))
    assert truncated_importance(BATCH, "sequence", 3.0).max() == 3.0


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_a_weight_multiplies_the_advantage_and_nothing_else(level: str) -> None:
    batch, prompts = random_batch(6, 12, 50), torch.tensor([0, 0, 0, 1, 1, 1])
    plain, _ = GRPOConfig(type="grpo").make().advantages(batch, prompts)
    config = GRPOConfig.model_validate({"type": "grpo", "importance": level, "importance_cap": 1.1})
    weighed, metrics = config.make().advantages(batch, prompts)
    assert plain.advantages is not None and weighed.advantages is not None
    weights = truncated_importance(batch, config.importance or "token", 1.1)
    torch.testing.assert_close(weighed.advantages, plain.advantages * weights)
    assert weights[batch.response_mask].max() == pytest.approx(1.1) and weights.min() < 0.95
    assert metrics[names.IMPORTANCE_CUT] > 0


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_the_kl_of_a_loss_is_weighed_as_the_advantage_is(level: str) -> None:
    """Both are means over what the learner's policy would have sampled. Without advantages the loss is the KL alone."""
    batch = random_batch(4, 12, 50)
    settings = {"type": "grpo", "importance": level, "importance_cap": 1.1, "aggregation": "token_mean"}
    config = GRPOConfig.model_validate(settings)
    batch = batch.with_(advantages=torch.zeros_like(batch.rollout_logprobs))
    assert batch.old_logprobs is not None and batch.ref_logprobs is not None
    weights = config.make().weights(batch)
    loss, _ = config.make().policy_loss(batch.old_logprobs, torch.zeros_like(weights), batch, weights, 0.3)
    squares = (batch.old_logprobs - batch.ref_logprobs)[batch.loss_mask].double() ** 2 / 2
    sampled = truncated_importance(batch, config.importance or "token", 1.1)[batch.loss_mask].double()
    assert float(loss) == pytest.approx(0.3 * float((sampled * squares).mean()), rel=1e-5)


def test_what_the_engine_itself_says_needs_no_weight() -> None:
    batch = random_batch(4, 12, 50)
    same = batch.with_(old_logprobs=batch.rollout_logprobs)
    assert (truncated_importance(same, "token", 2.0) == 1).all()


def test_weighted_samples_of_the_wrong_policy_give_the_gradient_of_the_right_one() -> None:
    """By enumeration over a vocabulary of four: the mean over p of r * grad log p is that over q of p/q of the same."""
    draw = torch.Generator().manual_seed(3)
    logits, engine = torch.randn(4, generator=draw), torch.randn(4, generator=draw)
    rewards, p, q = torch.randn(4, generator=draw), logits.softmax(0), engine.softmax(0)
    parameter = logits.clone().requires_grad_()
    parameter.log_softmax(0).dot(p * rewards).backward()
    tokens = torch.arange(4)[:, None]
    mask = torch.ones(4, 1, dtype=torch.bool)
    batch = Batch(
        token_ids=tokens, attention_mask=mask, response_mask=mask, loss_mask=mask,
        rollout_logprobs=q.log()[:, None], rewards=rewards, truncated=torch.zeros(4, dtype=torch.bool),
        old_logprobs=p.log()[:, None],
    )  # fmt: skip
    weights = truncated_importance(batch, "token", 1e6).squeeze(1)
    again = logits.clone().requires_grad_()
    again.log_softmax(0).dot(q * weights * rewards).backward()
    torch.testing.assert_close(again.grad, parameter.grad)
