"""Sweeps read from their folders: ranking, front, effects and advice worked out by hand, and broken folders."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sweep_folders import add_seeds, add_trial, online_folder, sweep_folder

from rlhf_ray.errors import UserError
from rlhf_ray.report.sweep import as_json, cells, columns, read_sweep, recommended
from rlhf_ray.report.sweep_ranking import Sweep


def betas(sweep: Sweep) -> list[object]:
    """In the order of the ranking."""
    return [one.values["method.beta"] for one in sweep.configurations]


def sureness(folder: Path) -> str:
    advice = recommended(read_sweep(folder))
    assert advice is not None
    return advice.sureness


def test_configurations_are_ranked_by_their_means(tmp_path: Path) -> None:
    for mode, order in (("max", [0.1, 0.5, 0.01]), ("min", [0.01, 0.5, 0.1])):
        folder = sweep_folder(tmp_path / mode, mode=mode)
        for beta, accuracies in ((0.01, (0.5, 0.6)), (0.1, (0.7, 0.9)), (0.5, (0.6, 0.7))):
            add_seeds(folder, beta, accuracies)
        sweep = read_sweep(folder)
        assert betas(sweep) == order
        best = next(one for one in sweep.configurations if one.values["method.beta"] == 0.1)
        assert best.mean is not None and best.mean.value == pytest.approx(0.8) and best.by_seed == {0: 0.7, 1: 0.9}
        assert best.mean.ci95 == pytest.approx((0.8 - 12.7062 * 0.1, 0.8 + 12.7062 * 0.1), abs=1e-4)


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["complete", "stopped", "failed"]), st.integers(1, 4), st.integers(0, 9))))
def test_the_ranking_is_that_of_pairs(
    tmp_path_factory: pytest.TempPathFactory, told: list[tuple[str, int, int]]
) -> None:
    """Complete before stopped before failed; complete ones by value, stopped ones by step and then by value."""
    folder = sweep_folder(tmp_path_factory.mktemp("ranking"), metric="reward/mean", seeds=[0])
    for beta, (state, steps, value) in enumerate(told):
        word = "finished" if state == "complete" else state
        add_trial(folder, {"method.beta": beta}, steps=[{"reward/mean": value}] * steps, state=word)
    order = [told[int(str(beta))] for beta in betas(read_sweep(folder))]
    for (state, steps, value), (next_state, next_steps, next_value) in itertools.pairwise(order):
        assert ("complete", "stopped", "failed").index(state) <= ("complete", "stopped", "failed").index(next_state)
        if state == next_state == "complete":
            assert value >= next_value
        elif state == next_state:
            assert steps > next_steps or (steps == next_steps and value >= next_value)


def test_what_did_not_finish_comes_last_with_its_reason(tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path, scheduler="asha", space={"method.beta": {"type": "uniform", "low": 0, "high": 1}})
    add_trial(folder, {"method.beta": 0.1}, 0, state="failed", error="reward-0:\nno \x1b memory")
    add_trial(folder, {"method.beta": 0.1}, 1, state="stopped")
    add_seeds(folder, 0.2, (0.6, 0.7))
    add_seeds(folder, 0.3, (0.9,))
    add_trial(folder, {"method.beta": 0.3}, 1, steps=[{"heldout/accuracy": 0.4}] * 3, state="stopped")
    add_trial(folder, {"method.beta": 0.4}, 0, steps=[{"heldout/accuracy": 0.8}, {"train/loss": 1.0}], state="stopped")
    add_trial(folder, {"method.beta": 0.5}, 0, steps=[{"heldout/accuracy": 0.8}], state="running")
    add_trial(folder, {"method.beta": 0.6}, 0, {"heldout_accuracy": None})
    add_trial(folder, {"method.beta": 0.6}, 1, {"heldout_accuracy": 0.9})
    sweep = read_sweep(folder)
    assert not sweep.unreported, "one that finished without the metric is not all of them"
    assert betas(sweep) == [0.2, 0.6, 0.3, 0.4, 0.5, 0.1]
    rows = [dict(zip(columns(sweep), row, strict=True)) for row in cells(sweep)]
    assert [(row["rank"], row["seeds finished"]) for row in rows[:4]] == [
        ("1", "2 of 2"), ("\u2013", "1 of 2"), ("\u2013", "1 of 2"), ("\u2013", "0 of 2"),
    ]  # fmt: skip
    assert [row["state"] for row in rows] == [
        "finished",
        "finished without heldout_accuracy",
        "stopped early at step 3",
        "stopped early at step 2",
        "unfinished at step 1",
        "failed: reward-0: no \x1b memory",
    ]
    assert rows[3]["heldout_accuracy (95 %)"] == "0.800 so far"
    assert rows[0]["heldout_accuracy (95 %)"].startswith("0.650 (0.015 to 1.285)")
    assert "front" not in rows[0] and not [column for column in columns(sweep) if column.startswith("KL")]


def test_a_metric_is_the_summarys_or_the_last_step_that_has_it(tmp_path: Path) -> None:
    steps = [{"kl/k1_per_token": 0.1, "response/length_mean": 9.0, "reward/mean": 1.0}, {"reward/mean": 2.0}, {}]
    folder = sweep_folder(tmp_path, metric="reward/mean", kind="online", seeds=[0])
    add_trial(folder, {"method.beta": 0.1}, steps=steps)
    final = {"reward/mean": 5.0, "kl_to_reference_per_token": 0.3, "length_after": 7.0}
    add_trial(folder, {"method.beta": 0.2}, summary=final, steps=steps)
    first, second = read_sweep(folder).trials
    assert (first.value, first.kl, first.length, first.step) == (2.0, 0.1, 9.0, 3)
    assert (second.value, second.kl, second.length) == (5.0, 0.3, 7.0)
    assert first.curve == [(1.0, 1.0), (2.0, 2.0)]
    assert first.reported == {"step", "kl/k1_per_token", "response/length_mean", "reward/mean"}


def test_of_equal_configurations_that_with_the_lower_kl_is_first(tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path)
    for beta, kl in ((0.01, 0.3), (0.1, 0.1), (0.5, 0.2)):
        add_seeds(folder, beta, (0.7, 0.8), kl)
    assert betas(read_sweep(folder)) == [0.1, 0.5, 0.01]
    assert sureness(folder) == "Equal to the runner-up (method.beta = 0.5)."


def test_a_combination_drawn_twice_is_one_observation(tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path, seeds=[0])
    add_seeds(folder, 0.1, (0.7,))
    add_seeds(folder, 0.1, (0.7,))
    (one,) = read_sweep(folder).configurations
    assert one.mean is not None and (one.mean.value, one.mean.count, one.mean.ci95) == (0.7, 1, None)


def test_kl_is_that_of_trials_that_finished_if_any_did(tmp_path: Path) -> None:
    folder = sweep_folder(tmp_path, kind="online", metric="reward/mean")
    steps = [{"reward/mean": 1.0, "kl/k1_per_token": 0.5}]
    for beta, state in ((0.1, "finished"), (0.5, "stopped")):
        add_trial(folder, {"method.beta": beta}, 0, {"kl_to_reference_per_token": 0.1}, steps, state)
        add_trial(folder, {"method.beta": beta}, 1, None, steps, "stopped")
    kls = {one.values["method.beta"]: one.kl for one in read_sweep(folder).configurations}
    assert kls == {0.1: 0.1, 0.5: pytest.approx(0.3)}


def test_the_front_weighs_metric_kl_and_length(tmp_path: Path) -> None:
    """0.3 is worse than 0.1 in metric and KL; its answers are the shortest. 0.4 is not complete, 0.5 has no KL."""
    found = {}
    for name, with_length in (("short", True), ("unknown", False)):
        folder = sweep_folder(tmp_path / name, kind="online", metric="reward_after", seeds=[0])
        for beta, reward, kl, length in (
            (0.1, 2.0, 0.2, 30),
            (0.2, 1.0, 0.1, 30),
            (0.3, 1.5, 0.3, 20),
            (0.6, 0.5, 0.1, 30),
        ):
            summary = {
                "reward_after": reward,
                "kl_to_reference_per_token": kl,
                **({"length_after": length} if with_length else {}),
            }
            add_trial(folder, {"method.beta": beta}, 0, summary)
        add_trial(
            folder, {"method.beta": 0.4}, 0, {"reward_after": 9.0, "kl_to_reference_per_token": 0.0}, state="running"
        )
        add_trial(folder, {"method.beta": 0.5}, 0, {"reward_after": 9.0, "length_after": 1.0})
        found[name] = [one.values["method.beta"] for one in read_sweep(folder).front]
    assert found == {"short": [0.1, 0.3, 0.2], "unknown": [0.1, 0.2]}


def test_the_recommendation_claims_no_more_than_the_seeds_show(tmp_path: Path) -> None:
    """Differences 0.10, 0.12, 0.14: mean 0.12, s = 0.02, half width 4.3027 * 0.02 / sqrt(3) = 0.0497."""
    three = {"seeds": [0, 1, 2]}
    clear = sweep_folder(tmp_path / "clear", **three)
    for beta, accuracies in ((0.1, (0.80, 0.72, 0.64)), (0.01, (0.70, 0.60, 0.50)), (0.5, (0.1, 0.1, 0.1))):
        add_seeds(clear, beta, accuracies)
    advice = recommended(read_sweep(clear))
    assert advice is not None and (advice.tone, dict(advice.values)) == ("up", {"method.beta": 0.1})
    assert advice.sureness == (
        "Clearly ahead of the runner-up (method.beta = 0.01): +0.12, 95 % interval +0.0703 to +0.17 over 3 seeds."
    )
    low = sweep_folder(tmp_path / "low", **three, mode="min")
    for beta, accuracies in ((0.1, (0.1, 0.3, 0.2)), (0.01, (0.2, 0.2, 0.3)), (0.5, (0.9,))):
        add_seeds(low, beta, accuracies)
    assert sureness(low).startswith(
        "Not clearly ahead of the runner-up (method.beta = 0.01): +0.0333, 95 % interval \u2212"
    )
    assert sureness(low).endswith("which includes zero. Only 2 of 3 configurations finished with all seeds.")


def test_the_recommendation_of_little_evidence_says_so(tmp_path: Path) -> None:
    empty = sweep_folder(tmp_path / "empty")
    assert recommended(read_sweep(empty)) is None
    one = sweep_folder(tmp_path / "one", seeds=[0])
    add_seeds(one, 0.1, (0.8,))
    assert sureness(one) == "No second configuration finished with all seeds, so there is nothing to compare it with."
    add_seeds(one, 0.5, (0.9,))
    assert sureness(one) == (
        "One seed only: +0.1 against the runner-up (method.beta = 0.1) may be noise. "
        "method.beta = 0.5 is at the high end of its range: the optimum may lie beyond."
    )
    alike = sweep_folder(tmp_path / "alike")
    add_seeds(alike, 0.1, (0.9, 0.7))
    add_seeds(alike, 0.5, (0.8, 0.6))
    assert sureness(alike).startswith("+0.1 against the runner-up (method.beta = 0.5) with each of 2 seeds: no noise")
    hostile = sweep_folder(tmp_path / "hostile", {"a\nb": {"type": "choice", "values": ["x\ny", "z"]}}, seeds=[0])
    for value in ("x\ny", "z"):
        add_trial(hostile, {"a\nb": value}, 0, {"heldout_accuracy": 0.5})
    assert "\n" not in sureness(hostile), "it becomes a comment of a YAML file"


@pytest.mark.parametrize(
    ("one", "value", "side"),
    [
        ({"type": "log_uniform", "low": 1e-6, "high": 1e-4}, 1.2e-6, "low"),
        ({"type": "log_uniform", "low": 1e-6, "high": 1e-4}, 5e-6, None),
        ({"type": "uniform", "low": 0.0, "high": 1.0}, 0.96, "high"),
        ({"type": "uniform", "low": 0.0, "high": 1.0}, 0.94, None),
        ({"type": "integer", "low": 1, "high": 4}, 4, "high"),
        ({"type": "integer", "low": 1, "high": 4}, 3, None),
        ({"type": "grid", "values": [3]}, 3, None),
        ({"type": "choice", "values": ["a", "b"]}, "b", None),
        ({"type": "choice", "values": [True, False]}, True, None),
    ],
)
def test_a_best_value_at_the_end_of_its_range_is_said(
    tmp_path: Path, one: dict[str, Any], value: object, side: str | None
) -> None:
    folder = sweep_folder(tmp_path, {"x": one}, seeds=[0])
    add_trial(folder, {"x": value}, 0, {"heldout_accuracy": 0.5})
    assert (f"is at the {side} end of its range" in sureness(folder)) == (side is not None)
    assert ("end of its range" in sureness(folder)) == (side is not None)


def test_what_is_no_sweep_or_broken_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no sweep \(no sweep\.json\); give the folder of one"):
        read_sweep(tmp_path)
    folder = sweep_folder(tmp_path / "s")
    add_seeds(folder, 0.1, (0.5,))
    run = folder / "runs" / "00000"
    good = json.loads((run / "trial.json").read_text())
    for text, words in (
        ("{", "trial.json: "),
        (json.dumps({**good, "state": "asleep"}), "state is asleep, and must be one of finished, stopped"),
        (json.dumps({**good, "values": {}}), "no 'method.beta'"),
        (json.dumps({**good, "values": 3}), "values must be an object"),
    ):
        (run / "trial.json").write_text(text)
        with pytest.raises(
            UserError, match=rf"00000: a file of the trial cannot be read \(.*{words}.*Repair or remove it"
        ):
            read_sweep(folder)
    (run / "trial.json").unlink()
    assert read_sweep(folder).files.unknown == ["00000"] and read_sweep(folder).trials == []
    for changes, words in (
        ({"mode": "best"}, "mode is best, and must be max or min"),
        ({"space": {}}, "space must be an object"),
        ({"space": {"x": 3}}, "space x must be an object"),
        ({"space": {"x": {"type": "uniform", "low": 3}}}, "no 'high'"),
        ({"seeds": []}, "seeds must be a list"),
    ):
        with pytest.raises(UserError, match=rf"s: a file of the sweep cannot be read \(.*{words}.*Repair or remove it"):
            read_sweep(sweep_folder(tmp_path / "s", **changes))
    sweep_folder(folder)
    (folder / "summary.json").write_text("[]")
    with pytest.raises(UserError, match=r"summary\.json is not a JSON object"):
        read_sweep(folder)


def test_the_figures_are_there_for_machines(tmp_path: Path) -> None:
    sweep = read_sweep(online_folder(tmp_path))
    found = json.loads(as_json(sweep))
    assert found["recommended"]["values"] == sweep.configurations[0].values
    assert found["configurations"][0]["mean"]["value"] == pytest.approx(1.2)
    assert [one["front"] for one in found["configurations"][:3]] == [True, True, False]
    assert [len(found[key]) for key in ("configurations", "trials", "effects")] == [12, 24, 3]
    assert found["configurations"][-1]["error"] == "reward-0: the reward model could not be read"
    rate = next(effect for effect in found["effects"] if effect["parameter"] == "train.learning_rate")
    assert 0 < rate["spearman"]["rho"] <= 1 and len(rate["levels"]) == 8
    assert [one["states"]["stopped"] for one in found["configurations"][-4:]] == [2, 2, 0, 0]
    assert found["cost"]["core_seconds"] == 7200.0
