"""The controllers of beta against sequences worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from rlhf_ray import metrics as names
from rlhf_ray.algorithms.adaptive_beta import KLTarget, RewardGap
from rlhf_ray.config.offline import DPOConfig, KLTargetConfig
from rlhf_ray.offline.adaptive_beta import make_controller


def _kl_target(**changes: object) -> KLTarget:
    settings = {"beta": 0.1, "target_kl": 2.0, "gain": 0.5, "horizon": 0.0, "band": 0.1, "smoothing": 0.0}
    settings |= {"max_change": 2.0, "beta_range": (0.01, 1.0)}  # type: ignore[dict-item]  # a pair among numbers
    return KLTarget(**{**settings, **changes})  # type: ignore[arg-type]  # as the class names them


def test_beta_follows_the_error_by_at_most_its_largest_change() -> None:
    controller = _kl_target()
    controller.observe(3.0)  # error 0.5
    assert controller.beta == pytest.approx(0.1 * math.exp(0.25))
    controller.observe(20.0)  # error 9
    assert controller.beta == pytest.approx(0.2 * math.exp(0.25))
    controller.observe(1.0)  # error -0.5
    assert controller.beta == pytest.approx(0.2)


def test_nothing_happens_within_the_band() -> None:
    controller = _kl_target()
    for kl in (1.81, 2.0, 2.19):
        controller.observe(kl)
    assert controller.beta == 0.1
    controller.observe(2.21)
    assert controller.beta > 0.1


def test_level_and_trend_are_holts() -> None:
    controller = _kl_target(smoothing=0.5, horizon=10.0)
    controller.observe(1.0)  # level 1, no trend: error -0.5
    assert controller.beta == pytest.approx(0.1 * math.exp(-0.25))
    controller.observe(1.2)  # level 0.5 * 1 + 0.5 * 1.2 = 1.1, trend 0.5 * 0.1 = 0.05: predicted 1.6, error -0.2
    assert controller.kl == pytest.approx(1.1)
    assert controller.beta == pytest.approx(0.1 * math.exp(-0.25 - 0.1))
    controller.observe(1.5)  # level 0.5 * 1.15 + 0.5 * 1.5 = 1.325, trend 0.5 * 0.05 + 0.5 * 0.225 = 0.1375
    assert controller.kl == pytest.approx(1.325)  # predicted 2.7, error 0.35
    assert controller.beta == pytest.approx(0.1 * math.exp(-0.25 - 0.1 + 0.175))


def test_beta_stays_in_its_range() -> None:
    up, down = _kl_target(), _kl_target()
    for _ in range(50):
        up.observe(100.0)
        down.observe(0.0)
    assert (up.beta, down.beta) == (1.0, 0.01)


def _train(loss: str, controller: KLTarget | None, steps: int = 60) -> float:
    """DPO of a softmax over 32 answers to each of 200 prompts, linear in random features: the KL that it ends with."""
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(200, 32, 32, generator=draw) / 2
    quality = features @ torch.randn(32, generator=draw)
    weights = torch.zeros(32, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.06)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    rows = torch.arange(8)

    def kl(logprobs: torch.Tensor) -> float:
        return float((logprobs.exp() * (logprobs + math.log(32))).sum(dim=-1).mean())

    for _ in range(steps):
        prompts = torch.randint(0, 200, (8,), generator=draw)
        answers = torch.stack([torch.randperm(32, generator=draw)[:2] for _ in rows])
        better = quality[prompts[:, None], answers].argsort(dim=1, descending=True)
        chosen, rejected = answers.gather(1, better).T
        logprobs = torch.log_softmax(features[prompts] @ weights, dim=-1)
        margin = logprobs[rows, chosen] - logprobs[rows, rejected]
        beta = 0.05
        if controller is not None:
            controller.observe(kl(logprobs.detach()))
            beta = controller.beta
        losses = -torch.nn.functional.logsigmoid(beta * margin) if loss == "sigmoid" else (margin - 0.5 / beta) ** 2
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        return kl(torch.log_softmax(features @ weights, dim=-1))


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_it_holds_the_target_that_a_fixed_beta_and_a_rule_without_prediction_pass_by_far(loss: str) -> None:
    target = 0.5
    config = DPOConfig(beta=0.05, adaptive_beta=KLTargetConfig(type="kl", target_kl=target))
    blind = _kl_target(beta=0.05, target_kl=target, gain=0.1, smoothing=0.9, beta_range=(1e-3, 10.0))
    controller = make_controller(config)
    assert isinstance(controller, KLTarget)
    assert _train(loss, None) > 2 * target
    assert _train(loss, blind) > 1.5 * target
    assert _train(loss, controller) == pytest.approx(target, rel=0.25)


def test_a_controller_continues_from_its_state() -> None:
    one, other = _kl_target(smoothing=0.5), _kl_target(smoothing=0.5)
    one.observe(5.0)
    other.load_state_dict(one.state_dict())
    one.observe(3.0)
    other.observe(3.0)
    assert one.metrics() == other.metrics() and one.metrics()[names.BETA_TARGET_KL] == 2.0
    fresh = _kl_target()
    fresh.load_state_dict(_kl_target().state_dict())
    assert fresh.kl is None and names.BETA_KL not in fresh.metrics()


def test_the_gap_moves_the_beta_of_its_own_batch() -> None:
    # beta-DPO, equations 6 and 8: beta = beta0 (1 + alpha (M - M0)), then M0 <- m M0 + (1 - m) M; M = beta0 * gap.
    controller = RewardGap(0.1, alpha=0.6, momentum=0.9, beta_range=(1e-3, 10.0))
    controller.observe(0.0)
    assert controller.beta == pytest.approx(0.1)
    controller.observe(20.0)  # M = 2, M0 = 0
    assert controller.beta == pytest.approx(0.1 * (1 + 0.6 * 2))
    controller.observe(20.0)  # M0 = 0.2
    assert controller.beta == pytest.approx(0.1 * (1 + 0.6 * 1.8))
    controller.observe(-50.0)  # M = -5, M0 = 0.38: below the range
    assert controller.beta == 1e-3
    assert controller.metrics()[names.REWARD_GAP] == pytest.approx(-5.0)


def test_the_gaps_running_mean_is_state() -> None:
    one, other = (RewardGap(0.1, 0.6, 0.9, (1e-3, 10.0)) for _ in range(2))
    one.observe(10.0)
    other.load_state_dict(one.state_dict())
    one.observe(30.0)
    other.observe(30.0)
    assert one.beta == other.beta
