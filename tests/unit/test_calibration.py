"""Calibration of reward models against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlhf_ray.evaluation.calibration import best_temperature, calibrate_pairs, calibrate_thumbs
from rlhf_ray.evaluation.reward_items import decisions
from tests.unit.scored_items import pair, thumb


def test_calibration_by_hand() -> None:
    margins = [2.0, 1.0, -1.0, 0.0]  # confidences 0.8808, 0.7311, 0.7311, 0.5; right 1, 1, 0, 0.5
    found = calibrate_pairs(decisions([pair(n, m, 0.0) for n, m in enumerate(margins)]), 0)
    assert found is not None and len(found.bins) == 1 and found.bins[0].count == 4
    p = [1 / (1 + math.exp(-m)) for m in margins]
    assert found.bins[0].predicted == pytest.approx((p[0] + p[1] + p[1] + 0.5) / 4)
    assert found.bins[0].observed == pytest.approx(2.5 / 4)
    assert found.ece == pytest.approx(abs(2.5 / 4 - (p[0] + 2 * p[1] + 0.5) / 4))
    assert found.brier == pytest.approx(sum((1 - x) ** 2 for x in p) / 4)


def test_bins_have_equal_mass_and_ece_is_their_mean_gap() -> None:
    rng = np.random.default_rng(0)
    margins = rng.normal(0.5, 2.0, 105)
    found = calibrate_pairs(decisions([pair(n, float(m), 0.0) for n, m in enumerate(margins)]), 0)
    assert found is not None and [b.count for b in found.bins] == [21] * 5
    ranked = sorted(margins, key=abs)
    slow = 0.0
    for start in range(0, 105, 21):
        part = ranked[start : start + 21]
        gap = sum(m > 0 for m in part) / 21 - sum(1 / (1 + math.exp(-abs(m))) for m in part) / 21
        slow += abs(gap) * 21 / 105
    assert found.ece == pytest.approx(slow)


def test_a_calibrated_model_is_within_its_bound_and_an_overconfident_one_is_not() -> None:
    rng = np.random.default_rng(2)
    true = rng.normal(0, 1.5, 4000)
    signs = np.where(rng.random(4000) < 1 / (1 + np.exp(-true)), 1.0, -1.0)  # which side people took
    for scale in (1.0, 3.0):
        items = [pair(n, float(m), 0.0) for n, m in enumerate(scale * true * signs)]
        found = calibrate_pairs(decisions(items), 0)
        assert found is not None and found.temperature == pytest.approx(scale, rel=0.08)
        assert (found.ece <= found.ece_if_calibrated) == (scale == 1.0)


def test_the_temperature_is_the_best_of_a_fine_grid() -> None:
    margins = np.random.default_rng(3).normal(0.7, 2.0, 200)
    found = best_temperature(margins)
    grid = np.exp(np.linspace(-4, 4, 80_001))
    loss = [np.logaddexp(0, -margins / t).mean() for t in grid[::100]]
    near = grid[::100][int(np.argmin(loss))]
    fine = grid[(grid > near / 1.02) & (grid < near * 1.02)]
    best = fine[int(np.argmin([np.logaddexp(0, -margins / t).mean() for t in fine]))]
    assert found == pytest.approx(best, rel=2e-4)
    assert best_temperature(np.array([1.0, 2.0])) is None  # nothing is wrong: the colder the better
    assert best_temperature(np.array([1.0, -2.0])) is None  # the scores point the wrong way
    assert best_temperature(np.array([])) is None
    assert best_temperature(np.array([900.0, -1.0, 5.0])) is not None


def test_thumbs_have_two_sides_and_a_bias() -> None:
    items = [thumb(1, True, 2.0, bias=-1.0), thumb(2, False, 0.0, bias=-1.0), thumb(3, False, 3.0, bias=-1.0)]
    found = calibrate_thumbs(decisions(items), 0)
    p = [1 / (1 + math.exp(-x)) for x in (1.0, -1.0, 2.0)]
    assert found is not None and found.brier == pytest.approx(((1 - p[0]) ** 2 + p[1] ** 2 + p[2] ** 2) / 3)
    assert found.bins[0].predicted == pytest.approx(sum(p) / 3) and found.bins[0].observed == pytest.approx(1 / 3)
    assert calibrate_pairs(decisions(items), 0) is None
