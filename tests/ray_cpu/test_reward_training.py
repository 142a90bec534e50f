"""Reward training for real: TRL with DeepSpeed in Ray Train on the tiny model, on a preference that is easy to see."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from transformers import AutoModelForSequenceClassification

from rlhf_ray.config import RewardModelConfig
from rlhf_ray.data.preferences import read_preferences, split_by_prompt
from rlhf_ray.errors import UserError
from rlhf_ray.models.reward.scorer import RewardScorer
from rlhf_ray.models.reward_model import load_stats
from rlhf_ray.models.tiny import tiny_model
from rlhf_ray.offline.reward import train_reward_model, wilson_interval

TOPICS = ("sun", "moon", "tree", "house", "cat", "dog", "book", "story", "city", "year")
KIND, RUDE = ("please take my help", "thank you, good question", "happy to help"), ("no, bad question", "go now")


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=True)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("data") / "kind.jsonl"
    rows = [
        {"prompt": f"{verb} the {topic}?", "chosen": f"{topic}: {KIND[i % 3]}", "rejected": f"{topic}: {RUDE[i % 2]}"}
        for i, verb in enumerate(("explain", "list", "find", "name"))
        for topic in TOPICS
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def _config(tiny: Path, data: Path, **changes: object) -> RewardModelConfig:
    base = {
        "name": "toy",
        "model": {"path": str(tiny)},
        "num_layers": 1,
        "data": {"path": str(data), "heldout_fraction": 0.25, "max_tokens": 64},
        "epochs": 8,
        "learning_rate": 3e-3,
    }
    return RewardModelConfig.model_validate({**base, **changes})


@pytest.mark.parametrize(
    ("workers", "stage", "lora"), [(1, 0, None), (2, 3, {"rank": 8, "alpha": 16})], ids=["full-zero0", "lora-zero3"]
)
def test_learns_saves_and_reloads(
    tiny: Path, data: Path, tmp_path: Path, workers: int, stage: int, lora: dict[str, float] | None
) -> None:
    config = _config(
        tiny, data, num_workers=workers, cpus_per_worker=0.5, deepspeed={"zero_stage": stage}, lora=lora
    )
    summary = train_reward_model(config, tmp_path / "run")

    train, heldout = split_by_prompt(read_preferences(data), 0.25, config.seed)
    assert (summary["pairs_train"], summary["pairs_heldout"]) == (len(train), len(heldout)) == (30, 10)
    accuracy = summary["rm_heldout_accuracy"]
    assert isinstance(accuracy, float) and accuracy >= 0.9
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary

    folder = tmp_path / "run" / "model"
    model = RewardScorer.load(folder)
    right = sum(a > b for a, b in (model.score([(p.prompt, p.chosen), (p.prompt, p.rejected)]) for p in heldout))
    assert right == round(accuracy * len(heldout))
    scores = model.score([(p.prompt, answer) for p in train for answer in (p.chosen, p.rejected)])
    mean = sum(scores) / len(scores)
    assert mean == pytest.approx(0, abs=1e-4)
    assert sum((x - mean) ** 2 for x in scores) / len(scores) == pytest.approx(1, abs=1e-3)
    stats = load_stats(folder)
    assert stats is not None and (stats.answers, stats.max_tokens) == (60, 64)

    plain = AutoModelForSequenceClassification.from_pretrained(folder)
    assert {name.split(".")[0] for name in plain.state_dict()} == {"model", "score"}  # adapters are merged
    assert f"{right} of 10 pairs" in (folder / "README.md").read_text()
    assert {"model.safetensors", "chat_template.jinja"} <= {file.name for file in folder.iterdir()}


def test_a_fault_in_a_worker_reaches_the_caller(tiny: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"worker 0.*only 2 layers"):
        train_reward_model(_config(tiny, data, num_layers=9, cpus_per_worker=0.5), tmp_path / "run")
    assert not (tmp_path / "run" / "model").exists()


def test_a_finished_run_is_not_overwritten(tiny: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    with pytest.raises(UserError, match="already holds a model"):
        train_reward_model(_config(tiny, data), tmp_path)


def test_wilson_interval_matches_published_values() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I: 81/263 and 15/148 by the score method without correction.
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson_interval(0, 20)[0] == 0.0
