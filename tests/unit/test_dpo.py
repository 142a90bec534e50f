"""Online DPO: the pairs of a batch, and a loss that equals the definition, and itself however it is split."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from rlhf_ray import metrics as names
from rlhf_ray.algorithms.dpo import OnlineDPO, OnlineDPOConfig
from rlhf_ray.algorithms.report import LossReport, join_reports
from rlhf_ray.config import RunConfig
from rlhf_ray.data.batching import microbatches, minibatches
from rlhf_ray.ports import Algorithm
from rlhf_ray.types import Batch
from tests.builders import run_config

NAN = float("nan")
B, T = 12, 10
PROMPTS = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 4])
"""Prompt 3 lost a sample to quarantine, prompt 4 two."""
REWARDS = [0.5, -1.0, 2.0, 0.3, 0.3, 0.3, -2.0, -3.0, -2.5, 1.0, 4.0, 9.0]


def make_batch(seed: int = 0) -> Batch:
    """Rows of random lengths; row 10 was cut off and is masked; NaN in every padding."""
    g = torch.Generator().manual_seed(seed)
    columns = torch.arange(T)
    attention_mask = columns < torch.randint(5, T + 1, (B, 1), generator=g)
    response_mask = attention_mask & (columns >= torch.randint(1, 4, (B, 1), generator=g))
    truncated = torch.arange(B) == 10

    def noise() -> Tensor:
        return torch.where(response_mask, -2.0 + 0.5 * torch.randn(B, T, generator=g), NAN)

    return Batch(
        token_ids=torch.arange(B * T).view(B, T),
        attention_mask=attention_mask,
        response_mask=response_mask,
        loss_mask=response_mask & ~truncated[:, None],
        rollout_logprobs=noise(),
        rewards=torch.tensor(REWARDS),
        truncated=truncated,
        old_logprobs=noise(),
        ref_logprobs=noise(),
    )


def pairs_of(config: OnlineDPOConfig, batch: Batch) -> Batch:
    return OnlineDPO(config).advantages(batch, PROMPTS)[0]


def current(batch: Batch, seed: int = 7) -> Tensor:
    """What a model computes now for each token: near the old log-probabilities, NaN in the padding."""
    assert batch.old_logprobs is not None
    noise = torch.randn(batch.token_ids.shape, generator=torch.Generator().manual_seed(seed))
    return (batch.old_logprobs + 0.3 * noise).requires_grad_(True)


def loss_of(config: OnlineDPOConfig, batch: Batch, new: Tensor, weights: Tensor) -> tuple[Tensor, LossReport]:
    return OnlineDPO(config).policy_loss(new, torch.zeros_like(new), batch, weights, kl_coef=config.beta)


def test_the_pairs_are_rows_of_the_batch() -> None:
    batch = make_batch()
    pairs, metrics = OnlineDPO(OnlineDPOConfig(beta=0.2)).advantages(batch, PROMPTS)
    assert pairs.token_ids[:, 0].tolist() == [T * row for row in (2, 1, 3, 3, 6, 7, 9, 9, 11, 11)]
    assert pairs.rewards.tolist()[:2] == [2.0, -1.0]
    kept = [bool(row.any()) for row in pairs.loss_mask]
    assert kept == [True, True, False, False, True, True, False, False, False, False]
    assert torch.equal(pairs.loss_mask[4], batch.loss_mask[6])
    assert metrics[names.WITHOUT_PREFERENCE] == 3.0 and metrics[names.BETA] == 0.2
    assert batch.old_logprobs is not None and batch.ref_logprobs is not None
    kl = (batch.old_logprobs - batch.ref_logprobs)[batch.response_mask].tolist()
    assert metrics[names.KL_PER_TOKEN] == pytest.approx(sum(kl) / len(kl), rel=1e-5)
    assert metrics[names.KL_PER_SEQUENCE] == pytest.approx(sum(kl) / B, rel=1e-5), "of all answers, not of the pairs"


def test_the_order_of_the_rows_does_not_matter() -> None:
    batch, order = make_batch(), torch.randperm(B, generator=torch.Generator().manual_seed(3))
    straight, metrics = OnlineDPO(OnlineDPOConfig()).advantages(batch, PROMPTS)
    shuffled, shuffled_metrics = OnlineDPO(OnlineDPOConfig()).advantages(batch.rows(order), PROMPTS[order])
    kept = straight.loss_mask.any(dim=1)  # of a tie any answer may stand for the pair
    assert torch.equal(shuffled.loss_mask.any(dim=1), kept)
    assert torch.equal(shuffled.token_ids[kept], straight.token_ids[kept])
    assert shuffled_metrics == pytest.approx(metrics, rel=1e-5)


@pytest.mark.parametrize("missing", ["old_logprobs", "ref_logprobs"])
def test_a_missing_stage_is_named(missing: str) -> None:
    tensors = make_batch().tensors()
    del tensors[missing]
    with pytest.raises(ValueError, match=missing):
        OnlineDPO(OnlineDPOConfig()).advantages(Batch(**tensors), PROMPTS)


def definition(config: OnlineDPOConfig, batch: Batch, new: Tensor) -> tuple[float, list[tuple[float, float]]]:
    """The mean loss over the pairs that count and their implicit rewards, one float at a time."""
    assert batch.ref_logprobs is not None
    ratios = []
    for row in range(len(batch)):
        tokens = [t for t in range(T) if batch.loss_mask[row, t]]
        total = sum(new[row, t].item() - batch.ref_logprobs[row, t].item() for t in tokens)
        ratios.append((total, len(tokens)))
    losses, rewards = [], []
    for (chosen, long), (rejected, short) in zip(ratios[::2], ratios[1::2], strict=True):
        if not long:
            continue
        x, eps = config.beta * (chosen - rejected), config.label_smoothing
        if config.loss == "sigmoid":
            losses.append((1 - eps) * math.log1p(math.exp(-x)) + eps * math.log1p(math.exp(x)))
        elif config.loss == "hinge":
            losses.append(max(0.0, 1 - x))
        else:
            losses.append((chosen / long - rejected / short - 1 / (2 * config.beta)) ** 2)
        rewards.append((config.beta * chosen, config.beta * rejected))
    return sum(losses) / len(losses), rewards


CONFIGS = [
    OnlineDPOConfig(beta=0.3),
    OnlineDPOConfig(beta=0.3, label_smoothing=0.2),
    OnlineDPOConfig(beta=0.3, loss="ipo"),
    OnlineDPOConfig(beta=0.3, loss="hinge"),
]
by_loss = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.loss}-{config.label_smoothing}")


@by_loss
def test_policy_loss_is_the_mean_over_pairs_of_the_definition(config: OnlineDPOConfig) -> None:
    batch = pairs_of(config, make_batch())
    new = current(batch)
    loss, report = loss_of(config, batch, new, OnlineDPO(config).weights(batch))
    expected, rewards = definition(config, batch, new)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert len(rewards) == 2
    assert report.sums[names.POLICY_LOSS] == pytest.approx(expected, rel=1e-5)
    chosen, rejected = ([reward[side] for reward in rewards] for side in (0, 1))
    assert report.sums[names.CHOSEN_REWARD] == pytest.approx(sum(chosen) / 2, rel=1e-4)
    assert report.sums[names.REJECTED_REWARD] == pytest.approx(sum(rejected) / 2, rel=1e-4)
    assert report.sums[names.TRAIN_MARGIN] == pytest.approx((sum(chosen) - sum(rejected)) / 2, rel=1e-4)
    assert report.sums[names.TRAIN_ACCURACY] == sum(c > r for c, r in rewards) / 2
    assert batch.old_logprobs is not None
    ratios = (new - batch.old_logprobs)[batch.loss_mask].exp()
    assert report.maxima[names.FIRST_RATIO] == pytest.approx((ratios - 1).abs().max().item(), rel=1e-4)


@by_loss
@pytest.mark.parametrize(("num_ranks", "max_tokens"), [(1, 1000), (1, 40), (2, 40), (2, 1), (3, 25), (7, 1)])
def test_no_split_changes_the_loss_or_the_gradient(config: OnlineDPOConfig, num_ranks: int, max_tokens: int) -> None:
    batch = make_batch()
    batch = pairs_of(config, batch.with_(rewards=torch.arange(float(B)), loss_mask=batch.response_mask))
    weights = OnlineDPO(config).weights(batch)
    lengths = batch.attention_mask.sum(1)
    whole_new, parts_new = current(batch), current(batch)
    whole, whole_report = loss_of(config, batch, whole_new, weights)
    torch.autograd.backward(whole)
    reports, total = [], 0.0
    for rank in microbatches(lengths, num_ranks, max_tokens, unit=2):
        for rows in rank:
            width = int(lengths[rows].max()) if rows.numel() else 1
            picked = rows if rows.numel() else torch.arange(2)
            share = weights[picked, :width] * bool(rows.numel())
            loss, report = loss_of(config, batch.rows(picked, width), parts_new[picked, :width], share)
            torch.autograd.backward(loss)
            total += loss.item()
            reports.append(report)
    assert total == pytest.approx(whole.item(), rel=1e-5)
    torch.testing.assert_close(parts_new.grad, whole_new.grad, atol=1e-7, rtol=1e-5)
    assert whole_new.grad is not None and whole_new.grad.abs().sum() > 0.1
    assert join_reports(reports).metrics() == pytest.approx(whole_report.metrics(), rel=1e-5, abs=1e-6)


@by_loss
def test_a_step_of_ties_has_a_loss_of_exactly_zero(config: OnlineDPOConfig) -> None:
    batch = make_batch()
    tied, metrics = OnlineDPO(config).advantages(batch.with_(rewards=torch.full((B,), 0.3)), PROMPTS)
    assert metrics[names.WITHOUT_PREFERENCE] == 5.0 and not tied.loss_mask.any()
    weights = OnlineDPO(config).weights(tied)
    assert not weights.any()
    new = current(tied)
    loss, report = loss_of(config, tied, new, weights)
    torch.autograd.backward(loss)
    assert loss.item() == 0.0 and not any(report.metrics().values())
    assert new.grad is not None and not new.grad.any()


@by_loss
def test_ties_take_no_part_in_the_loss_of_the_others(config: OnlineDPOConfig) -> None:
    """The two pairs with a preference alone, and among the three without one."""
    batch = pairs_of(config, make_batch())
    alone = batch.rows(torch.tensor([0, 1, 4, 5]))
    with_ties = loss_of(config, batch, current(batch), OnlineDPO(config).weights(batch))
    new = current(batch)[[0, 1, 4, 5]]
    without = loss_of(config, alone, new, OnlineDPO(config).weights(alone))
    assert with_ties[0].item() == pytest.approx(without[0].item(), rel=1e-6)
    assert with_ties[1].metrics() == pytest.approx(without[1].metrics(), rel=1e-6)


def test_minibatches_of_an_epoch_keep_pairs_together() -> None:
    config = OnlineDPOConfig()
    batch = pairs_of(config, make_batch())
    seen = []
    for rows in minibatches(len(batch), 3, torch.Generator().manual_seed(0), unit=2):
        assert rows[::2].remainder(2).eq(0).all() and torch.equal(rows[1::2], rows[::2] + 1)
        seen += rows.tolist()
    assert sorted(seen) == list(range(10)) and seen != list(range(10))


def test_the_gradient_raises_the_chosen_answer_and_lowers_the_rejected() -> None:
    config = OnlineDPOConfig(beta=0.5)
    batch = pairs_of(config, make_batch())
    assert batch.ref_logprobs is not None
    new = torch.where(batch.response_mask, batch.ref_logprobs, NAN).requires_grad_(True)
    loss, _ = loss_of(config, batch, new, OnlineDPO(config).weights(batch))
    torch.autograd.backward(loss)
    assert loss.item() == pytest.approx(math.log(2))
    assert new.grad is not None
    # d/dx -log sigmoid(beta x) at 0 is -beta / 2, shared by two pairs.
    expected = torch.zeros(len(batch), T)
    expected[::2], expected[1::2] = -0.125, 0.125
    torch.testing.assert_close(new.grad, torch.where(batch.loss_mask, expected, 0.0))


def test_beta_moves_for_the_next_step_only_and_its_state_goes_through_json() -> None:
    dpo = OnlineDPO(OnlineDPOConfig(beta=0.1, kl_target=1e-3, kl_horizon=60))
    algorithm: Algorithm = dpo
    batch = make_batch()
    assert batch.old_logprobs is not None
    batch = batch.with_(ref_logprobs=batch.old_logprobs - 0.1)
    _, first = algorithm.advantages(batch, PROMPTS)
    assert first[names.BETA] == dpo.kl_coef == 0.1
    assert first[names.KL_PER_SEQUENCE] > 1e-3 * 1.2, "or the next line is about something else"
    saved = json.loads(json.dumps(algorithm.state_dict()))
    _, second = algorithm.advantages(batch, PROMPTS)
    assert second[names.BETA] == dpo.kl_coef == pytest.approx(0.1 * (1 + 0.2 * B / 60)), "too far away: beta rises"
    resumed = OnlineDPO(dpo.config)
    resumed.load_state_dict(saved)
    assert resumed.advantages(batch, PROMPTS)[1] == second
    algorithm.advantages(batch, PROMPTS, adapt=False)
    before = dpo.kl_coef
    algorithm.advantages(batch, PROMPTS, adapt=False)
    assert dpo.kl_coef == before


def test_a_foreign_state_is_refused() -> None:
    with pytest.raises(ValueError, match="saved KL coefficient is None"):
        OnlineDPO(OnlineDPOConfig()).load_state_dict({"kl": {"coef": 0.1}})


def online(**changes: Any) -> RunConfig:
    algorithm = {"type": "online_dpo", **changes.pop("algorithm", {})}
    return run_config(Path("unused"), algorithm=algorithm, **changes)


def test_the_arithmetic_counts_pairs_and_leaves_the_critic_out() -> None:
    config = online(
        rollout={"samples_per_prompt": 4},
        algorithm={"num_minibatches": 2},
        critic={"num_workers": 3, "gpus_per_worker": 0.5, "policy_freeze_steps": 99},
    )
    assert config.arithmetic().startswith("4 prompts x 4 samples = 16 rollouts a step = 4 pairs = 2 minibatches of 2 x")
    assert "over 1 policy ranks" in config.arithmetic()
    assert list(config.learners) == ["policy"] and config.policy_freeze_steps == 0
    assert list(run_config(Path("unused")).learners) == ["policy", "critic"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rollout": {"samples_per_prompt": 1}}, "compares answers to the same prompt and needs at least 2"),
        ({"algorithm": {"num_minibatches": 3}}, "prompts_per_step = 4 pairs do not divide into .*num_minibatches = 3"),
        ({"policy": {"num_workers": 3}}, "a minibatch of 4 pairs does not divide over policy.num_workers = 3"),
        ({"algorithm": {"kl_target": 1.0, "kl_horizon": 1}}, "kl_horizon = 1 sequences is too short for 8 rollouts"),
        ({"algorithm": {"loss": "ipo", "label_smoothing": 0.1}}, "label_smoothing is defined for loss = sigmoid"),
        ({"algorithm": {"clip_range": 0.2}}, "Extra inputs"),
    ],
)
def test_bad_configs_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        online(**changes)
