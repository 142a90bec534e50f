"""Intervals, and Kendall's tau, against their equations, published examples and slow counts."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest

from rlhf_ray.evaluation.intervals import bootstrap_ratio, effective_size, newcombe_interval, wilson_interval
from rlhf_ray.evaluation.kendall import kendall, tau_b
from tests.unit.scored_items import ranking, rating


def test_wilson_is_the_root_of_its_equation() -> None:
    low, high = wilson_interval(40, 50)
    for bound in (low, high):  # (p - bound)^2 = z^2 bound (1 - bound) / n
        assert (0.8 - bound) ** 2 == pytest.approx(1.96**2 * bound * (1 - bound) / 50)
    assert low < 0.8 < high
    assert wilson_interval(0, 10)[0] == 0.0 and wilson_interval(10, 10)[1] == 1.0
    for successes, trials in ((1, 0), (-1, 3), (4, 3)):
        with pytest.raises(ValueError):
            wilson_interval(successes, trials)


def test_newcombe_gives_the_published_example() -> None:
    # Newcombe 1998, table II, (a) 56/70 - 48/80, method 10: 0.0524 to 0.3339
    first, second = wilson_interval(56, 70, 1.959964), wilson_interval(48, 80, 1.959964)
    assert newcombe_interval(0.8, first, 0.6, second) == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_dependent_answers_are_worth_fewer() -> None:
    right = np.array([1.0, 1.0, 0.0, 1.0, 0.0, 1.0])
    assert effective_size(right, np.arange(6)) == pytest.approx(6)  # one a prompt: all count
    # every prompt's answers are copies of each other: 2 of them are worth about one
    copies, groups = np.repeat(right, 2), np.repeat(np.arange(6), 2)
    assert effective_size(copies, groups) == pytest.approx(5)  # 6 with the correction 5 / 6
    assert effective_size(np.ones(12), groups) == 6 and effective_size(right, np.zeros(6)) == 1
    halves = np.full(8, 0.5)
    assert 1 <= effective_size(halves, np.arange(8)) <= 8


def test_effective_size_covers_where_plain_wilson_does_not() -> None:
    """60 prompts, 6 comparisons each, whose accuracy differs between prompts around 0.7."""
    rng, plain, clustered = np.random.default_rng(0), 0, 0
    for _ in range(400):
        chance = np.repeat(rng.beta(1.4, 0.6, 60), 6)
        right, prompts = (rng.random(360) < chance).astype(float), np.repeat(np.arange(60), 6)
        size = effective_size(right, prompts)
        low, high = wilson_interval(right.mean() * size, size)
        clustered += low <= 0.7 <= high
        low, high = wilson_interval(right.sum(), 360)
        plain += low <= 0.7 <= high
    assert plain / 400 < 0.85 and 0.92 <= clustered / 400 <= 0.985


def test_the_bootstrap_of_a_mean_is_near_the_normal_interval_and_repeats() -> None:
    values = np.random.default_rng(1).normal(2.0, 3.0, 400)
    low, high = bootstrap_ratio(values, np.ones(400), seed=3)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05)
    assert bootstrap_ratio(values, np.ones(400), seed=3) == (low, high)
    assert bootstrap_ratio(values, np.ones(400), seed=4) != (low, high)


def slow_tau_b(x: list[float], y: list[float]) -> float:
    score, only_x, only_y = 0, 0, 0
    for i, j in itertools.combinations(range(len(x)), 2):
        a, b = np.sign(x[i] - x[j]), np.sign(y[i] - y[j])
        score, only_x, only_y = score + a * b, only_x + (a != 0), only_y + (b != 0)
    return float(score / math.sqrt(only_x * only_y))


def test_tau_b_is_the_count_of_pairs_corrected_for_ties() -> None:
    rng = random.Random(0)
    for _ in range(50):
        x = [float(rng.randint(0, 4)) for _ in range(7)] + [9.0]
        y = [float(rng.randint(0, 3)) for _ in range(7)] + [7.0]
        assert tau_b(x, y) == pytest.approx(slow_tau_b(x, y))
    assert tau_b([1.0, 2.0], [3.0, 3.0]) is None and tau_b([1.0, 1.0], [1.0, 3.0]) == 0.0


def test_tau_of_rankings_and_ratings() -> None:
    items = [
        ranking(1, (1, 2, 3), (3.0, 2.0, 1.0)),  # tau 1
        ranking(2, (1, 2, 3), (3.0, 1.0, 2.0)),  # one of three the wrong way: 1/3
        ranking(3, (1, 1), (3.0, 1.0)),  # people see no difference
        rating("a", "x", 1.0, 0.0),
        rating("a", "y", 4.0, 1.0),
        rating("b", "x", 2.0, 9.0),
        rating("b", "y", 5.0, 3.0),
        rating("c", "alone", 3.0, 2.0),
    ]
    rows = {(row.kind, row.scope): row for row in kendall(items, 0)}
    ranked = rows["ranking", "prompt"]
    assert ranked.tau == pytest.approx(2 / 3) and (ranked.groups, ranked.prompts, ranked.left_out) == (2, 2, 1)
    assert ranked.ci95 == pytest.approx((1 / 3, 1.0))
    within, pooled = rows["rating", "prompt"], rows["rating", "all"]
    assert within.tau == pytest.approx(0.0) and within.groups == 2
    assert pooled.tau == pytest.approx(slow_tau_b([0, 1, 9, 3, 2], [1, 4, 2, 5, 3])) and pooled.groups == 5
    assert pooled.ci95[0] <= pooled.tau <= pooled.ci95[1]
    assert kendall(items, 0) == kendall(items, 0)
