"""The statistics of sweeps against figures worked out by hand and slow oracles."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from sweep_folders import add_trial, sweep_folder

from rlhf_ray.report.sweep_effects import effects
from rlhf_ray.report.sweep_ranking import read_sweep
from rlhf_ray.report.sweep_statistics import mean_of, pareto_front, rank_correlation, spearman

RATE = {"train.learning_rate": {"type": "log_uniform", "low": 1e-6, "high": 1e-4}}


def test_the_interval_over_seeds_is_students() -> None:
    """1, 2, 3 have a standard deviation of 1; t(0.975, 2) is 4.3027. 0 and 1: s = 0.7071, t(0.975, 1) is 12.7062."""
    low, high = mean_of([1.0, 2.0, 3.0]).ci95 or (0.0, 0.0)
    assert (low, high) == pytest.approx((2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)), abs=1e-4)
    assert mean_of([0.0, 1.0]).ci95 == pytest.approx((0.5 - 12.7062 / 2, 0.5 + 12.7062 / 2), abs=1e-4)
    assert mean_of([7.0]).ci95 is None and mean_of([7.0]).value == 7.0


Points = st.integers(1, 3).flatmap(
    lambda width: st.lists(st.lists(st.integers(0, 4), min_size=width, max_size=width), min_size=1, max_size=12)
)


@settings(deadline=None)
@given(Points)
def test_the_front_is_what_nothing_beats(points: list[list[int]]) -> None:
    def beaten(one: list[int]) -> bool:
        rivals = [other for other in points if other != one]
        return any(not [i for i in range(len(one)) if other[i] < one[i]] for other in rivals)

    assert pareto_front(np.array(points, dtype=np.float64)).tolist() == [not beaten(one) for one in points]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=12))
def test_ranks_correlate_as_scipy_says(pairs: list[tuple[int, int]]) -> None:
    x, y = (np.array(side, dtype=np.float64) for side in zip(*pairs, strict=True))
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert math.isnan(spearman(x, y))
    else:
        assert spearman(x, y) == pytest.approx(spearmanr(x, y).statistic)


def test_a_correlation_has_an_interval_and_needs_five_configurations() -> None:
    """Of 1 2 3 4 5 and 1 2 3 5 4: d^2 = 0 0 0 1 1, so 1 - 6 * 2 / (5 * 24) = 0.9."""
    found = rank_correlation([1, 2, 3, 4, 5], [1, 2, 3, 5, 4])
    assert found is not None and found.rho == pytest.approx(0.9) and found.count == 5
    assert -1 <= found.ci95[0] < 0.9 < found.ci95[1] <= 1
    assert found == rank_correlation([1, 2, 3, 4, 5], [1, 2, 3, 5, 4])
    assert rank_correlation([1, 2, 3, 4], [1, 2, 3, 4]) is None
    assert rank_correlation([1, 2, 3, 4, 5], [2, 2, 2, 2, 2]) is None


def test_effects_are_means_over_the_trials_of_a_level(tmp_path: Path) -> None:
    space: dict[str, Any] = {
        "method.beta": {"type": "choice", "values": ["0.5", 0.1]},
        "method.loss": {"type": "choice", "values": ["sigmoid", "hinge"]},
    }
    folder = sweep_folder(tmp_path, space, seeds=[0])
    for beta, loss, accuracy in (
        (0.1, "hinge", 0.5),
        (0.5, "hinge", 0.6),
        (0.1, "sigmoid", 0.9),
        (0.5, "sigmoid", 0.8),
    ):
        add_trial(folder, {"method.beta": beta, "method.loss": loss}, 0, {"heldout_accuracy": accuracy})
    beta_effect, loss_effect = effects(read_sweep(folder))
    assert [(level.label, level.mean.value) for level in beta_effect.levels] == [
        ("0.1", 0.7),
        ("0.5", pytest.approx(0.7)),
    ]
    assert beta_effect.levels[0].mean == mean_of([0.5, 0.9]) and beta_effect.parameter.ends == (0.1, 0.5)
    assert [(level.label, level.mean.count) for level in loss_effect.levels] == [("sigmoid", 2), ("hinge", 2)]
    assert loss_effect.correlation is None and beta_effect.correlation is None and not beta_effect.in_parts


def test_many_numbers_are_cut_into_three_parts(tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path, RATE, seeds=[0])
    for number in range(9):
        add_trial(folder, {"train.learning_rate": (number + 1) * 1e-5}, 0, {"heldout_accuracy": 0.1 * number})
    (effect,) = effects(read_sweep(folder))
    assert [(level.label, level.mean.count) for level in effect.levels] == [
        ("1e-05 to 3e-05", 3), ("4e-05 to 6e-05", 3), ("7e-05 to 9e-05", 3),
    ]  # fmt: skip
    assert [level.mean.value for level in effect.levels] == pytest.approx([0.1, 0.4, 0.7])
    assert effect.in_parts and effect.correlation is not None and effect.correlation.rho == pytest.approx(1.0)
