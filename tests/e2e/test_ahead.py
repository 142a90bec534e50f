"""Rollouts ahead of the learners, and a budget of cost with dynamic sampling: for real, on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray import metrics as names
from rlhf_ray.cluster import connected, launch
from rlhf_ray.config import PlacementConfig, RunConfig
from rlhf_ray.models.tiny import tiny_model
from rlhf_ray.rundir.rollout_table import read_rollouts
from tests.builders import run_config

VOWELS = {"type": "function", "path": "tests.builders:share_of_vowels", "name": "vowels"}
LENGTH = {"type": "function", "path": "tests.e2e.test_ahead:characters", "name": "characters", "cost": True}


def characters(prompt: str, response: str, reference: str | None) -> float:
    """A cost: tens of characters."""
    return len(response) / 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy and 28 prompts, of which four are held out."""
    folder = tmp_path_factory.mktemp("ahead")
    tiny_model(folder / "tiny")
    rows = [{"prompt": f"name number {number}"} for number in range(28)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    with connected(PlacementConfig(), cpus=8):
        yield


def _lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _kinds(run: Path) -> list[str]:
    return [json.loads(line)["kind"] for line in (run / "events.jsonl").read_text().splitlines()]


def _config(folder: Path, steps: int, **changes: Any) -> RunConfig:
    train = {"num_steps": steps, "prompts_per_step": 4, "checkpoint_every": 2, **changes.pop("train", {})}
    rollout = {"samples_per_prompt": 4, "max_new_tokens": 24}
    return run_config(folder / "tiny", folder / "prompts.jsonl", train=train, rollout=rollout, **changes)


def test_a_run_ahead_keeps_its_bound_over_a_resume_and_shows_when_who_computed(folder: Path) -> None:
    ahead = {
        "algorithm": {"type": "grpo", "importance": "token"},
        "placement": {"mode": "separate"},
        "train": {"max_lag": 1, "eval_prompts": 4},
    }
    run = folder / "runs" / "ahead"
    launch(_config(folder, 4, **ahead), run, resume=False, command="tests/e2e")
    launch(_config(folder, 6, **ahead), run, resume=True, command="tests/e2e")
    lines = _lines(run)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    # Nothing was sampled ahead of the first step of a run, or of a resumed one.
    assert [line[names.LAG_MAX] for line in lines] == [0, 1, 1, 1, 0, 1]
    seen: list[str] = []
    for line in lines:
        table = read_rollouts(run / "rollouts" / f"step-{line['step']:06d}.parquet")
        assert len(table) == 16
        for row in table:
            spans = json.loads(str(row["versions"]))
            assert sum(count for _, count in spans) == row["response_tokens"] and spans[0][0] == row["policy_version"]
            assert all(0 <= line["step"] - 1 - version <= 1 for version, _ in spans)
        seen += sorted({str(row["prompt_id"]) for row in table})
    assert len(seen) == len(set(seen)) == 24, "one epoch: every prompt once, also over the resume"
    assert lines[0][names.IMPORTANCE_MEAN] == pytest.approx(1.0, abs=1e-4) and lines[0][names.DRIFT_MEAN] < 1e-3
    assert lines[1][names.IMPORTANCE_MEAN] != pytest.approx(1.0, abs=1e-4), "stale answers are weighed"
    threads = {e["args"]["name"] for e in json.loads((run / "trace.json").read_text())["traceEvents"] if e["ph"] == "M"}
    assert {"rollout", "policy", "reference", "reward", "loop: push"} <= threads
    assert "Timeline of roles" in (run / "report.html").read_text()
    assert _kinds(run) == ["resume"], "what is stale by design is no breach of a sentinel"


def test_constrained_ppo_prices_a_cost_and_dynamic_sampling_fills_the_batch(folder: Path) -> None:
    config = _config(
        folder, 3,
        algorithm={"type": "ppo_lagrangian", "cost_budget": 0.5, "multiplier_rate": 0.2, "old_logprobs": "engine"},
        reward={"sources": [VOWELS, LENGTH, {"type": "overlong", "max_tokens": 24, "buffer": 8}]},
        train={"dynamic_sampling": {}},
    )  # fmt: skip
    run = folder / "runs" / "priced"
    launch(config, run, resume=False, command="tests/e2e")
    lines = _lines(run)
    assert all(line[names.COST_MEAN] > 0.5 and names.REPLACED_PROMPTS in line for line in lines)
    prices = [line[names.MULTIPLIER] for line in lines]
    assert [line[names.REUSED_LOGPROBS] for line in lines] == [0, 1, 1] and _kinds(run) == ["old_logprobs"]
    assert lines[2][names.DRIFT_MEAN] < 1e-3 and names.FIRST_RATIO not in lines[2]
    assert prices[0] == 1.0 and prices == sorted(prices) and prices[-1] > 1.0
    for line in lines:
        table = read_rollouts(run / "rollouts" / f"step-{line['step']:06d}.parquet")
        parts = [json.loads(str(row["breakdown"])) for row in table]
        assert [row["reward"] for row in table] == pytest.approx([one["vowels"] + one["overlong"] for one in parts])
        assert line[names.COST_MEAN] == pytest.approx(sum(one["characters"] for one in parts) / len(parts), rel=1e-5)
