"""The page of a sweep: its facts and links, its pictures, hostile names, and sweeps of which little is there."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from sweep_folders import add_seeds, add_trial, online_folder, sweep_folder
from test_report import HOSTILE, Page

from rlhf_ray.errors import UserError
from rlhf_ray.report.sweep import read_sweep
from rlhf_ray.report.sweep_charts import effect_pictures, front_picture
from rlhf_ray.report.sweep_curves import curve_chart
from rlhf_ray.report.sweep_page import write_sweep_report
from rlhf_ray.report.sweep_parallel import numeric_axis, parallel_picture


def page_of(folder: Path) -> tuple[Page, str]:
    """The page, and its text with single blanks."""
    page = Page(write_sweep_report(folder).read_text(encoding="utf-8"))
    return page, " ".join(page.text.split())


def pictures_of(page: Page) -> dict[str, Any]:
    """What the page hands to its script, by id."""
    return {picture["id"]: picture for picture in json.loads(page.scripts[2])}


def test_the_page_holds_the_key_facts(tmp_path: Path) -> None:
    folder = online_folder(tmp_path / "my sweep")
    (folder / "recommended.yaml").write_text("kind: online\n")
    (folder / "runs" / "00008" / "report.html").write_text("x")
    page, text = page_of(folder)
    for fact in (
        "Sweep grpo-kl of grpo.yaml · random search with asha",
        "Best reward_after: 1.20 (95% interval 0.69 to 1.71), of 8 configurations",
        "Not clearly the best Not clearly ahead of the runner-up (algorithm.kl_coef = 0.001",
        "24 16 finished, 4 stopped early, 2 unfinished, 2 failed",
        "2 trials unfinished: the sweep is under way, or was ended.",
        "Go on with it: rlhf-ray sweep tune_configs/dpo_beta.yaml --resume",
        "Configurations 8 of 12",
        "1 h 02 min",
        "300 core-s",
        "9.5 GiB",
        "Shared by all trials: rollout, reward.",
        "Each trial has its own reference: rollout.temperature varies, which its actors are made with.",
        "train.learning_rate 4.642e-05",
        shlex.join(["rlhf-ray", "train", str(folder / "recommended.yaml")]),
        "1.10 (0.59 to 1.61) 0.280 67.0 2 of 2 yes finished",
        "stopped early at step 2",
        "failed: reward-0: the reward model could not be read",
        "Trials that were ended early are not in it",
    ):
        assert fact in text, fact
    links = [attributes for tag, attributes in page.tags if tag == "a"]
    assert [(link["href"], link["aria-label"]) for link in links] == [
        ("runs/00008/report.html", "page of trial 8, seed 0")
    ]
    assert list(pictures_of(page)) == ["front", "parallel", "effect-0", "effect-1", "effect-2"]
    assert [spec["id"] for spec in json.loads(page.scripts[1])] == ["curves"]


def test_pictures_have_words_and_tables_have_headers(tmp_path: Path) -> None:
    page, _ = page_of(online_folder(tmp_path))
    assert all("scope" in attributes for tag, attributes in page.tags if tag == "th")
    drawn = {
        attributes["id"]: str(attributes["aria-label"])
        for _, attributes in page.tags
        if attributes.get("role") == "img"
    }
    assert len(drawn) == 6
    assert "algorithm.type = grpo with reward_after 1.2, KL 0.25, length 70" in drawn["plot-front"]
    assert "24 trials. Best: algorithm.kl_coef = 0.03" in drawn["plot-parallel"]
    assert "reward_after by algorithm.type. grpo: 0.580 (" in drawn["plot-effect-2"]
    assert "1: 0.03, 4.642e-05, grpo: 0.200 at first, 1.200 at last." in drawn["plot-curves"]


def test_only_own_scripts_may_run_and_nothing_is_loaded(tmp_path: Path) -> None:
    page, _ = page_of(online_folder(tmp_path))
    policy = next(attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes)
    assert (
        policy is not None
        and policy.startswith("default-src 'none'; script-src 'nonce-")
        and "unsafe-eval" not in policy
    )
    assert all(
        attributes.get("nonce") or attributes.get("type") == "application/json"
        for t, attributes in page.tags
        if t == "script"
    )
    assert not {"link", "iframe", "object", "embed", "base", "img"} & {tag for tag, _ in page.tags}
    assert "parcoords" not in page.scripts[2] + page.scripts[4], "plotly.js compiles its code at run time"


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    space: dict[str, Any] = {HOSTILE: {"type": "choice", "values": [HOSTILE, "b"]}}
    folder = sweep_folder(tmp_path / "x", space, name=HOSTILE, recipe=HOSTILE, command=HOSTILE, seeds=[0])
    for value in (HOSTILE, "b"):
        steps = [{"heldout/accuracy": 0.5}] * 2
        add_trial(folder, {HOSTILE: value}, 0, {"heldout_accuracy": 0.5, "heldout_kl": 0.1}, steps)
    add_trial(folder, {HOSTILE: "c"}, 0, state="failed", error=HOSTILE)
    (folder / "summary.json").write_text(json.dumps({"shared": [HOSTILE], "not_shared": {HOSTILE: HOSTILE}}))
    page, _ = page_of(folder)
    assert len(page.scripts) == 5 and not any(script.startswith("alert") for script in page.scripts)
    assert page.text.count("<script>alert(1)</script>") >= 8 and "{{ 7*7 }}" in page.text
    assert not [attributes for _, attributes in page.tags if any(name.startswith("on") for name in attributes)]
    drawn = json.dumps([picture["data"] for picture in pictures_of(page).values()])
    assert "<script" not in drawn.replace("<br>", "") and "&lt;script&gt;" in drawn, "plotly.js reads tags in texts"
    assert "<img" not in json.dumps(json.loads(page.scripts[1])[0]["panels"])


def test_sweeps_of_which_little_is_there(tmp_path: Path) -> None:
    empty = sweep_folder(tmp_path / "empty")
    page, text = page_of(empty)
    assert "No trial has begun" in text and "Nothing to recommend" in text and not page.scripts
    assert "Not recorded: Total time (seconds), Cost of a trial (core_seconds), Peak memory (peak_rss_gib)." in text
    failed = sweep_folder(tmp_path / "failed")
    add_trial(failed, {"method.beta": 0.1}, state="failed")
    (failed / "runs" / "00001").mkdir()
    _, text = page_of(failed)
    assert "No configuration has finished with all its seeds" in text
    assert "1 trial failed; the table has the reason." in text and "failed: no reason is recorded" in text
    assert "Ended before they began: 00001 in runs." in text
    silent = sweep_folder(tmp_path / "silent", metric="reward_foo")
    for seed in (0, 1):
        add_trial(silent, {"method.beta": 0.1}, seed, {"heldout_loss": 0.3}, [{"train/loss": 0.4}])
    _, text = page_of(silent)
    assert "No trial reported reward_foo" in text and "finished without reward_foo" in text
    assert "in no trial's summary.json or metrics.jsonl. Reported: heldout_loss, step, train/loss." in text
    going = sweep_folder(tmp_path / "going", command="rlhf-ray sweep x.yaml --resume")
    add_trial(going, {"method.beta": 0.1}, steps=[{"heldout/accuracy": 0.5}], state="running")
    _, text = page_of(going)
    assert "No configuration has finished with all its seeds" in text and "0.500 so far" in text
    assert "1 trial unfinished: the sweep is under way, or was ended. " in text and "Go on with it" not in text
    with pytest.raises(UserError, match="holds no sweep"):
        write_sweep_report(tmp_path)


def test_one_parameter_without_kl_has_no_trade_off(tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path)
    add_seeds(folder, 0.1, (0.5, 0.7))
    page, text = page_of(folder)
    assert "Best heldout_accuracy: 0.600 (95% interval \u22120.671 to 1.871) with method.beta = 0.1" in text
    assert "so there is no trade-off to show" in text and "The other parameters" not in text
    assert "There is no recommended.yaml yet" in text and "not reported in more than one step" in text
    assert list(pictures_of(page)) == ["parallel", "effect-0"]


def test_places_on_an_axis() -> None:
    log = numeric_axis("x", [1e-6, 1e-5, None, 1e-4], (1e-6, 1e-4), True, [])
    assert log.places == [pytest.approx(0.0), pytest.approx(0.5), None, pytest.approx(1.0)]
    assert [label for _, label in log.ticks] == [
        "1e\u221206",
        "3.16e\u221206",
        "1e\u221205",
        "3.16e\u221205",
        "0.0001",
    ]
    grid = numeric_axis("x", [0.0, 5.0], (0.0, 10.0), False, [0.0, 0.1, 5.0, 10.0])
    assert grid.places == [0.0, 0.5] and grid.ticks == [(0.0, "0"), (0.5, "5"), (1.0, "10")], "0.1 would cover 0"
    assert numeric_axis("x", [3.0], (3.0, 3.0), False, []).places == [0.5]


def test_trials_are_lines_over_all_axes(tmp_path: Path) -> None:
    """Beta goes from 0.01 to 1, a factor of 100, so it is logarithmic; the loss is good where it is low."""
    space: dict[str, Any] = {
        "method.beta": {"type": "grid", "values": [0.01, 0.1, 1]},
        "method.loss": {"type": "choice", "values": ["never drawn", "sigmoid", "hinge"]},
    }
    folder = sweep_folder(tmp_path, space, metric="heldout_loss", mode="min", seeds=[0])
    for beta, loss, value in ((0.01, "hinge", 0.2), (0.1, "sigmoid", 0.6), (1, "hinge", 0.4)):
        add_trial(folder, {"method.beta": beta, "method.loss": loss}, 0, {"heldout_loss": value})
    add_trial(folder, {"method.beta": 1, "method.loss": "hinge"}, 0, state="failed")
    picture = parallel_picture(read_sweep(folder))
    assert picture is not None
    lines = [(line["places"], line["tone"]) for line in picture.data["lines"]]  # type: ignore[attr-defined]
    assert [tone for _, tone in lines] == [None, pytest.approx(0.0), pytest.approx(0.5), pytest.approx(1.0)]
    assert lines[0][0] == [pytest.approx(1.0), 0.75, None] and lines[1][0] == [
        pytest.approx(0.5),
        0.25,
        pytest.approx(1.0),
    ]
    axes = picture.data["axes"]
    assert axes[1]["ticks"] == [(0.25, "sigmoid"), (0.75, "hinge")]  # type: ignore[index]
    assert axes[2]["name"] == "heldout_loss (low is good)"  # type: ignore[index]


def test_the_front_is_marked_and_sized_by_length(tmp_path: Path) -> None:
    picture = front_picture(read_sweep(online_folder(tmp_path)))
    assert picture is not None and picture.data["joined"] is False
    points: Any = picture.data["points"]
    assert [(point["rank"], point["front"]) for point in points][:4] == [
        ("1", True),
        ("2", True),
        ("3", False),
        ("4", True),
    ]
    assert points[2]["size"] == 26.0 and points[6]["size"] == 9.0, "73 and 40 tokens"
    assert points[0]["text"].endswith("reward_after 1.20 (0.69 to 1.71)<br>KL 0.25 nats per token<br>length 70 tokens")


def test_a_wide_interval_does_not_flatten_the_picture(tmp_path: Path) -> None:
    """Trials lie between 0.5 and 0.7; the intervals over two seeds end at -0.77 and 1.97."""
    folder = sweep_folder(tmp_path)
    add_seeds(folder, 0.1, (0.5, 0.7))
    (picture,) = effect_pictures(read_sweep(folder))
    assert picture.data["range"] == pytest.approx((0.4 - 0.01, 0.8 + 0.01))
    assert picture.data["dots"] == [[0, 0.5], [0, 0.7]] and picture.data["joined"] is True


def test_curves_are_means_over_seeds_and_the_best_have_colours(tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path, metric="heldout_accuracy")
    for number in range(8):
        for seed in (0, 1):
            steps = [{"heldout/accuracy": 0.1 * number + 0.02 * seed}, {"train/loss": 1.0}, {"heldout/accuracy": 0.5}]
            add_trial(folder, {"method.beta": number}, seed, {"heldout_accuracy": 0.1 * number}, steps)
    chart = curve_chart(read_sweep(folder))
    assert chart is not None and chart.title == "heldout/accuracy while training" and "closest" not in chart.note
    best, *others = chart.panels[0].series
    assert (best.name, best.x, best.y) == ("1: 7", [1.0, 3.0], pytest.approx([0.71, 0.5]))
    assert best.band == [pytest.approx((0.7, 0.72)), (0.5, 0.5)]
    assert [line.faint for line in others] == [False] * 5 + [True] * 2
    assert "The first 6 of the table are coloured, the other 2 are grey." in chart.note
    online = curve_chart(read_sweep(online_folder(tmp_path / "online")))
    assert online is not None and "reward_after is measured at the end; this is what comes closest" in online.note
