"""The report page: its facts, its honesty, its safety, and what it does when files are missing."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from rlhf_ray.errors import UserError
from rlhf_ray.report.answers import choose
from rlhf_ray.report.facts import duration
from rlhf_ray.report.online import headline, tiles
from rlhf_ray.report.page import write_report
from rlhf_ray.rundir.journal import RunDirectory
from rlhf_ray.types import Message, Prompt, Rollout, Score

HOSTILE = "<script>alert(1)</script></script><img src=x onerror=alert(2)>\"'{{ 7*7 }}"
SUMMARY: dict[str, object] = {
    "reward_before": 0.12,
    "reward_after": 1.35,
    "reward_gain": 1.23,
    "reward_gain_ci95": [1.01, 1.44],
    "kl_to_reference_per_token": 0.213,
    "rm_heldout_accuracy": 0.87,
    "steps": 3,
    "rollouts": 384,
    "seconds_total": 502.3,
    "seconds_by_phase": {"generate": 75.0, "update": 25.0},
    "peak_rss_gib": 9.37,
    "policy_dir": "runs/x/policy",
    "perplexity_before": 4.6,
    "perplexity_after": 5.1,
    "distinct2_before": 0.71,
    "distinct2_after": 0.82,
}


class Page(HTMLParser):
    """Elements with their attributes, the scripts, and the visible text."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self._inside = ""
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts.append(data)
        elif self._inside != "style":
            self.text += f" {data}"


def rollout(index: int, reward: float | None, text: str) -> Rollout:
    score = None if reward is None else Score(reward, {"rm": reward})
    prompt = Prompt(f"p{index}", (Message("system", HOSTILE), Message("user", f"Question {index} {HOSTILE}")), (1,))
    return Rollout(prompt, 0, (1, 2), (-1.0, -1.0), text, "length" if index % 2 else "stop", 0, score)


def fake_run(folder: Path) -> RunDirectory:
    run = RunDirectory.create(folder, f"name: {HOSTILE}\n", {"command": "rlhf-ray train x.yaml seed=1"})
    for step in (1, 2, 3):
        metrics = {"reward/mean": step / 3, "reward/std": 0.1, "kl/k1_per_token": 0.01 * step, "time/generate": 2.0}
        run.metrics(step, metrics)
    run.event("sentinel", f"the drift rose {HOSTILE}", step=2, where=HOSTILE)
    run.evaluation("before", [rollout(i, 0.1 * i, f"old answer {i} {HOSTILE}") for i in range(20)])
    run.evaluation("after", [rollout(i, 0.2 * i, f"new answer {i}") for i in range(20)])
    run.summary(SUMMARY)
    run.close()
    return run


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    run = fake_run(tmp_path_factory.mktemp("report") / HOSTILE.replace("/", "-")[:40])
    path = write_report(run.path)
    assert path == run.path / "report.html"
    return path.read_text(encoding="utf-8")


def test_the_page_holds_the_key_facts(source: str) -> None:
    text = " ".join(Page(source).text.split())
    for fact in (
        "Held-out reward rose from 0.12 to 1.35 (+1.23, 95% interval 1.01 to 1.44)",
        "Paired bootstrap over 20 held-out prompts",
        "KL to reference 0.213",
        "87%",
        "384",
        "8 min 22 s",
        "9.4 GiB",
        "4.6 → 5.1",
        "0.71 → 0.82",
        "rlhf-ray train x.yaml seed=1",
        "generate 1 min 15 s (75.0%)",
        "runs/x/policy",
        "new answer 19",
        "cut off",
        "Not recorded: Cut-off answers (truncated_before, truncated_after), Answer length",
        "versions.torch",
    ):
        assert fact in text, fact
    specs = json.loads(next(script for script in Page(source).scripts if script.startswith("[{")))
    assert [spec["id"] for spec in specs] == ["reward", "heldout", "kl", "time"]
    assert specs[0]["panels"][0]["series"][0]["y"] == pytest.approx([1 / 3, 2 / 3, 1.0])


def test_hostile_text_stays_text(source: str) -> None:
    page = Page(source)
    assert len(page.scripts) == 3 and not any(script.startswith("alert") for script in page.scripts)
    assert "alert(1)" not in page.scripts[0] + page.scripts[2]
    assert not [attributes for _, attributes in page.tags if any(name.startswith("on") for name in attributes)]
    assert "img" not in [tag for tag, _ in page.tags]
    assert page.text.count("<script>alert(1)</script>") >= 12 + 12 + 1
    assert "{{ 7*7 }}" in page.text


def test_nothing_is_loaded_and_only_own_scripts_may_run(source: str) -> None:
    page = Page(source)
    assert not {"link", "iframe", "object", "embed", "base", "a"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not {"src", "href", "srcset", "action"} & attributes.keys(), tag
        if tag == "script":
            assert attributes.get("nonce") or attributes.get("type") == "application/json"
    style = source[source.index("<style>") : source.index("</style>")]
    assert "http" not in style and "url(" not in style and "@import" not in style
    policy = next(attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes)
    assert policy is not None and policy.startswith("default-src 'none'; script-src 'nonce-")


def test_tables_have_headers_and_pictures_have_words(source: str) -> None:
    tags = Page(source).tags
    assert all("scope" in attributes for tag, attributes in tags if tag == "th")
    plots = [attributes for _, attributes in tags if attributes.get("role") == "img"]
    assert len(plots) == 4
    assert "Mean reward: 0.333 at first, 1.000 at last." in str(plots[0]["aria-label"])


@pytest.mark.parametrize("keep", ["config.yaml", "metrics.jsonl", "summary.json"])
def test_a_run_with_one_file_says_what_is_missing(tmp_path: Path, keep: str) -> None:
    run = fake_run(tmp_path / "full")
    lonely = tmp_path / "lonely"
    lonely.mkdir()
    (lonely / keep).write_bytes((run.path / keep).read_bytes())
    text = " ".join(Page(write_report(lonely).read_text(encoding="utf-8")).text.split())
    assert "not finished, or did not finish: it has no" in text
    assert "eval/before.parquet" in text and f" {keep}" not in text.split("The page shows")[0].split("it has no")[1]
    if keep == "metrics.jsonl":
        assert "No held-out result yet: 3 training steps recorded" in text
        assert "Not recorded: Held-out gain (reward_gain)" in text


def test_a_finished_run_without_heldout_prompts_is_finished(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    config = yaml.safe_load((run.path / "config.yaml").read_text())
    config.setdefault("train", {})["eval_prompts"] = 0
    (run.path / "config.yaml").write_text(yaml.safe_dump(config))
    kept = {key: value for key, value in SUMMARY.items() if not key.startswith("reward_")}
    (run.path / "summary.json").write_text(json.dumps({**kept, "finished": True}))
    for answers in (run.path / "eval").iterdir():
        answers.unlink()
    text = " ".join(Page(write_report(run.path).read_text(encoding="utf-8")).text.split())
    assert "3 training steps done; no held-out prompts were asked for (train.eval_prompts = 0)" in text
    assert "Not measured on held-out prompts" in text and "not finished" not in text


def test_a_torn_line_is_survived_and_a_broken_file_is_named(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run")
    with (run.path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4')
    write_report(run.path)
    (run.path / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary\.json"):
        write_report(run.path)
    with pytest.raises(UserError, match="not a run directory"):
        write_report(tmp_path)


def test_the_headline_claims_no_more_than_the_interval() -> None:
    same = SUMMARY | {"reward_gain_ci95": [-0.1, 2.5]}
    assert headline(same, 3).startswith("No clear change in held-out reward: from 0.12 to 1.35 (+1.23, 95% interval")
    assert "\u22120.10 to 2.50, which includes zero" in headline(same, 3)
    worse = SUMMARY | {"reward_after": -1.0, "reward_gain": -1.12, "reward_gain_ci95": [-1.5, -0.8]}
    assert headline(worse, 3).startswith("Held-out reward fell from 0.12 to \u22121.00 (\u22121.12, 95% interval")
    unknown = {key: value for key, value in SUMMARY.items() if key != "reward_gain_ci95"}
    assert headline(unknown, 3) == "Held-out reward went from 0.12 to 1.35 (+1.23; the interval is not known)"
    assert headline(SUMMARY | {"reward_after": None}, 1) == "No held-out result yet: 1 training step recorded"
    assert len(tiles({}, 0)[0]) == 0 and len(tiles({}, 0)[1]) == 10


def test_the_shown_answers_are_chosen_by_rank_without_repeats() -> None:
    def row(index: int, reward: float) -> dict[str, object]:
        base = {"prompt_id": f"p{index}", "sample_index": 0, "prompt": str(index), "messages": "[]", "error": None}
        return base | {"response": "x", "reward": reward, "response_tokens": 1, "finish_reason": "stop"}

    for count in (1, 2, 3, 5, 11, 12, 13, 40):
        groups = choose([row(i, 0.0) for i in range(count)], [row(i, float(i)) for i in range(count)])
        shown = [int(pair.prompt) for _, pairs in groups for pair in pairs]
        assert shown == sorted(set(shown), reverse=True)
        assert shown[0] == count - 1 and shown[-1] == 0 and len(shown) == min(count, 12)
    middle = [int(pair.prompt) for pair in groups[1][1]]
    assert middle == [21, 20, 19, 18]


def test_durations_read_well() -> None:
    assert [duration(s) for s in (3.21, 42.4, 59.6, 425, 3600 * 3 + 725)] == [
        "3.2 s",
        "42 s",
        "60 s",
        "7 min 05 s",
        "3 h 12 min",
    ]
