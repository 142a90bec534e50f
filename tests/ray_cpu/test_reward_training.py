"""Reward training for real: mixed evidence, DeepSpeed and Ray Train, on a preference that is easy to see."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForSequenceClassification

from rlhf_ray.cluster import connected, launch_offline
from rlhf_ray.config import PlacementConfig, RewardModelConfig
from rlhf_ray.errors import UserError
from rlhf_ray.evaluation.reward import EVALUATION_FILE, RewardEvaluation
from rlhf_ray.models.reward.scorer import RewardScorer
from rlhf_ray.models.reward_model import load_stats
from rlhf_ray.models.tiny import tiny_model
from rlhf_ray.preflight import preflight
from rlhf_ray.rundir.lines import read_lines
from rlhf_ray.types import Message

TOPICS = ("sun", "moon", "tree", "house", "cat", "dog", "book", "story", "city", "year")
KIND, RUDE = ("please take my help", "thank you, good question", "happy to help"), ("no, bad question", "go now")


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    with connected(PlacementConfig(), cpus=2):
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


def _rows() -> list[dict[str, Any]]:
    """Pairs, rankings, ratings and thumbs in turn: kind answers are better than rude ones."""
    rows: list[dict[str, Any]] = []
    for i, (verb, topic) in enumerate((v, t) for v in ("explain", "list", "find", "name", "tell") for t in TOPICS):
        prompt, good, bad = f"{verb} the {topic}?", f"{topic}: {KIND[i % 3]}", f"{topic}: {RUDE[i % 2]}"
        rows += [
            [{"prompt": prompt, "chosen": good, "rejected": bad}],
            [{"prompt": prompt, "responses": [bad, good, "no"], "ranks": [2, 1, 2]}],
            [{"prompt": prompt, "response": good, "rating": 5}, {"prompt": prompt, "response": bad, "rating": 1}],
            [{"prompt": prompt, "response": good, "thumb": "up"}, {"prompt": prompt, "response": bad, "thumb": "down"}],
        ][i % 4]
    return rows


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("data") / "kind.jsonl", _rows())


def _write(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def _config(tiny: Path, file: Path, train: dict[str, Any] | None = None, **changes: Any) -> RewardModelConfig:
    base = {
        "name": "toy",
        "model": {"path": str(tiny)},
        "data": {"path": str(file), "heldout_fraction": 0.25, "max_tokens": 64},
        "train": {"epochs": 8, "learning_rate": 3e-3, "cpus_per_worker": 0.5, **(train or {})},
    }
    return RewardModelConfig.model_validate({**base, **changes})


@pytest.mark.parametrize(
    ("workers", "stage", "lora"), [(1, 0, None), (2, 3, {"rank": 8, "alpha": 16})], ids=["full-zero0", "lora-zero3"]
)
def test_learns_from_mixed_evidence_saves_and_reloads(
    tiny: Path, data: Path, tmp_path: Path, workers: int, stage: int, lora: dict[str, int] | None
) -> None:
    train = {"num_workers": workers, "deepspeed": {"zero_stage": stage}}
    run = tmp_path / "run"
    summary = launch_offline(_config(tiny, data, train, num_layers=1, lora=lora), run, False, "test")

    evaluation = RewardEvaluation.model_validate_json((run / EVALUATION_FILE).read_text())
    assert summary["heldout_accuracy"] == evaluation.overall.accuracy and summary["heldout_accuracy"] >= 0.9
    assert {group.name for group in evaluation.by_kind} >= {"pair", "ranking"}
    folder = run / "model"
    stats = load_stats(folder)
    assert stats is not None and stats.max_tokens == 64
    prompt = (Message("user", "explain the sun?"),)
    good, bad = RewardScorer.load(folder).score([(prompt, "sun: happy to help"), (prompt, "sun: go now")])
    assert good > bad
    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    assert {name.split(".")[0] for name in plain.state_dict()} == {"model", "score"}  # adapters are merged
    lines = read_lines(run / "metrics.jsonl")
    assert float(str(lines[-1]["train/loss"])) < float(str(lines[0]["train/loss"]))


def test_a_fault_in_a_worker_reaches_the_caller(tiny: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only 2 layers"):
        launch_offline(_config(tiny, data, num_layers=9), tmp_path / "run", False, "test")
    assert not (tmp_path / "run" / "model").exists()


PAIR = {"prompt": "hello", "chosen": "yes", "rejected": "no"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"prompt": "hi", "chosen": "yes"}, "rejected"),
        ({"prompt": "hi", "chosen": "same", "rejected": "same"}, "same"),
        ({"prompt": "hi", "response": "yes", "rating": 9}, "rating"),
        ({"prompt": "hi", "response": "yes", "rating": float("nan")}, "rating"),
        ({"prompt": "hi", "responses": ["a", "b"], "ranking": [0, 0]}, "ranking"),
        ({"messages": [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]}, "assistant"),
        ({"prompt": "hi", "chosen": "a", "rejected": "b", "score_chosen": 1, "score_rejected": 5}, "score"),
    ],
)
def test_bad_rows_stop_a_run_before_it_starts(tiny: Path, tmp_path: Path, bad: dict[str, Any], message: str) -> None:
    file = _write(tmp_path / "bad.jsonl", [PAIR, {**PAIR, "prompt": "other"}, bad])
    with pytest.raises(UserError, match=r"bad\.jsonl row 3") as error:
        preflight(_config(tiny, file), tmp_path / "run", resume=False)
    assert message in str(error.value)
    lenient = _config(tiny, file, data={"path": str(file), "on_bad_row": "drop", "max_tokens": 64})
    dropped = preflight(lenient, tmp_path / "run", resume=False)
    assert any("1" in note and "row" in note for note in dropped), dropped


def test_only_ties_and_unknown_objectives_are_refused(tiny: Path, tmp_path: Path) -> None:
    ties = [{"prompt": f"p{i}", "response_a": "yes", "response_b": "no", "preference": "tie"} for i in range(4)]
    with pytest.raises(UserError, match="tie"):
        preflight(_config(tiny, _write(tmp_path / "ties.jsonl", ties)), tmp_path / "run", resume=False)
    named = [{**PAIR, "prompt": f"p{i}", "objective": "kindness"} for i in range(4)]
    file = _write(tmp_path / "named.jsonl", named)
    with pytest.raises(UserError, match="kindness"):
        preflight(_config(tiny, file), tmp_path / "run", resume=False)
    preflight(_config(tiny, file, objectives=["kindness", "truth"]), tmp_path / "run", resume=False)
