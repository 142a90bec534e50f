"""The evaluation of reward models, against numbers worked out by hand and slow oracles."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest

from rlhf_ray.errors import RunError, UserError
from rlhf_ray.evaluation.calibration import best_temperature, calibrate_pairs, calibrate_thumbs
from rlhf_ray.evaluation.intervals import bootstrap_ratio, effective_size, newcombe_interval, wilson_interval
from rlhf_ray.evaluation.kendall import kendall, tau_b
from rlhf_ray.evaluation.reward import RewardEvaluation, evaluate_reward_model
from rlhf_ray.evaluation.reward_accuracy import accuracy_of, by_category, by_certainty, by_length
from rlhf_ray.evaluation.reward_agreement import alphas, krippendorff_alpha
from rlhf_ray.evaluation.reward_items import ScoredItem, decisions
from rlhf_ray.evaluation.reward_length import length_bias, logistic_weights
from rlhf_ray.evidence import OVERALL, Label, Pair, Ranking, Rating, Thumb
from rlhf_ray.types import Message


def prompt(name: object) -> tuple[Message, ...]:
    return (Message("user", f"question {name}"),)


def label(row: object = 1, objective: str = OVERALL, annotator: str | None = None) -> Label:
    return Label(f"file.jsonl row {row}", objective, annotator)


def pair(
    name: object,
    chosen: float,
    rejected: float,
    lengths: tuple[int, int] = (10, 10),
    tie: bool = False,
    answers: tuple[str, str] = ("good", "bad"),
    annotator: str | None = None,
    objective: str = OVERALL,
    category: str | None = None,
    uncertainty: tuple[float, float] | None = None,
) -> ScoredItem:
    evidence = Pair(prompt(name), *answers, label(name, objective, annotator), tie=tie)
    return ScoredItem(evidence, (chosen, rejected), lengths, uncertainty, category)


def thumb(name: object, good: bool, score: float, bias: float = 0.0, annotator: str | None = None) -> ScoredItem:
    return ScoredItem(
        Thumb(prompt(name), "text", good, label(name, annotator=annotator)), (score,), (5,), None, None, bias
    )


def rating(name: object, answer: str, value: float, score: float, annotator: str | None = None) -> ScoredItem:
    return ScoredItem(Rating(prompt(name), answer, value, label(name, annotator=annotator)), (score,), (len(answer),))


def ranking(name: object, ranks: tuple[int, ...], scores: tuple[float, ...]) -> ScoredItem:
    answers = tuple(f"answer {index}" for index in range(len(ranks)))
    return ScoredItem(Ranking(prompt(name), answers, ranks, label(name)), scores, tuple(range(1, len(ranks) + 1)))


# intervals


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


# decisions and accuracy


def test_every_kind_gives_its_decisions() -> None:
    items = [
        pair(1, 2.0, 1.5, (7, 9), uncertainty=(0.3, 0.4)),
        ranking(2, (1, 2, 2), (3.0, 1.0, 2.0)),
        rating(3, "a", 5.0, 1.0),
        rating(3, "bb", 2.0, 4.0),
        rating(3, "ccc", 5.0, 0.0),
        rating(3, "other person", 1.0, 0.0, annotator="x"),
        thumb(4, False, 1.0, bias=-3.0),
    ]
    found = decisions(items)
    seen = sorted((d.kind, round(d.margin, 6), d.length_difference, d.tie) for d in found)
    assert seen == [
        ("pair", 0.5, -2, False),
        ("ranking", -1.0, -1, True),
        ("ranking", 1.0, -2, False),
        ("ranking", 2.0, -1, False),
        ("rating", -4.0, 1, False),  # ccc (5) over bb (2): 0 - 4
        ("rating", -3.0, -1, False),
        ("rating", 1.0, -2, True),
        ("thumb", 2.0, 0, False),
    ]
    assert next(d.uncertainty for d in found if d.kind == "pair") == pytest.approx(0.5)


def test_the_same_answer_rated_twice_is_not_a_comparison() -> None:
    assert decisions([rating(1, "a", 5.0, 1.0), rating(1, "a", 2.0, 1.0)]) == []


def test_score_ties_count_half_and_human_ties_do_not_count() -> None:
    items = [pair(1, 2, 1), pair(2, 1, 1), pair(3, 0, 1), pair(4, 5, 1), pair(5, 5, 1, tie=True)]
    row = accuracy_of("x", decisions(items))
    assert row.accuracy == (1 + 0.5 + 0 + 1) / 4
    assert (row.decisions, row.prompts, row.score_ties, row.human_ties) == (4, 4, 1, 1)
    assert row.ci95 == pytest.approx(wilson_interval(2.5, 4))
    nothing = accuracy_of("x", decisions([pair(1, 1, 2, tie=True)]))
    assert (nothing.accuracy, nothing.ci95, nothing.human_ties) == (None, None, 1)


def test_ten_comparisons_of_one_ranking_are_not_ten_witnesses() -> None:
    rankings = [
        ranking(n, (1, 2, 3, 4, 5), tuple(float(x) * (-1 if n % 4 else 1) for x in range(5))) for n in range(20)
    ]
    row = accuracy_of("x", decisions(rankings))
    assert (row.accuracy, row.decisions, row.prompts) == (0.75, 200, 20)
    assert row.ci95 == pytest.approx(wilson_interval(0.75 * 19, 19))  # 20 whole rankings, one for the mean


def test_bad_scores_name_the_row() -> None:
    with pytest.raises(RunError, match=r"file\.jsonl row 7.*not all finite"):
        pair(7, math.nan, 1)
    with pytest.raises(ValueError, match="2 answers, but"):
        ScoredItem(Pair(prompt(1), "a", "b", label()), (1.0,), (1, 2))
    with pytest.raises(UserError, match="no held-out evidence"):
        evaluate_reward_model([], 0)


def test_length_buckets_are_quarters_that_miss_nobody() -> None:
    items = [pair(n, n % 3, 1, (n, 1)) for n in range(1, 41)]
    rows = by_length(decisions(items))
    assert [row.name for row in rows] == ["1 to 11 tokens", "12 to 21 tokens", "22 to 31 tokens", "32 to 40 tokens"]
    assert sum(row.decisions for row in rows) == 40
    for row, span in zip(rows, (range(1, 12), range(12, 22), range(22, 32), range(32, 41)), strict=True):
        assert row.accuracy == pytest.approx(sum([0, 0.5, 1][n % 3] for n in span) / len(span))
    assert [row.name for row in by_length(decisions([pair(n, 1, 0, (4, 4)) for n in range(9)]))] == ["4 tokens"]


def test_the_table_by_category_has_rewardbench_order_and_its_mean() -> None:
    items = [pair(n, 1, 0, category="Safety") for n in range(3)] + [pair("c", 0, 1, category="Chat")]
    items += [pair("h", 1, 1, category="Chat Hard"), pair("o", 1, 0, category="A own one"), pair("none", 1, 0)]
    table = by_category(decisions(items))
    assert table is not None and [row.name for row in table.rows] == ["Chat", "Chat Hard", "Safety", "A own one"]
    assert [row.accuracy for row in table.rows] == [0.0, 0.5, 1.0, 1.0]
    assert table.mean == pytest.approx(2.5 / 4) and table.uncategorised == 1
    assert by_category(decisions([pair(1, 1, 0)])) is None


def test_uncertainty_terciles() -> None:
    items = [pair(n, 1, 0, uncertainty=(n / 10, 0.0)) for n in range(30)]
    items += [pair(n, -1, 0, uncertainty=(n / 10, 0.0)) for n in range(30, 45)]
    random.Random(0).shuffle(items)
    found = by_certainty(decisions(items))
    assert found is not None and [row.accuracy for row in found.rows] == [1.0, 1.0, 0.0]
    assert [row.decisions for row in found.rows] == [15, 15, 15]
    assert found.gap is not None and found.gap.value == 1.0 and found.gap.ci95[0] > 0.6
    assert by_certainty(decisions([pair(n, 1, 0) for n in range(9)])) is None


# calibration


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


# Kendall's tau


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


# agreement


def slow_nominal_alpha(units: list[list[int]]) -> float:
    """1 - observed / expected disagreement, from pairs of judgements (Krippendorff 2011)."""
    units = [unit for unit in units if len(unit) > 1]
    total = sum(map(len, units))
    observed = sum(sum(a != b for a, b in itertools.permutations(u, 2)) / (len(u) - 1) for u in units) / total
    everything = [value for unit in units for value in unit]
    expected = sum(a != b for a, b in itertools.permutations(everything, 2)) / (total * (total - 1))
    return 1 - observed / expected


def test_alpha_is_that_of_its_definition() -> None:
    rng = random.Random(1)
    units = [[rng.randint(0, 2) for _ in range(rng.randint(2, 4))] for _ in range(30)]
    counts = np.array([[unit.count(value) for value in range(3)] for unit in units])
    assert krippendorff_alpha(counts) == pytest.approx(slow_nominal_alpha(units))
    assert krippendorff_alpha(np.array([[2, 0, 0], [3, 0, 0]])) is None


def test_the_model_joins_the_annotators_whatever_the_order_of_answers() -> None:
    ways = {"ab": ("a", "b"), "ba": ("b", "a")}
    said = {1: ["ab", "ab"], 2: ["ba", "ba", "ab"], 3: ["ab", "tie"], 4: ["ba"], 5: ["ab", "ab"]}
    model = {1: "ab", 2: "ba", 3: "ba", 4: "ab", 5: "ba"}
    items = []
    for name, judgements in said.items():
        score = {"a": 1.0, "b": 0.0} if model[name] == "ab" else {"a": 0.0, "b": 1.0}
        for number, judgement in enumerate(judgements):
            answers = ways.get(judgement, ("b", "a"))
            scores = (score[answers[0]], score[answers[1]])
            items.append(pair(name, *scores, tie=judgement == "tie", answers=answers, annotator=f"p{number}"))
    nameless = pair(4, 1, 0, answers=("a", "b"))  # may be a copy of what somebody said
    found = alphas(decisions([*items, nameless]))[0]
    assert (found.units, found.judgements) == (4, 9)
    numbers = {"ab": 0, "ba": 1, "tie": 2}
    shared = [name for name in said if len(said[name]) > 1]
    people = [[numbers[judgement] for judgement in said[name]] for name in shared]
    joined = [[*unit, numbers[model[name]]] for name, unit in zip(shared, people, strict=True)]
    assert found.people == pytest.approx(slow_nominal_alpha(people))
    assert found.with_model == pytest.approx(slow_nominal_alpha(joined))


def test_alpha_of_thumbs_and_of_single_annotators() -> None:
    truth, scores = [True, False, True, False], [1.0, -1.0, -2.0, -1.0]
    items = [thumb(n, good, score, annotator="p") for n, (good, score) in enumerate(zip(truth, scores, strict=True))]
    found = alphas(decisions([*items, thumb(0, False, 1.0, annotator="p")]))  # the second look of p does not count
    expected = slow_nominal_alpha([[int(good), int(score > 0)] for good, score in zip(truth, scores, strict=True)])
    assert [(a.of, a.units, a.people) for a in found] == [("thumbs", 4, None)]
    assert found[0].with_model == pytest.approx(expected)


# length


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


# the whole


def test_the_evaluation_survives_json_and_keeps_kinds_apart() -> None:
    rng = random.Random(3)
    items = [
        pair(n, rng.gauss(1, 1), 0.0, (rng.randint(5, 50), 20), objective="help", annotator="anna") for n in range(40)
    ]
    items += [ranking(f"r{n}", (1, 2, 3), tuple(rng.gauss(0, 1) for _ in range(3))) for n in range(10)]
    items += [thumb(f"t{n}", n % 4 != 0, rng.gauss(1, 1)) for n in range(20)]
    found = evaluate_reward_model(items, 0)
    assert RewardEvaluation.model_validate_json(found.model_dump_json()) == found
    assert found.items == 70 and found.overall.decisions == 40 + 30
    assert [(row.name, row.decisions) for row in found.by_kind] == [("pair", 40), ("ranking", 30), ("thumb", 20)]
    assert [row.name for row in found.by_objective] == ["help", OVERALL]
    assert found.thumbs_majority == 0.75 and [row.name for row in found.by_annotator] == ["anna"]
    only_thumbs = evaluate_reward_model(items[-20:], 0)
    assert only_thumbs.overall.accuracy is None and only_thumbs.pair_calibration is None and only_thumbs.length is None
    all_ties = evaluate_reward_model([pair(1, 1, 0, tie=True)], 0)
    assert all_ties.overall.human_ties == 1 and all_ties.overall.accuracy is None
