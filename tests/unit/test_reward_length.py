"""What length does to a reward model, against brute force and independent regressions."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf_ray.evaluation.reward_accuracy import accuracy_of
from rlhf_ray.evaluation.reward_items import decisions
from rlhf_ray.evaluation.reward_length import length_bias, logistic_weights
from tests.unit.scored_items import pair


def test_length_correlations_by_brute_force() -> None:
    rng = np.random.default_rng(5)
    length = rng.integers(-20, 20, 60)
    score = 0.1 * length + rng.normal(0.3, 1, 60)
    items = [pair(n, float(s), 0.0, (30 + int(d), 30)) for n, (s, d) in enumerate(zip(score, length, strict=True))]
    found = length_bias(decisions(items), 0)
    assert found is not None and found.pearson_ci95 is not None
    both_s, both_l = np.concatenate([score, -score]), np.concatenate([length, -length]).astype(float)
    assert found.pearson == pytest.approx(np.corrcoef(both_s, both_l)[0, 1])
    assert found.pearson_ci95[0] < found.pearson < found.pearson_ci95[1]

    def ranks(values: np.ndarray) -> np.ndarray:
        return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])

    assert found.spearman == pytest.approx(np.corrcoef(ranks(both_s), ranks(both_l))[0, 1])
    assert len(found.points) == 60 and found.points[0] == (int(length[0]), pytest.approx(score[0]))


def test_who_was_right_does_not_change_the_correlation() -> None:
    rng = np.random.default_rng(6)
    numbers = [(float(s), int(d)) for s, d in zip(rng.normal(0, 1, 30), rng.integers(-9, 9, 30), strict=True)]
    straight = length_bias(decisions([pair(n, s, 0.0, (10 + d, 10)) for n, (s, d) in enumerate(numbers)]), 0)
    turned = length_bias(decisions([pair(n, 0.0, s, (10, 10 + d)) for n, (s, d) in enumerate(numbers)]), 0)
    assert straight is not None and turned is not None and straight.pearson == pytest.approx(turned.pearson)


def test_a_model_that_counts_tokens_is_found_out() -> None:
    """People prefer the longer answer in 60 of 80; the score is the length, with a grain of noise."""
    rng = np.random.default_rng(7)
    items = []
    for n in range(80):
        step = int(rng.integers(1, 30)) * (1 if n < 60 else -1)
        items.append(pair(n, step + float(rng.normal(0, 0.01)), 0.0, (40 + step, 40)))
    found = length_bias(decisions(items), 0)
    assert found is not None and found.pearson is not None and found.pearson > 0.999
    assert accuracy_of("", decisions(items)).accuracy == 0.75 == found.always_longer
    assert (found.longer_right.accuracy, found.shorter_right.accuracy, found.balanced) == (1.0, 0.0, 0.5)
    assert found.gap is not None and found.gap.ci95[0] > 0.8
    assert found.length_controlled.ci95 is not None and found.length_controlled.ci95[0] < 0.5
    assert abs(found.score_weight) < 0.5 < found.length_weight


def test_length_control_leaves_a_good_score_alone_and_equals_its_regression() -> None:
    rng = np.random.default_rng(8)
    length, quality = rng.integers(-20, 20, 300), rng.normal(0, 1, 300)
    choice = rng.random(300) < 1 / (1 + np.exp(-3 * quality))
    score = quality + 0.15 * length  # a bias that costs accuracy
    sign = np.where(choice, 1, -1)
    items = []
    for n in range(300):
        low, high = (0.0, float(score[n])) if choice[n] else (float(score[n]), 0.0)
        sizes = (40 + int(length[n]), 40) if choice[n] else (40, 40 + int(length[n]))
        items.append(pair(n, high, low, sizes))
    found = length_bias(decisions(items), 0)
    assert found is not None and found.length_controlled.accuracy is not None
    slope = np.linalg.lstsq(length[:, None].astype(float), score, rcond=None)[0][0]
    residual = sign * (score - slope * length)
    assert found.length_controlled.accuracy == pytest.approx((residual > 0).mean())
    plain = accuracy_of("", decisions(items)).accuracy
    assert plain is not None and found.length_controlled.accuracy > plain + 0.1
    assert found.score_weight > 1.0 > abs(found.length_weight)


def test_logistic_weights_are_the_maximum_found_by_newton() -> None:
    rng = np.random.default_rng(9)
    residual, lengths = rng.normal(0.5, 1, 120), rng.normal(0.2, 7, 120)
    x = np.stack([residual, lengths], 1)
    x /= np.sqrt((x**2).mean(0))
    w = np.zeros(2)
    for _ in range(50):  # sum of -log sigmoid over both sides, plus |w|^2 / (2 C) with C = 100
        p = 1 / (1 + np.exp(-x @ w))
        gradient = -2 * x.T @ (1 - p) + w / 100
        hessian = 2 * (x * (p * (1 - p))[:, None]).T @ x + np.eye(2) / 100
        w -= np.linalg.solve(hessian, gradient)
    assert logistic_weights(residual, lengths) == pytest.approx(tuple(w), rel=1e-4)


def test_equal_lengths_have_a_row_of_their_own() -> None:
    items = [pair(1, 1, 0, (5, 4)), pair(2, 0, 1, (4, 5)), pair(3, 0, 1, (5, 5)), pair(4, 1, 0, (5, 4), tie=True)]
    found = length_bias(decisions(items), 0)
    assert found is not None and found.always_longer == 0.5
    rows = (found.longer_right, found.shorter_right, found.equal_length)
    assert [(row.accuracy, row.decisions) for row in rows] == [(1.0, 1), (0.0, 1), (0.0, 1)]


def test_no_length_no_bias() -> None:
    assert length_bias(decisions([pair(1, 1, 0), pair(2, 1, 0)]), 0) is None
    flat = length_bias(decisions([pair(1, 1, 1, (3, 4)), pair(2, 0, 0, (5, 4))]), 0)
    assert flat is not None and flat.pearson is None and flat.balanced == 0.5 and flat.score_weight == 0.0
