"""The report pages and the live view of runs on fixed data, and of online preference learning."""

from __future__ import annotations

import io
import json
import math
import random
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from rich.console import Console

from rlhf_ray import metrics as m
from rlhf_ray.errors import UserError
from rlhf_ray.evaluation.reward import RewardEvaluation, evaluate_reward_model
from rlhf_ray.evaluation.reward_items import ScoredItem
from rlhf_ray.evidence import Label, Pair, Ranking, Rating, Thumb
from rlhf_ray.report.findings import findings
from rlhf_ray.report.fixed_data import Claim
from rlhf_ray.report.page import write_report
from rlhf_ray.report.progress import TITLES, ProgressView, step_line
from rlhf_ray.rundir.journal import RunDirectory
from rlhf_ray.types import Message
from tests.unit.test_report import HOSTILE, Page

SUMMARY: dict[str, object] = {
    "finished": True,
    "steps": 120,
    "seconds_total": 754.0,
    "peak_rss_gib": 3.2,
    "heldout_accuracy": 0.71,
    "heldout_accuracy_ci95": [0.66, 0.756],
    "heldout_loss": 0.561,
    "items_train": 4100,
    "items_heldout": 512,
    "tokens_per_second": 2140.0,
    "dropped_rows": 0,
}
MANIFEST = {"command": "rlhf-ray train recipe.yaml", "name": "demo"}


def scored_items(seed: int = 0, skill: float = 1.2, length_bias: float = 0.02) -> list[ScoredItem]:
    """Pairs, rankings, ratings and thumbs about answers of known quality, judged by three people and a noisy score."""
    rng = random.Random(seed)

    def answer() -> tuple[float, float, int, float]:
        """Quality, score, tokens, uncertainty."""
        quality, tokens, noise = rng.gauss(0, 1), rng.randint(5, 120), rng.choice((0.2, 1.0, 3.0))
        return quality, skill * quality + length_bias * tokens + rng.gauss(0, noise), tokens, noise

    items = []
    for n in range(400):
        prompt = (Message("user", f"question {n} {HOSTILE}"),)
        annotator = rng.choice(("anna", "ben", HOSTILE[:30]))
        objective = rng.choice(("helpfulness", "harmlessness"))
        label = Label(f"f row {n}", objective, annotator)
        category = rng.choice(("Chat", "Chat Hard", "Safety", "Reasoning"))
        answers = sorted((answer() for _ in range(3)), reverse=True)
        _, scores, lengths, noises = (tuple(column) for column in zip(*answers, strict=True))
        if n % 4 == 0:
            thumb = Thumb(prompt, "one", answers[0][0] + rng.gauss(0, 1) > 0.3, label)
            items.append(ScoredItem(thumb, scores[:1], lengths[:1], noises[:1], category))
        elif n % 4 == 1:
            ranking = Ranking(prompt, ("one", "two", "three"), (1, 2, 3), label)
            items.append(ScoredItem(ranking, scores, lengths, noises, category))
        elif n % 4 == 2:
            for name, (quality, score, tokens, noise) in zip("abc", answers, strict=True):
                rating = Rating(prompt, name, float(round(min(5, max(1, 3 + quality)))), label)
                items.append(ScoredItem(rating, (score,), (tokens,), (noise,), category))
        else:
            names = rng.sample(("one", "two"), 2)
            for who in ("anna", "ben"):
                flip, tie = rng.random() < 0.15, rng.random() < 0.1
                order = (1, 0) if flip else (0, 1)
                texts = tuple(names[i] for i in order)
                pair = Pair(prompt, texts[0], texts[1], Label(f"f row {n}", objective, who), tie=tie)
                chosen = [tuple(values[i] for i in order) for values in (scores, lengths, noises)]
                items.append(ScoredItem(pair, chosen[0], chosen[1], chosen[2], category))
    return items


@cache
def evaluated(length_bias: float = 0.02) -> RewardEvaluation:
    return evaluate_reward_model(scored_items(length_bias=length_bias), 0)


def curves(run: RunDirectory, kind: str, steps: int = 120) -> None:
    """Plausible metrics of a run of `kind`."""
    rng = random.Random(1)
    for step in range(1, steps + 1):
        done = 1 - math.exp(-step / 30)
        values = {
            m.TRAIN_LOSS: 0.7 - 0.25 * done + rng.gauss(0, 0.03),
            m.TRAIN_GRAD_NORM: 1.5 + rng.random(),
            m.LEARNING_RATE: 5e-5 * (1 + math.cos(math.pi * step / steps)) / 2,
            m.TOKENS_PER_SECOND: 2100 + rng.gauss(0, 90),
        }
        if kind == "sft":
            values[m.TOKEN_ACCURACY] = 0.45 + 0.2 * done + rng.gauss(0, 0.01)
        else:
            values |= {m.TRAIN_ACCURACY: min(1.0, 0.5 + 0.25 * done + rng.gauss(0, 0.05)), m.TRAIN_MARGIN: 1.3 * done}
        if kind == "preference":
            values |= {m.CHOSEN_REWARD: -0.4 * done, m.REJECTED_REWARD: -1.7 * done, m.BETA_TARGET_KL: 5.0}
            values |= {m.BETA: 0.05 + 0.1 * done, m.BETA_KL: 5 + 4 * math.exp(-step / 20) - 5 * math.exp(-step / 6)}
            values[m.REWARD_GAP] = 10 * done
        if step % 20 == 0:
            values[m.HELDOUT_LOSS] = 0.69 - 0.13 * done
            if kind != "sft":
                values |= {m.HELDOUT_ACCURACY: 0.5 + 0.2 * done, m.HELDOUT_MARGIN: done}
        run.metrics(step, values)


def fake_run(folder: Path, kind: str, config: str = "", **summary: object) -> RunDirectory:
    run = RunDirectory.create(folder, f"kind: {kind}\nname: demo\n{config}", MANIFEST)
    curves(run, kind)
    run.event("early_stop", f"The held-out loss rose {HOSTILE}", step=120)
    run.summary(SUMMARY | {"kind": kind} | summary)
    run.close()
    return run


def reward_run(folder: Path) -> RunDirectory:
    run = fake_run(folder, "reward", model_dir="runs/demo/model", dropped_rows=17)
    (folder / "evaluation.json").write_text(evaluated().model_dump_json())
    return run


def adaptive_run(folder: Path) -> RunDirectory:
    config = "method:\n  type: dpo\n  adaptive_beta: {type: kl, target_kl: 5.0}\n"
    return fake_run(
        folder, "preference", config, pairs_train=900, policy_dir="p", beta_last=0.149, kl_last=5.6, kl_target=5.0
    )


def words(page: Page) -> str:
    return " ".join(page.text.split())


def specs(page: Page) -> dict[str, dict[str, object]]:
    found = json.loads(next(script for script in page.scripts if script.startswith("[{")))
    return {spec["id"]: spec for spec in found}


@pytest.fixture(scope="module", autouse=True)
def _short_library() -> Iterator[None]:
    """Pages without the 5 MB of plotly.js, which take a second to parse; test_report.py has the real ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("plotly.offline.get_plotlyjs", lambda: "/* plotly.js */")
        yield


@pytest.fixture(scope="module")
def reward_page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write_report(reward_run(tmp_path_factory.mktemp("reward") / "demo").path).read_text("utf-8"))


def test_the_reward_page_shows_the_evaluation(reward_page: Page) -> None:
    text = words(reward_page)
    found = evaluated()
    assert found.overall.accuracy is not None and found.overall.ci95 is not None and found.pair_calibration is not None
    low, high = (f"{100 * end:.1f}%" for end in found.overall.ci95)
    accuracy = f"{100 * found.overall.accuracy:.1f}%"
    for fact in (
        f"The reward model agrees with people on {accuracy} of held-out comparisons (95% interval {low} to {high}; "
        "chance is 50%)",
        "The 95% interval lies above chance",
        f"{found.overall.decisions} comparisons on {found.overall.prompts} prompts not trained on",
        "Dropped rows 17",
        "4,100 512 held out",
        "12 min 34 s wall clock, 120 training steps",
        "By kind of feedback",
        "By objective",
        "harmlessness",
        "By category Mean over categories",
        "Chat Hard",
        "Longer answers get higher scores (Pearson +0.",
        "without what length explains",
        "Krippendorff's alpha of comparisons: ",
        "rankings within prompts",
        "The model is more often right where its members agree",
        f"Expected calibration error {100 * found.pair_calibration.ece:.1f}%",
        "runs/demo/model",
        "The held-out loss rose",
    ):
        assert fact in text, fact
    assert "Not recorded" not in text and "it has no" not in text


def test_the_reward_page_draws_curves_reliability_and_length(reward_page: Page) -> None:
    charts = specs(reward_page)
    assert list(charts) == [
        *("loss", "accuracy", "margin", "speed", "optimizer"),
        *("reliability-pairs", "reliability-thumbs", "length-scatter"),
    ]
    plots = [attributes for _, attributes in reward_page.tags if attributes.get("role") == "img"]
    assert [str(plot["id"]).removeprefix("plot-") for plot in plots if plot["id"] != ""] == list(charts)
    assert all(len(str(plot["aria-label"])) > 40 for plot in plots)
    loss = charts["loss"]["panels"][0]["series"]  # type: ignore[index]
    assert [series["name"] for series in loss] == ["training", "held-out"]
    assert loss[1]["x"] == [20, 40, 60, 80, 100, 120]  # where it was measured, so that the line is not broken
    bins = charts["reliability-pairs"]["panels"][0]["series"][1]  # type: ignore[index]
    assert all(low <= y <= high for y, (low, high) in zip(bins["y"], bins["ends"], strict=True))


def test_hostile_text_stays_text_there_too(reward_page: Page) -> None:
    assert len(reward_page.scripts) == 3 and "img" not in [tag for tag, _ in reward_page.tags]
    assert not [a for _, attributes in reward_page.tags for a in attributes if a.startswith("on")]
    assert HOSTILE[:30] in reward_page.text
    assert all("scope" in attributes for tag, attributes in reward_page.tags if tag == "th")


def test_a_reward_run_without_evaluation_says_so(tmp_path: Path) -> None:
    text = words(Page(write_report(fake_run(tmp_path / "run", "reward").path).read_text("utf-8")))
    assert "it has no evaluation.json" in text and "Calibration, length bias (evaluation.json)" in text
    assert "agrees with people on 71.0% of held-out comparisons (95% interval 66.0% to 75.6%; chance is 50%" in text


def test_a_broken_evaluation_is_named(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", "reward")
    (run.path / "evaluation.json").write_text('{"items": "many"}')
    with pytest.raises(UserError, match=r"evaluation\.json: items"):
        write_report(run.path)
    (run.path / "config.yaml").write_text("kind: rewards\n")
    with pytest.raises(UserError, match="kind = rewards is none of online, reward"):
        write_report(run.path)


def test_the_fine_tuning_page_states_numbers_and_claims_nothing(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", "sft", policy_dir="runs/demo/policy", finished=False)
    page = Page(write_report(run.path).read_text("utf-8"))
    text = words(page)
    assert "Held-out loss went from 0.627 at step 20 to 0.561" in text and "One number, without an interval" in text
    assert "Held-out perplexity 1.75" in text and "This run stopped before its end, after 120 steps." in text
    assert "Token accuracy 6" in text and "On held-out data" not in text and "Answers before and after" not in text
    assert list(specs(page)) == ["loss", "token-accuracy", "speed", "optimizer"]


def test_the_preference_page_shows_beta_against_its_target(tmp_path: Path) -> None:
    page = Page(write_report(adaptive_run(tmp_path / "run").path).read_text("utf-8"))
    text = words(page)
    assert "The policy prefers the chosen answer in 71.0% of held-out pairs (95% interval 66.0% to 75.6%" in text
    assert "KL against target 5.60 / 5.00 nats per answer, 12% above" in text and "Beta at the end 0.1490" in text
    assert "Training pairs 900" in text
    charts = specs(page)
    assert list(charts) == ["loss", "accuracy", "margin", "rewards", "beta", "speed", "optimizer"]
    lines = charts["beta"]["panels"][0]["series"]  # type: ignore[index]
    assert [(line["name"], line["dashed"]) for line in lines] == [("measured, smoothed", False), ("target", True)]


def test_what_an_adaptive_run_lacks_is_named_and_a_fixed_one_lacks_nothing(tmp_path: Path) -> None:
    run = adaptive_run(tmp_path / "run")
    (run.path / "summary.json").write_text("{}")
    text = words(Page(write_report(run.path).read_text("utf-8")))
    assert "No held-out result yet: 120 training steps recorded" in text
    for name in ("beta_last", "kl_last, kl_target", "heldout_accuracy", "items_train", "tokens_per_second"):
        assert name in text.split("Not recorded:")[1].split("Curves")[0], name
    fixed = fake_run(tmp_path / "fixed", "preference", "method: {type: dpo, beta: 0.1}\n")
    text = words(Page(write_report(fixed.path).read_text("utf-8")))
    assert "Beta at the end" not in text and "Not recorded" not in text


def test_online_preference_learning_gets_its_charts(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", "name: demo\n", MANIFEST)
    for step in (1, 2):
        run.metrics(step, {m.REWARD_MEAN: 0.1 * step, m.TRAIN_ACCURACY: 0.5, m.TRAIN_MARGIN: 0.1, m.BETA: 0.1})
    run.close()
    page = Page(write_report(run.path).read_text("utf-8"))
    assert list(specs(page)) == ["reward", "accuracy", "margin", "beta"]
    assert "No held-out result yet: 2 training steps recorded" in words(page)


def test_a_claim_needs_its_interval() -> None:
    sentence = "The model is right in {} of pairs"
    assert Claim(0.6, (0.55, 0.65), sentence).verdict.tone == "up"
    around = Claim(0.52, (0.48, 0.56), sentence)
    assert around.verdict.tone == "same" and around.headline == (
        "Not clearly better than chance: the model is right in 52.0% of pairs (95% interval 48.0% to 56.0%; chance "
        "is 50%)"
    )
    below = Claim(0.4, (0.35, 0.45), sentence)
    assert below.verdict.tone == "down" and below.headline.startswith("Worse than chance: the model is right in 40.0%")
    assert Claim(0.9, None, sentence).headline == "The model is right in 90.0% of pairs (the interval is not known)"
    thumbs = Claim(0.8, (0.75, 0.85), sentence, 0.8, "the commoner thumb")
    assert thumbs.headline.startswith("Not clearly better than the commoner thumb")


def test_findings_claim_no_bias_where_there_is_none() -> None:
    def texts(evaluation: RewardEvaluation) -> dict[str, str]:
        return {finding.id: finding.text for finding in findings(evaluation)}

    fair = texts(evaluated(length_bias=0.0))
    assert fair["length"].startswith("No clear correlation of score and length")
    assert "not clearly" in fair["length"]
    assert evaluated().length is not None
    for pearson in (0.1, -0.1):
        length = evaluated().length.model_copy(
            update={"pearson": pearson, "pearson_ci95": (pearson - 0.2, pearson + 0.2)}
        )
        unclear = texts(evaluated().model_copy(update={"length": length}))
        assert unclear["length"].startswith("No clear correlation")
    against = texts(evaluated(length_bias=-0.04))
    assert against["length"].startswith("Longer answers get lower scores")
    thumbs = evaluate_reward_model([item for item in scored_items() if isinstance(item.evidence, Thumb)], 0)
    assert [finding.id for finding in findings(thumbs)] == [
        *("kinds", "categories", "objectives", "calibration-thumbs", "annotators", "certainty"),
    ]


def test_the_live_view_of_fixed_data() -> None:
    values = {"step": 3.0, m.TRAIN_LOSS: 0.6123, m.TRAIN_ACCURACY: 0.66, m.TRAIN_MARGIN: 0.321, m.BETA: 0.1}
    values |= {m.BETA_KL: 3.21, m.TOKENS_PER_SECOND: 1234.0}
    line = "step 3/9  loss 0.612  accuracy 66%  margin 0.32  beta 0.100  kl 3.21  1,234 tokens/s"
    assert step_line(values, 9) == line
    held = step_line({"step": 4.0, m.TRAIN_LOSS: 1.0, m.TOKEN_ACCURACY: 0.5, m.HELDOUT_LOSS: 1.25}, 9)
    assert held == "step 4/9  loss 1.000  token accuracy 50%  held-out loss 1.250"

    assert step_line({"step": 4.0, m.TRAIN_LOSS: 1.0}, 0) == "step 4  loss 1.000"  # nobody knows how many there will be
    with ProgressView(0, "x", Console(file=io.StringIO(), force_terminal=True, width=100)) as view:
        view.update([{"type": "metrics", **values}])
        assert "step 3   " in dashboard(view)

    view = ProgressView(9, TITLES["reward"], Console(file=io.StringIO(), force_terminal=True, width=100))
    with view:
        assert "now  starting" in dashboard(view)
        view.update([{"type": "metrics", **values, m.HELDOUT_LOSS: 0.5}, {"type": "metrics", **values, "step": 4}])
        shown = dashboard(view)
    assert "Reward model  step 4 of 9" in shown and "now  training" in shown and "seconds" not in shown
    rows = {line.split("  ")[0].strip(): line.split() for line in shown.splitlines()}
    assert rows["held-out loss"][2:] == ["0.5000", "0.5000", "="]  # measured a step ago, and still there
    assert rows["accuracy (pairs)"][2:] == ["66.0%", "66.0%", "="] and rows["tokens a second"][3] == "1,234"


def dashboard(view: ProgressView) -> str:
    console = Console(file=io.StringIO(), width=100, record=True)
    console.print(view._dashboard())
    return console.export_text()
