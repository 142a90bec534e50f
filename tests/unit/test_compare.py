"""Comparisons of finished runs: figures worked out by hand, grouping, refusals, and the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from finished_runs import HELDOUT, STEPS, finished_run
from test_report import HOSTILE, Page

from rlhf_ray.errors import UserError
from rlhf_ray.report.comparison import Comparison, as_json, compare_runs, resampled
from rlhf_ray.report.comparison_page import cells, charts, headline, samples, settings, write_comparison

RLOO = {"type": "rloo"}


def two(tmp_path: Path, first: dict[str, Any] | None = None, **second: Any) -> Comparison:
    """GRPO, changed by `first`, and RLOO, changed by `second`."""
    one = finished_run(tmp_path / "one", **(first or {}))
    return compare_runs([one, finished_run(tmp_path / "two", **{"algorithm": RLOO, **second})])


def test_the_figures_of_two_runs(tmp_path: Path) -> None:
    """All rewards before are 0. Against 1, 2, 3, 4 the second run wins, ties, wins and loses."""
    found = two(tmp_path, {"after": [1.0, 2.0, 3.0, 4.0]}, after=[2.0, 2.0, 4.0, 0.0])
    one, other = found.figures
    assert (one.label, other.label, one.seeds, one.win_rate) == ("grpo", "rloo", [0], None)
    assert (one.gain.value, one.reward, other.gain.value) == (2.5, 2.5, 2.0)
    low, high = one.gain.ci95
    assert 1.0 <= low < 2.5 < high <= 4.0
    assert other.win_rate is not None and other.win_rate.value == (1 + 0.5 + 1 + 0) / 4
    low, high = other.win_rate.ci95
    assert 0.0 <= low < 0.625 < high <= 1.0
    assert found.lead is not None and found.lead.value == 0.5
    assert (one.rollouts, one.tokens, one.seconds) == (16, 30 + 50, 10 + 12 + 3)
    assert (one.kl_per_token, one.truncated) == (0.25, 0.5)
    assert found.resampled == "held-out prompts"


def test_a_clean_sweep_is_not_certain(tmp_path: Path) -> None:
    """Wilson's interval of 4 of 4: from 4 / (4 + 1.96^2)."""
    won = two(tmp_path, after=[3.0] * HELDOUT).figures[1].win_rate
    assert won is not None and won.value == 1.0
    assert won.ci95 == pytest.approx((4 / (4 + 1.96**2), 1.0))


def test_the_gain_is_what_training_added(tmp_path: Path) -> None:
    found = two(tmp_path, before=[-1.0, 0.0, 1.0, 2.0], after=[0.0, 1.0, 2.0, 3.0], seed=1)
    assert found.figures[1].gain.value == 1.0 and found.figures[1].gain.ci95 == (1.0, 1.0)


def test_one_answer_is_a_tie_and_so_is_one_reward(tmp_path: Path) -> None:
    """Of the four prompts the first has one answer with two scores, the second one score up to rounding."""
    texts = ["same", "a", "b", "c"]
    found = two(
        tmp_path,
        {"after": [1.0, 0.1, 1.0, 1.0], "texts": texts},
        after=[1.01, 0.1 + 1e-8, 1.0001, 0.0],
        texts=["same", "d", "e", "f"],
    )
    assert found.figures[1].win_rate is not None
    assert found.figures[1].win_rate.value == (0.5 + 0.5 + 1 + 0) / 4


def test_runs_that_differ_in_their_seed_are_one_method(tmp_path: Path) -> None:
    runs = [finished_run(tmp_path / f"g{i}", seed=i, name=f"run-{i}", after=[float(i)] * HELDOUT) for i in (0, 2)]
    runs[1] = finished_run(tmp_path / "g2", seed=2, placement={"threads": 3}, after=[2.0] * HELDOUT)  # and in its place
    runs.append(finished_run(tmp_path / "r0", algorithm=RLOO, after=[1.0] * HELDOUT))
    found = compare_runs(runs)
    assert [(figures.label, figures.seeds) for figures in found.figures] == [("grpo", [0, 2]), ("rloo", [0])]
    grpo, rloo = found.figures
    assert grpo.gain.value == 1.0 and grpo.gain.ci95 == (0.0, 2.0), "a drawn pair of seeds has 0, 1 or 2"
    assert rloo.win_rate is not None and rloo.win_rate.value == 0.5, "above seed 0, below seed 2"
    assert found.resampled == "held-out prompts and seeds"


def test_methods_of_one_type_go_by_the_names_of_their_runs(tmp_path: Path) -> None:
    soft, hard = ({"algorithm": {"type": "grpo", "kl_coef": coef}} for coef in (0.01, 0.2))
    runs = [finished_run(tmp_path / "soft", **soft), finished_run(tmp_path / "hard", **hard)]
    runs += [finished_run(tmp_path / "hard-1", seed=1, **hard), finished_run(tmp_path / "r", algorithm=RLOO)]
    found = compare_runs(runs)
    assert [(method.label, len(method.runs)) for method in found.methods] == [("soft", 1), ("hard", 2), ("rloo", 1)]
    assert ("algorithm.kl_coef", ["0.01", "0.2", "0.05"]) in settings(found.methods)
    namesake = finished_run(tmp_path / "again" / "soft", algorithm={"type": "grpo", "kl_coef": 0.3})
    labels = [method.label for method in compare_runs([runs[0], namesake]).methods]
    assert labels == [str(runs[0]), str(namesake)]


def test_prompts_that_could_not_be_scored_are_left_out_everywhere(tmp_path: Path) -> None:
    found = two(tmp_path, {"after": [None, 2.0, 2.0, 2.0]}, before=[0.0, 0.0, 0.0, None], after=[9.0, 1.0, 3.0, 9.0])
    assert (found.prompts, found.left_out) == (["p1", "p2"], 2)
    assert found.figures[1].gain.value == 2.0
    failed = two(tmp_path / "all", {"before": [0.0] * 3, "after": [2.0] * 3}, before=[0.0] * 3, after=[1.0] * 3)
    assert failed.left_out == 1, "in no run's table at all"
    assert failed.figures[0].truncated == 1 / 3, "of the prompts that count: p1"
    none = finished_run(tmp_path / "none", after=[None] * HELDOUT, algorithm=RLOO)
    with pytest.raises(UserError, match="no held-out prompt has an answer with a reward in all runs"):
        compare_runs([tmp_path / "one", none])


def test_resampling_draws_prompts_and_whole_seeds() -> None:
    values = np.array([[0.0, 0.0], [4.0, 4.0]])
    assert resampled(values[:1]).ci95 == (0.0, 0.0)
    assert resampled(values).ci95 == (0.0, 4.0) and resampled(values).value == 2.0
    mixed = resampled(np.tile([0.0, 1.0], 50)[None])
    assert mixed.ci95 == pytest.approx((0.4, 0.6), abs=0.02), "0.5 and 1.96 standard errors of 0.05"


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"prompts": {"path": "others.jsonl"}}, "prompts.path is prompts.jsonl and others.jsonl"),
    ({"prompts": {"max_prompt_tokens": 99}}, "prompts.max_prompt_tokens is 256 and 99"),
    ({"train": {"eval_prompts": 3}}, "train.eval_prompts is 4 and 3"),
    ({"model": {"path": "large"}}, "model.path is tiny and large"),
    ({"reward": {"sources": [{"type": "model", "path": "rm"}]}}, "reward.sources is .*share_of_vowels.* and .*'rm'"),
    ({"reward": {"truncated": {"mode": "mask"}}}, "reward.truncated.mode is penalize and mask"),
    ({"rollout": {"temperature": 0.5}}, "rollout.temperature is 1.0 and 0.5"),
    ({"train": {"num_steps": 3}}, "they sampled 16 and 24 rollouts; give both the same budget"),
    ({"steps": [{**STEPS[0], "rollout/replaced_prompts": 3.0}, STEPS[1]]}, "they sampled 16 and 22 rollouts"),
    ({"question": "another"}, "their held-out prompts differ: 0 are in one of them only, and 4 have another text"),
    ({"before": [0.0] * 5, "after": [1.0] * 5}, "their held-out prompts differ: 1 are in one of them only"),
    ({"trained_on": "another"}, "1 of their training prompts have another text under the same id"),
    ({"before": [1.5] * 4}, "their rewards differ: 4 answers that are the same in both got 0.000 and 1.500"),
]


@pytest.mark.parametrize(("changes", "words"), REFUSALS)
def test_runs_that_are_not_on_equal_terms_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=f"one and .*two cannot be compared: {words}"):
        two(tmp_path, **changes)


def test_sizes_of_a_step_may_differ_if_the_budget_does_not(tmp_path: Path) -> None:
    found = two(tmp_path, rollout={"samples_per_prompt": 4}, train={"prompts_per_step": 1, "num_steps": 4})
    assert [figures.rollouts for figures in found.figures] == [16, 16]


def test_what_is_no_finished_online_run_is_refused(tmp_path: Path) -> None:
    good, bad = finished_run(tmp_path / "good"), tmp_path / "bad"
    with pytest.raises(UserError, match="at least two run directories"):
        compare_runs([good])
    with pytest.raises(UserError, match="nowhere holds no run"):
        compare_runs([good, tmp_path / "nowhere"])
    (tmp_path / "x").mkdir()
    with pytest.raises(UserError, match="good is given twice"):
        compare_runs([good, tmp_path / "x" / ".." / "good"])
    with pytest.raises(UserError, match=r"good and .*twin are one method with one seed \(0\)"):
        compare_runs([good, finished_run(tmp_path / "twin")])
    finished_run(bad, summary={"finished": False})
    fix = f"rlhf-ray train {bad}/config.yaml --run-dir {bad} --resume"
    with pytest.raises(UserError, match=f"{bad} is not finished. Go on with it: {fix}"):
        compare_runs([good, bad])
    finished_run(bad)
    (bad / "eval" / "after.parquet").unlink()
    with pytest.raises(UserError, match=f"stopped before its held-out answers after training: {fix}"):
        compare_runs([good, bad])
    (bad / "eval" / "before.parquet").unlink()
    with pytest.raises(UserError, match=r"bad has no held-out answers.*train\.eval_prompts"):
        compare_runs([good, bad])
    (bad / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"bad: a file of the run cannot be read \(summary.json"):
        compare_runs([good, bad])
    (bad / "config.yaml").write_text("kind: sft\nname: x\n")
    (bad / "summary.json").unlink()
    with pytest.raises(UserError, match="bad is a run of kind sft"):
        compare_runs([good, bad])


def test_curves_are_means_over_seeds_between_the_lowest_and_the_highest(tmp_path: Path) -> None:
    other = [{**step, "reward/mean": step["reward/mean"] + 0.2, "time/step": 20.0} for step in STEPS]
    runs = [finished_run(tmp_path / "g0"), finished_run(tmp_path / "g1", seed=1, steps=other)]
    runs.append(finished_run(tmp_path / "r", algorithm=RLOO, steps=[STEPS[0], {"throughput/response_tokens": 9.0}]))
    kl, tokens, seconds = charts(compare_runs(runs).methods)
    grpo, rloo = tokens.panels[0].series
    assert (grpo.x, grpo.y) == ([30.0, 80.0], pytest.approx([0.3, 0.5]))
    assert grpo.band is not None and np.array(grpo.band) == pytest.approx(np.array([[0.2, 0.4], [0.4, 0.6]]))
    assert rloo.x == [30.0, 39.0] and rloo.band is None
    assert rloo.y[0] == 0.2 and np.isnan(rloo.y[1]), "a step without a reward is a gap, not a 0"
    assert seconds.panels[0].series[0].x == [(10 + 20) / 2, (25 + 43) / 2]
    assert kl.panels[0].series[0].x == [0.0, 0.01] and kl.panels[0].series[0].ends is not None
    assert "grpo: 0.5 at 80. rloo: not known at 39." in tokens.summary


def test_the_headline_claims_no_more_than_the_interval(tmp_path: Path) -> None:
    six: dict[str, Any] = {"train": {"eval_prompts": 6}, "before": [0.0] * 6}
    grpo = {**six, "after": [2.0] * 6}
    text, verdict = headline(two(tmp_path, grpo, after=[3.0] * 6, **six))
    assert text == "Largest held-out gain: rloo, +3.00 (95% interval 3.00 to 3.00)"
    assert (verdict.tone, verdict.text) == ("up", "Ahead of grpo: +1.00, 95% interval 1.00 to 1.00")
    _, verdict = headline(two(tmp_path / "close", grpo, after=[0.0, 8.0, 1.0, 1.0, 3.0, 2.0], **six))
    few = headline(two(tmp_path / "few", after=[3.0] * HELDOUT))[1]
    assert (few.tone, few.text) == ("unknown", "Fewer than 6 held-out prompts tell nothing")
    assert verdict.tone == "same" and verdict.text.startswith("Not clearly ahead of grpo: +0.50, 95% interval \u2212")


def test_the_samples_are_spread_over_the_ranking(tmp_path: Path) -> None:
    found = two(tmp_path, {"after": [2.0, 0.0, 3.0, 1.0]})
    assert [sample.prompt for sample in samples(found)] == [f"question {i}" for i in (2, 0, 3, 1)]
    first = samples(found)[0]
    assert first.before.text == "untrained 0: 2" and first.context == [("system", "be brief")]
    assert [(title, answer.text, answer.reward) for title, _, answer in first.after] == [
        ("grpo, seed 0", "grpo 0: 2", 3.0),
        ("rloo, seed 0", "rloo 0: 2", 2.0),
    ]


def test_the_page_holds_the_facts_and_hostile_text_stays_text(tmp_path: Path) -> None:
    found = two(tmp_path, after=[2.0, 2.0, 4.0, 0.0], texts=[HOSTILE] * HELDOUT)
    page = Page(write_comparison(tmp_path / "comparison.html", found).read_text(encoding="utf-8"))
    text = " ".join(page.text.split())
    for fact in (
        "Comparison of grpo, rloo",
        "The same prompts, reward, base model and number of rollouts",
        " ".join(cells(found.figures[1])),
        " 50% (",
        "question 3",
        "untrained 0: 3",
        "rloo, seed 0",
        f"{tmp_path / 'one'} grpo 0",
        "algorithm.aggregation length_normalised sequence_mean",
    ):
        assert fact in text, fact
    assert len(page.scripts) == 3 and "<script>alert(1)</script>" in page.text
    assert "alert(1)" not in page.scripts[0] + page.scripts[2]
    assert [spec["id"] for spec in json.loads(page.scripts[1])] == ["kl", "tokens", "time"]
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")


def test_the_figures_are_there_for_machines(tmp_path: Path) -> None:
    found = json.loads(as_json(two(tmp_path, {"summary": {"kl_to_reference_per_token": None}}, after=[3.0] * HELDOUT)))
    assert (found["baseline"], found["heldout_prompts"], found["heldout_prompts_left_out"]) == ("grpo", 4, 0)
    assert found["intervals"] == "95 %, bootstrap over held-out prompts"
    grpo, rloo = found["methods"]
    assert grpo["win_rate"] is None and rloo["win_rate"]["value"] == 1.0 and len(rloo["win_rate"]["ci95"]) == 2
    assert grpo["kl_per_token"] is None, "not known, and JSON has no NaN"
    assert found["runs"][1]["curve"]["tokens"] == [30.0, 80.0] and found["runs"][1]["seed"] == 0
