"""The arithmetic against slow oracles, numpy and hand-computed numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rlhf_ray.algorithms import ops
from rlhf_ray.algorithms.aggregation import loss_weights
from rlhf_ray.conformance import oracles

NAN = float("nan")


def tensor(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def random_masks(generator: torch.Generator, rows: int, width: int) -> Tensor:
    """Random masks: with gaps (several turns), a full row, a single token, and an empty row."""
    mask = torch.rand(rows, width, generator=generator) < 0.6
    mask[0], mask[1] = True, False
    mask[2] = torch.arange(width) == width // 2
    mask[3] = (torch.arange(width) % 5 > 1) & (torch.arange(width) < width - 3)
    return mask


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (1.0, 1.0), (0.9, 0.0), (0.97, 0.8)])
def test_gae_is_the_lambda_return_of_the_action_tokens(gamma: float, lam: float) -> None:
    generator = torch.Generator().manual_seed(3)
    mask = random_masks(generator, 8, 14)
    rewards = torch.where(mask, torch.randn(mask.shape, generator=generator), NAN)
    values = torch.where(mask, torch.randn(mask.shape, generator=generator), NAN)
    advantages, returns = ops.gae(rewards, values, mask, gamma, lam)
    for row in range(len(mask)):
        arguments = (rewards[row].tolist(), values[row].tolist(), mask[row].tolist(), gamma, lam)
        assert advantages[row].tolist() == pytest.approx(oracles.advantages(*arguments), abs=1e-5)
        assert returns[row].tolist() == pytest.approx(oracles.lambda_returns(*arguments), abs=1e-5)


def test_gae_does_not_see_what_lies_between_two_turns() -> None:
    dense = ops.gae(tensor([0, 0, 1]), tensor([0.1, 0.5, 0.2]), torch.ones(1, 3, dtype=torch.bool), 0.9, 0.8)
    mask = torch.tensor([[False, True, False, False, True, True, False]])
    gapped = ops.gae(
        tensor([NAN, 0, 7, 7, 0, 1, NAN]), tensor([NAN, 0.1, 9, NAN, 0.5, 0.2, NAN]), mask, gamma=0.9, lam=0.8
    )
    for one, other in zip(dense, gapped, strict=True):
        torch.testing.assert_close(one[0], other[mask])
        assert not other[~mask].any()


def test_gae_has_value_zero_after_the_last_action() -> None:
    advantages, returns = ops.gae(tensor([2.0, NAN]), tensor([0.5, NAN]), torch.tensor([[True, False]]), 0.9, 0.9)
    assert advantages.tolist() == [[1.5, 0.0]]
    assert returns.tolist() == [[2.0, 0.0]]


def test_whiten_agrees_with_numpy_over_the_whole_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = random_masks(generator, 6, 9)
    x = torch.where(mask, 3 + 5 * torch.randn(mask.shape, generator=generator), NAN)
    whitened = ops.whiten(x, mask)
    picked = x[mask].numpy().astype(np.float64)
    np.testing.assert_allclose(whitened[mask].numpy(), (picked - picked.mean()) / picked.std(ddof=1), atol=1e-5)
    assert not whitened[~mask].any()


def test_whiten_makes_no_signal_out_of_none() -> None:
    nothing, one = torch.zeros(1, 7, dtype=torch.bool), torch.arange(7)[None] == 2
    assert not ops.whiten(torch.full((1, 7), NAN), nothing).any()
    assert not ops.whiten(torch.where(one, 5.0, NAN), one).any()
    # In float32 the mean of seven 0.1 is not 0.1: a scale of 1/std alone would turn rounding into advantages near 1.
    assert ops.whiten(torch.full((1, 7), 0.1), ~nothing).abs().max() < 1e-6


def test_masked_sums_and_means() -> None:
    x, mask = tensor([1, NAN, 3], [4, 5, NAN]), torch.tensor([[True, False, True], [True, False, False]])
    assert ops.masked_sum(x, mask).item() == 8.0
    assert ops.masked_mean(x, mask).item() == pytest.approx(8 / 3)
    x.requires_grad_(True)
    empty = ops.masked_mean(x, torch.zeros_like(mask))
    torch.autograd.backward(empty)
    assert empty.item() == 0.0
    assert x.grad is not None and not x.grad.any()


def test_the_reward_goes_to_the_last_action_token() -> None:
    mask = torch.tensor([[False, True, True, False, False], [False, True, False, True, False], [True] * 5])
    placed = ops.place_reward(torch.tensor([1.0, 2.0, 3.0]), mask)
    assert placed.tolist() == [[0, 0, 1, 0, 0], [0, 0, 0, 2, 0], [0, 0, 0, 0, 3]]


def test_a_row_without_action_tokens_is_named() -> None:
    mask = torch.tensor([[True, False], [False, False], [False, True]])
    with pytest.raises(ValueError, match=r"row\(s\) \[1\]"):
        ops.place_reward(torch.ones(3), mask)


def test_token_weights_are_the_token_mean() -> None:
    mask = torch.tensor([[True, True, True], [False, True, False], [False, False, False]])
    assert loss_weights(mask, "token_mean").tolist() == [[0.25] * 3, [0, 0.25, 0], [0, 0, 0]]
    assert not loss_weights(torch.zeros_like(mask), "token_mean").any()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("chunk", [7, 2**24])
def test_selected_logprobs_and_entropy_against_the_definition(
    temperature: float, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "CHUNK_ELEMENTS", chunk)
    generator = torch.Generator().manual_seed(1)
    logits, targets = 4 * torch.randn(5, 6, generator=generator), torch.tensor([0, 5, 2, 2, 3])
    logprobs, entropy = ops.selected_logprobs_and_entropy(logits, targets, temperature)
    for n, target in enumerate(targets.tolist()):
        assert logprobs[n].item() == pytest.approx(oracles.log_softmax(logits[n].tolist(), temperature)[target])
        assert entropy[n].item() == pytest.approx(oracles.entropy(logits[n].tolist(), temperature), rel=1e-5, abs=1e-7)


def test_selected_logprobs_and_entropy_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "CHUNK_ELEMENTS", 7)
    logits = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2)).requires_grad_(True)
    targets = torch.tensor([4, 0, 1, 1])

    def both(z: Tensor) -> tuple[Tensor, Tensor]:
        return ops.selected_logprobs_and_entropy(z, targets, 0.7)

    assert torch.autograd.gradcheck(both, logits)
    assert torch.autograd.gradcheck(lambda z: both(z)[0], logits)
    assert torch.autograd.gradcheck(lambda z: both(z)[1], logits)


def test_logprobs_of_bfloat16_logits_are_computed_in_float32() -> None:
    logits = (3 * torch.randn(8, 40, generator=torch.Generator().manual_seed(5))).bfloat16().requires_grad_(True)
    targets = torch.arange(8)
    logprobs, _ = ops.selected_logprobs_and_entropy(logits, targets, 0.9)
    exact = torch.log_softmax(logits.detach().double() / 0.9, 1)[torch.arange(8), targets]
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs.detach().double(), exact, atol=2e-6, rtol=0)
    torch.autograd.backward(logprobs.sum())
    assert logits.grad is not None and logits.grad.dtype == torch.bfloat16


def test_a_forbidden_token_does_not_poison_the_entropy() -> None:
    logits = torch.tensor([[0.0, -math.inf, 0.0]], requires_grad=True)
    logprobs, entropy = ops.selected_logprobs_and_entropy(logits, torch.tensor([2]), 1.0)
    assert (logprobs.item(), entropy.item()) == pytest.approx((-math.log(2), math.log(2)))
    torch.autograd.backward((logprobs + entropy).sum())
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_temperature_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature"):
        ops.selected_logprobs_and_entropy(torch.zeros(1, 2), torch.tensor([0]), 0.0)


POLICY_CASES = [  # ratio, advantage, clip, dual clip -> loss, clipped
    (1.0, 2.0, 0.2, None, -2.0, False),
    (1.5, 2.0, 0.2, None, -2.4, True),  # already more likely: held at 1.2
    (0.5, 2.0, 0.2, None, -1.0, False),  # less likely although good: not held
    (0.5, -2.0, 0.2, None, 1.6, True),  # already less likely: held at 0.8
    (1.5, -2.0, 0.2, None, 3.0, False),  # more likely although bad: not held
    (5.0, -2.0, 0.2, None, 10.0, False),
    (5.0, -2.0, 0.2, 3.0, 6.0, True),  # dual clip: at most 3 |A|
    (2.0, -2.0, 0.2, 3.0, 4.0, False),
    (5.0, 2.0, 0.2, 3.0, -2.4, True),  # a good token is not touched by the dual clip
]


@pytest.mark.parametrize(("ratio", "advantage", "clip", "dual", "loss", "clipped"), POLICY_CASES)
def test_policy_loss_by_hand(
    ratio: float, advantage: float, clip: float, dual: float | None, loss: float, clipped: bool
) -> None:
    old = tensor([-1.3])
    new = (old + math.log(ratio)).requires_grad_(True)
    losses, indicator = ops.clipped_policy_loss(new, old, tensor([advantage]), clip, dual)
    assert losses.item() == pytest.approx(loss, rel=1e-5)
    assert oracles.policy_token_loss(new.item(), old.item(), advantage, clip, dual) == pytest.approx(loss, rel=1e-5)
    assert indicator.item() is clipped
    torch.autograd.backward(losses.sum())
    assert new.grad is not None
    assert new.grad.item() == pytest.approx(0.0 if clipped else -advantage * ratio, rel=1e-5)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_an_extreme_ratio_stays_finite(advantage: float) -> None:
    new = tensor([0.0]).requires_grad_(True)
    losses, _ = ops.clipped_policy_loss(new, tensor([-500.0]), tensor([advantage]), 0.2, None)
    torch.autograd.backward(losses.sum())
    assert losses.isfinite().all()
    assert new.grad is not None and new.grad.isfinite().all()


VALUE_CASES = [  # value, old, return, clip -> loss, clipped
    (1.0, 0.0, 2.0, None, 0.5, False),
    (1.0, 0.0, 2.0, 0.5, 1.125, True),  # moved towards the return by more than 0.5: held at 0.5
    (0.3, 0.0, 2.0, 0.5, 1.445, False),
    (-1.0, 0.0, 2.0, 0.5, 4.5, False),  # moved away: the full error counts
]


@pytest.mark.parametrize(("value", "old", "target", "clip", "loss", "clipped"), VALUE_CASES)
def test_value_loss_by_hand(
    value: float, old: float, target: float, clip: float | None, loss: float, clipped: bool
) -> None:
    losses, indicator = ops.clipped_value_loss(tensor([value]), tensor([old]), tensor([target]), clip)
    assert losses.item() == pytest.approx(loss)
    assert oracles.value_token_loss(value, old, target, clip) == pytest.approx(loss)
    assert indicator.item() is clipped


def test_explained_variance() -> None:
    mask = torch.tensor([[True, True, True, True, False]])
    returns = tensor([1, 2, 3, 6, NAN])
    assert ops.explained_variance(returns, returns, mask).item() == 1.0
    assert ops.explained_variance(returns + 5, returns, mask).item() == 1.0
    assert ops.explained_variance(tensor([0, 0, 0, 0, NAN]), returns, mask).item() == pytest.approx(0.0)
    values = tensor([1, 3, 2, 4, NAN])
    expected = 1 - np.var([0, -1, 1, 2], ddof=1) / np.var([1, 2, 3, 6], ddof=1)
    assert ops.explained_variance(values, returns, mask).item() == pytest.approx(expected)


def test_explained_variance_of_equal_returns_is_undefined() -> None:
    mask = torch.ones(1, 7, dtype=torch.bool)
    assert math.isnan(ops.explained_variance(torch.zeros(1, 7), torch.full((1, 7), 0.1), mask).item())
    assert math.isnan(ops.explained_variance(torch.zeros(1, 7), torch.zeros(1, 7), ~mask).item())
