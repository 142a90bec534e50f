"""The controllers of beta against sequences worked out by hand."""

from __future__ import annotations

import pytest

from rlhf_ray import metrics as names
from rlhf_ray.algorithms.adaptive_beta import KLTarget, RewardGap


def _kl_target(**changes: object) -> KLTarget:
    settings = {"beta": 0.1, "target_kl": 2.0, "gain": 0.5, "band": 0.1, "smoothing": 0.0, "beta_range": (0.01, 1.0)}
    return KLTarget(**{**settings, **changes})  # type: ignore[arg-type]  # as the class names them


def test_beta_follows_the_error_clipped_to_one() -> None:
    controller = _kl_target()
    controller.observe(3.0)  # error 0.5: times 1.25
    assert controller.beta == pytest.approx(0.125)
    controller.observe(20.0)  # error 9, clipped to 1: times 1.5
    assert controller.beta == pytest.approx(0.1875)
    controller.observe(1.0)  # error -0.5: times 0.75
    assert controller.beta == pytest.approx(0.140625)


def test_nothing_happens_within_the_band() -> None:
    controller = _kl_target()
    for kl in (1.81, 2.0, 2.19):
        controller.observe(kl)
    assert controller.beta == 0.1
    controller.observe(2.21)
    assert controller.beta > 0.1


def test_the_average_is_what_counts() -> None:
    controller = _kl_target(smoothing=0.9)
    controller.observe(2.0)
    controller.observe(12.0)  # 0.9 * 2 + 0.1 * 12 = 3: error 0.5
    assert controller.kl == pytest.approx(3.0) and controller.beta == pytest.approx(0.125)


def test_beta_stays_in_its_range() -> None:
    up, down = _kl_target(), _kl_target()
    for _ in range(50):
        up.observe(100.0)
        down.observe(0.0)
    assert (up.beta, down.beta) == (1.0, 0.01)


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
