"""Accuracy and agreement of reward models, and the evaluation as a whole."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest

from rlhf_ray.errors import RunError, UserError
from rlhf_ray.evaluation.intervals import wilson_interval
from rlhf_ray.evaluation.reward import RewardEvaluation, evaluate_reward_model
from rlhf_ray.evaluation.reward_accuracy import accuracy_of, by_category, by_certainty, by_length
from rlhf_ray.evaluation.reward_agreement import alphas, krippendorff_alpha
from rlhf_ray.evaluation.reward_items import ScoredItem, decisions
from rlhf_ray.evidence import OVERALL, Pair
from tests.unit.scored_items import label, pair, prompt, ranking, rating, thumb


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
