"""PPO as a whole: advantages against the oracles, losses that no split, order or padding can change."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from rlhf_ray import metrics as names
from rlhf_ray.algorithms import ops
from rlhf_ray.algorithms.aggregation import loss_weights
from rlhf_ray.algorithms.ppo import PPO, PPOConfig
from rlhf_ray.algorithms.report import LossReport, join_reports
from rlhf_ray.conformance import oracles
from rlhf_ray.data.batching import microbatches, minibatches
from rlhf_ray.ports import Algorithm
from rlhf_ray.types import Batch

NAN = float("nan")
B, T = 9, 12
PROMPTS = torch.arange(B)  # whose answers the rows are is nothing to PPO


def make_batch(seed: int = 0) -> Batch:
    """Random rows of random lengths; row 1 has an observation inside, row 2 no loss; NaN in every padding."""
    generator = torch.Generator().manual_seed(seed)
    columns = torch.arange(T)
    ends = torch.randint(5, T + 1, (B,), generator=generator)
    attention_mask = columns < ends[:, None]
    response_mask = attention_mask & (columns >= torch.randint(1, 4, (B,), generator=generator)[:, None])
    response_mask[1, 3] = False
    loss_mask = response_mask.clone()
    loss_mask[2] = False

    def noise(centre: float) -> Tensor:
        return torch.where(response_mask, centre + 0.5 * torch.randn(B, T, generator=generator), NAN)

    return Batch(
        token_ids=torch.zeros(B, T, dtype=torch.long),
        attention_mask=attention_mask,
        response_mask=response_mask,
        loss_mask=loss_mask,
        rollout_logprobs=noise(-2.0),
        rewards=torch.randn(B, generator=generator),
        truncated=torch.zeros(B, dtype=torch.bool),
        old_logprobs=noise(-2.0),
        ref_logprobs=noise(-2.2),
        values=noise(0.1),
    )


def current(batch: Batch, seed: int = 7) -> Tensor:
    """What a model computes now for each token: near the old log-probabilities, NaN in the padding."""
    assert batch.old_logprobs is not None
    noise = torch.randn(B, T, generator=torch.Generator().manual_seed(seed))
    return (batch.old_logprobs + 0.3 * noise).requires_grad_(True)


def with_advantages(config: PPOConfig, batch: Batch) -> Batch:
    return PPO(config).advantages(batch, PROMPTS)[0]


def shaped_reward(batch: Batch, row: int, coef: float) -> list[float]:
    assert batch.old_logprobs is not None and batch.ref_logprobs is not None
    rewards = (-coef * (batch.old_logprobs[row] - batch.ref_logprobs[row])).tolist()
    rewards[max(t for t in range(T) if batch.response_mask[row, t])] += batch.rewards[row].item()
    return rewards


@pytest.mark.parametrize("placement", ["reward", "loss"])
def test_advantages_and_returns_against_the_definition(placement: str) -> None:
    config = PPOConfig.model_validate(
        {"kl_placement": placement, "kl_coef": 0.3, "gamma": 0.98, "gae_lambda": 0.9, "whiten_advantages": False}
    )
    batch, _ = PPO(config).advantages(make_batch(), PROMPTS)
    assert batch.advantages is not None and batch.returns is not None and batch.values is not None
    coef = 0.3 if placement == "reward" else 0.0
    for row in range(B):
        mask, values = batch.response_mask[row].tolist(), batch.values[row].tolist()
        arguments = (shaped_reward(batch, row, coef), values, mask, 0.98, 0.9)
        assert batch.returns[row].tolist() == pytest.approx(oracles.lambda_returns(*arguments), abs=1e-5)
        expected = oracles.advantages(*arguments) if batch.loss_mask[row].any() else [0.0] * T
        assert batch.advantages[row].tolist() == pytest.approx(expected, abs=1e-5)


def test_whitening_leaves_masked_rows_out_of_its_statistics() -> None:
    batch = make_batch()
    whitened = with_advantages(PPOConfig(), batch)
    assert whitened.advantages is not None
    picked = whitened.advantages[batch.loss_mask]
    assert (picked.mean().item(), picked.std().item()) == pytest.approx((0.0, 1.0), abs=1e-5)
    assert not whitened.advantages[~batch.loss_mask].any()
    wild = with_advantages(PPOConfig(), replace(batch, rewards=batch.rewards + 1e3 * (torch.arange(B) == 2)))
    assert wild.advantages is not None
    assert torch.equal(picked, wild.advantages[batch.loss_mask])


def test_the_reported_kl_is_that_of_all_response_tokens() -> None:
    batch = make_batch()
    _, metrics = PPO(PPOConfig(kl_coef=0.07)).advantages(batch, PROMPTS)
    assert batch.old_logprobs is not None and batch.ref_logprobs is not None
    kl = (batch.old_logprobs - batch.ref_logprobs)[batch.response_mask].tolist()
    assert metrics[names.KL_PER_TOKEN] == pytest.approx(sum(kl) / len(kl), rel=1e-5)
    assert metrics[names.KL_PER_SEQUENCE] == pytest.approx(sum(kl) / B, rel=1e-5)
    assert metrics[names.KL_COEF] == 0.07
    assert math.isfinite(metrics[names.CRITIC_EXPLAINED_VARIANCE])
    assert all(map(math.isfinite, metrics.values()))


def test_the_order_of_the_rows_does_not_matter() -> None:
    batch, order = make_batch(), torch.randperm(B, generator=torch.Generator().manual_seed(1))
    straight, metrics = PPO(PPOConfig()).advantages(batch, PROMPTS)
    shuffled, shuffled_metrics = PPO(PPOConfig()).advantages(batch.rows(order), PROMPTS)
    for name in ("advantages", "returns"):
        torch.testing.assert_close(getattr(shuffled, name), getattr(straight, name)[order], atol=1e-6, rtol=0)
    assert shuffled_metrics == pytest.approx(metrics, rel=1e-5)


@pytest.mark.parametrize("missing", ["old_logprobs", "ref_logprobs", "values"])
def test_a_missing_stage_is_named(missing: str) -> None:
    tensors = make_batch().tensors()
    del tensors[missing]
    with pytest.raises(ValueError, match=missing):
        PPO(PPOConfig()).advantages(Batch(**tensors), PROMPTS)


def test_the_controller_moves_for_the_next_step_only() -> None:
    batch = make_batch()
    kl = PPO(PPOConfig()).advantages(batch, PROMPTS)[1][names.KL_PER_SEQUENCE]
    target = kl / 1.1  # near, so that the controller's bounds do not hide what it follows
    ppo: PPO = PPO(PPOConfig(kl_coef=0.1, kl_target=target, kl_horizon=90))
    algorithm: Algorithm = ppo
    _, first = algorithm.advantages(batch, PROMPTS)
    assert first[names.KL_COEF] == ppo.kl_coef == 0.1
    saved = json.loads(json.dumps(algorithm.state_dict()))
    _, second = algorithm.advantages(batch, PROMPTS)
    expected = oracles.adaptive_coefs(0.1, target, 90, [kl], B)[0]
    assert second[names.KL_COEF] == ppo.kl_coef == pytest.approx(expected)
    resumed = PPO(ppo.config)
    resumed.load_state_dict(saved)
    assert resumed.advantages(batch, PROMPTS)[1] == second


def test_a_foreign_state_is_refused() -> None:
    with pytest.raises(ValueError, match="saved KL coefficient is None"):
        PPO(PPOConfig()).load_state_dict({"step": 3})


def test_a_target_needs_a_coefficient() -> None:
    with pytest.raises(ValidationError, match="kl_coef"):
        PPOConfig(kl_target=6.0, kl_coef=0.0)


LOSS_CONFIG = PPOConfig(kl_placement="loss", dual_clip=3.0, entropy_coef=0.01, clip_range=0.1)


def policy_loss(config: PPOConfig, batch: Batch, new: Tensor, weights: Tensor) -> tuple[Tensor, LossReport]:
    entropy = new * -0.5  # any differentiable function of the same parameters
    return PPO(config).policy_loss(new, entropy, batch, weights, kl_coef=0.2)


def value_loss(config: PPOConfig, batch: Batch, new: Tensor, weights: Tensor) -> tuple[Tensor, LossReport]:
    return PPO(config).value_loss(new, batch, weights)


LossOf = Callable[[PPOConfig, Batch, Tensor, Tensor], tuple[Tensor, LossReport]]


def test_policy_loss_is_the_token_mean_of_the_definition() -> None:
    batch = with_advantages(LOSS_CONFIG, make_batch())
    assert batch.old_logprobs is not None and batch.advantages is not None and batch.ref_logprobs is not None
    new = current(batch)
    loss, report = policy_loss(LOSS_CONFIG, batch, new, loss_weights(batch.loss_mask, "token_mean"))
    rows, k3s = [], []
    for lps, olds, advs, refs in zip(
        new.tolist(), batch.old_logprobs.tolist(), batch.advantages.tolist(), batch.ref_logprobs.tolist(), strict=True
    ):
        quads = list(zip(lps, olds, advs, refs, strict=True))
        rows.append(
            [
                oracles.policy_token_loss(lp, old, adv, 0.1, 3.0) + 0.01 * 0.5 * lp + 0.2 * 0.5 * (lp - ref) ** 2
                for lp, old, adv, ref in quads
            ]
        )
        k3s.append([math.exp(lp - old) - 1 - (lp - old) for lp, old, _, _ in quads])
    mask = batch.loss_mask.tolist()
    assert loss.item() == pytest.approx(oracles.token_mean(rows, mask), rel=1e-4)
    assert report.sums[names.POLICY_LOSS] == pytest.approx(loss.item())
    assert report.metrics()[names.POLICY_KL_TO_OLD] == pytest.approx(oracles.token_mean(k3s, mask), rel=1e-4)
    assert report.metrics()[names.ENTROPY] == pytest.approx(oracles.token_mean((new * -0.5).tolist(), mask), rel=1e-5)
    ratios = (new - batch.old_logprobs)[batch.loss_mask].exp()
    assert report.maxima[names.FIRST_RATIO] == pytest.approx((ratios - 1).abs().max().item(), rel=1e-4)
    assert 0 < report.metrics()[names.POLICY_CLIP_FRACTION] < 1


@pytest.mark.parametrize("clip_range", [None, 0.2])
def test_value_loss_is_the_token_mean_of_the_definition(clip_range: float | None) -> None:
    config = PPOConfig(value_clip_range=clip_range)
    batch = with_advantages(config, make_batch())
    assert batch.values is not None and batch.returns is not None
    values = batch.values + 0.5 * torch.randn(B, T, generator=torch.Generator().manual_seed(4))
    loss, report = PPO(config).value_loss(values, batch, loss_weights(batch.loss_mask, "token_mean"))
    rows = [
        [oracles.value_token_loss(v, old, ret, clip_range) for v, old, ret in zip(vs, olds, rets, strict=True)]
        for vs, olds, rets in zip(values.tolist(), batch.values.tolist(), batch.returns.tolist(), strict=True)
    ]
    assert loss.item() == pytest.approx(oracles.token_mean(rows, batch.loss_mask.tolist()), rel=1e-4)
    assert report.sums[names.CRITIC_LOSS] == pytest.approx(loss.item())
    assert (report.metrics()[names.CRITIC_CLIP_FRACTION] > 0) == (clip_range is not None)


@pytest.mark.parametrize(("num_ranks", "max_tokens"), [(1, 1000), (1, 24), (2, 24), (4, 40), (3, 1), (12, 1)])
def test_no_split_changes_the_loss_or_the_gradient(num_ranks: int, max_tokens: int) -> None:
    batch = with_advantages(LOSS_CONFIG, make_batch())
    weights = loss_weights(batch.loss_mask, "token_mean")
    lengths = batch.attention_mask.sum(1)
    for loss_of in (policy_loss, value_loss):
        whole_new, parts_new = current(batch), current(batch)
        whole, whole_report = loss_of(LOSS_CONFIG, batch, whole_new, weights)
        torch.autograd.backward(whole)
        reports, total = [], 0.0
        for rank in microbatches(lengths, num_ranks, max_tokens):
            for rows in rank:
                width = int(lengths[rows].max()) if rows.numel() else 1
                part = batch.rows(rows, width)
                loss, report = loss_of(LOSS_CONFIG, part, parts_new[rows, :width], weights[rows, :width])
                torch.autograd.backward(loss)
                total += loss.item()
                reports.append(report)
        assert total == pytest.approx(whole.item(), rel=1e-5)
        torch.testing.assert_close(parts_new.grad, whole_new.grad, atol=1e-7, rtol=1e-5)
        assert whole_new.grad is not None and whole_new.grad.abs().sum() > 0.1
        assert join_reports(reports).metrics() == pytest.approx(whole_report.metrics(), rel=1e-5, abs=1e-7)


def test_minibatches_of_an_epoch_cover_the_batch_whole() -> None:
    batch = with_advantages(PPOConfig(), make_batch())
    new = current(batch)
    counts = 0
    for rows in minibatches(B, 3, torch.Generator().manual_seed(0)):
        part = batch.rows(rows)
        weights = loss_weights(part.loss_mask, "token_mean")
        torch.autograd.backward(policy_loss(PPOConfig(), part, new[rows], weights)[0])
        counts += int(part.loss_mask.sum())
    assert counts == int(batch.loss_mask.sum())
    assert new.grad is not None
    assert new.grad[~batch.loss_mask].eq(0).all()


@pytest.mark.parametrize("loss_of", [policy_loss, value_loss])
def test_nan_in_padding_reaches_neither_loss_nor_gradient(loss_of: LossOf) -> None:
    batch = with_advantages(LOSS_CONFIG, make_batch())
    assert batch.advantages is not None and batch.returns is not None
    poison = batch.with_(
        advantages=torch.where(batch.response_mask, batch.advantages, NAN),
        returns=torch.where(batch.response_mask, batch.returns, NAN),
    )
    new = current(batch)
    loss, report = loss_of(LOSS_CONFIG, poison, new, loss_weights(batch.loss_mask, "token_mean"))
    torch.autograd.backward(loss)
    assert new.grad is not None and new.grad.isfinite().all()
    assert all(map(math.isfinite, [loss.item(), *report.metrics().values()]))
    assert new.grad[~batch.loss_mask].eq(0).all()


@pytest.mark.parametrize("loss_of", [policy_loss, value_loss])
@pytest.mark.parametrize("zero", ["mask", "weights"])
def test_an_all_masked_microbatch_has_a_zero_loss_with_a_gradient(loss_of: LossOf, zero: str) -> None:
    batch = with_advantages(LOSS_CONFIG, make_batch())
    rows = torch.tensor([2]) if zero == "mask" else torch.tensor([0, 1])
    new = current(batch)
    weights = torch.full((len(rows), T), 0.1 if zero == "mask" else 0.0)
    loss, report = loss_of(LOSS_CONFIG, batch.rows(rows), new[rows], weights)
    torch.autograd.backward(loss)
    assert loss.item() == 0.0
    assert not any(report.metrics().values())
    assert new.grad is not None and not new.grad.any()


def test_the_first_pass_has_ratio_one() -> None:
    batch = with_advantages(PPOConfig(), make_batch())
    assert batch.old_logprobs is not None
    new = batch.old_logprobs.clone().requires_grad_(True)
    loss, report = policy_loss(PPOConfig(), batch, new, loss_weights(batch.loss_mask, "token_mean"))
    assert report.maxima[names.FIRST_RATIO] == 0.0
    assert report.metrics()[names.POLICY_KL_TO_OLD] == report.metrics()[names.POLICY_CLIP_FRACTION] == 0.0
    # At ratio 1 the surrogate is minus the mean advantage, which whitening made 0; its gradient is the policy gradient.
    torch.autograd.backward(loss)
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert batch.advantages is not None
    torch.testing.assert_close(new.grad, -batch.advantages * loss_weights(batch.loss_mask, "token_mean"))


def test_the_kl_loss_has_the_gradient_of_the_kl() -> None:
    """Every token of a tiny vocabulary once, weighted by its probability: an exact expectation."""
    raw, raw_ref = [0.3, -1.2, 0.8, 0.0], [-0.4, 0.6, 0.1, 1.0]
    logits = torch.tensor(raw, requires_grad=True)
    size = len(raw)
    column = torch.ones(size, 1, dtype=torch.bool)
    logp, entropy = ops.selected_logprobs_and_entropy(logits.expand(size, size), torch.arange(size), 1.0)
    batch = Batch(
        token_ids=torch.arange(size)[:, None],
        attention_mask=column,
        response_mask=column,
        loss_mask=column,
        rollout_logprobs=logp.detach()[:, None],
        rewards=torch.zeros(size),
        truncated=torch.zeros(size, dtype=torch.bool),
        old_logprobs=logp.detach()[:, None],
        ref_logprobs=torch.tensor(oracles.log_softmax(raw_ref))[:, None],
        advantages=torch.zeros(size, 1),
    )
    ppo = PPO(PPOConfig(kl_placement="loss"))
    loss, _ = ppo.policy_loss(logp[:, None], entropy[:, None], batch, logp.detach().exp()[:, None], kl_coef=0.5)
    torch.autograd.backward(loss)
    assert logits.grad is not None
    expected = [0.5 * g for g in oracles.kl_gradient(raw, raw_ref)]
    assert logits.grad.tolist() == pytest.approx(expected, abs=1e-6)


def test_without_an_entropy_bonus_the_entropy_has_no_gradient() -> None:
    batch = with_advantages(PPOConfig(), make_batch())
    entropy = torch.ones(B, T, requires_grad=True)
    weights = loss_weights(batch.loss_mask, "token_mean")
    for coef in (0.0, 0.3):
        assert entropy.grad is None
        ppo = PPO(PPOConfig(entropy_coef=coef))
        torch.autograd.backward(ppo.policy_loss(current(batch), entropy, batch, weights, kl_coef=0.0)[0])
    torch.testing.assert_close(entropy.grad, -0.3 * weights)
