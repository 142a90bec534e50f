"""The commands of docs/compare.md on a tiny model: two methods, made by Ray, Ray Train, DeepSpeed and vLLM for real."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.cli.main import main
from rlhf_ray.models.tiny import tiny_model
from rlhf_ray.rundir.lines import read_lines
from rlhf_ray.rundir.rollout_table import read_rollouts

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "compare.md"
WORDS = ("sun", "moon", "tree", "house", "cat", "dog", "book", "story")
NAMES = ("grpo", "online_dpo")


def _commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    lines = [shlex.split(line) for block in blocks for line in block.splitlines() if line.strip()]
    assert all(program == "rlhf-ray" for program, *_ in lines)
    return [words for _, *words in lines]


def _smaller(words: list[str], folder: Path) -> list[str]:
    """The same command with two algorithms and one seed, on a tiny model, for two steps."""
    for option, value in (("--algorithms", "grpo,dpo"), ("--seeds", "1")):
        words[words.index(option) + 1] = value
    return [
        *words, "--set", f"model.path={folder / 'tiny'}", f"prompts.path={folder / 'prompts.jsonl'}",
        "reward.sources=[{type: function, path: 'tests.builders:share_of_vowels'}]", "policy.learning_rate=1e-3",
        "rollout.max_new_tokens=12", "train.prompts_per_step=4", "train.num_steps=2", "train.checkpoint_every=2",
        "train.eval_prompts=6",
    ]  # fmt: skip


def _answers(run: Path, table: str) -> list[dict[str, object]]:
    return read_rollouts(run / table)


def test_the_commands_of_the_guide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_model(tmp_path / "tiny")
    rows = [{"prompt": f"{verb} {word}"} for verb in ("name", "find") for word in WORDS]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for the reward function, in the actors
    from_recipe, of_runs = _commands()
    from_recipe = _smaller(from_recipe, tmp_path)
    assert main(from_recipe) == 0
    out = Path("runs", "methods")
    runs = [out / f"{name}-seed0" for name in NAMES]
    found = json.loads((out / "comparison.json").read_text())
    _check_equal_terms(runs)
    _check_figures(found, runs)
    page = (out / "comparison.html").read_text()
    assert "plotly" in page.lower() and "Answers to the same held-out prompts" in page

    finished = [(run / "summary.json").stat().st_mtime_ns for run in runs]
    capsys.readouterr()
    assert main(from_recipe) == 0
    assert "2 runs, 2 of them finished already" in capsys.readouterr().err
    assert [(run / "summary.json").stat().st_mtime_ns for run in runs] == finished

    assert main(of_runs) == 0
    assert json.loads(Path("runs", "two", "comparison.json").read_text())["methods"] == found["methods"]


def _check_equal_terms(runs: list[Path]) -> None:
    """Prompts, their order, the number of rollouts, and the untrained policy that both began with."""
    asked = [
        [[row["prompt"] for row in _answers(run, f"rollouts/step-00000{step}.parquet")] for step in (1, 2)]
        for run in runs
    ]
    assert asked[0] == asked[1] and [len(step) for step in asked[0]] == [8, 8]
    first = [[row["response"] for row in _answers(run, "rollouts/step-000001.parquet")] for run in runs]
    before = [[row["response"] for row in _answers(run, "eval/before.parquet")] for run in runs]
    assert first[0] == first[1] and before[0] == before[1], "the same seeds and weights, the same answers"
    after = [[row["response"] for row in _answers(run, "eval/after.parquet")] for run in runs]
    assert after[0] != after[1], "the methods learn differently"


def _check_figures(found: dict[str, Any], runs: list[Path]) -> None:
    rewards = [[float(str(row["reward"])) for row in _answers(run, "eval/after.parquet")] for run in runs]
    texts = [[row["response"] for row in _answers(run, "eval/after.parquet")] for run in runs]
    wins = [
        0.5 if same or mine == theirs else float(mine > theirs)
        for mine, theirs, same in zip(rewards[1], rewards[0], map(str.__eq__, *texts), strict=True)
    ]
    assert found["heldout_prompts"] == 6 and found["baseline"] == "grpo"
    for figures, name, run in zip(found["methods"], NAMES, runs, strict=True):
        summary = json.loads((run / "summary.json").read_text())
        lines = read_lines(run / "metrics.jsonl")
        assert (figures["label"], figures["seeds"], figures["rollouts"]) == (name, [0], 16)
        assert figures["gain"]["value"] == pytest.approx(summary["reward_gain"])
        assert figures["kl_per_token"] == summary["kl_to_reference_per_token"]
        assert figures["tokens"] == sum(float(str(line["throughput/response_tokens"])) for line in lines)
        assert 0 < figures["seconds"] < summary["seconds_total"]
    assert found["methods"][1]["win_rate"]["value"] == pytest.approx(sum(wins) / len(wins))
