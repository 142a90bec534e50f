"""Every recipe of a run on fixed data, a few real steps of it: Ray Train, DeepSpeed and TRL, on tiny models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from rlhf_ray import metrics as names
from rlhf_ray.cluster import launch_offline
from rlhf_ray.config import RewardModelConfig, RunConfig, SFTConfig
from rlhf_ray.config_file import RECIPES, load_config
from rlhf_ray.data.synthetic import create_preference_data
from rlhf_ray.evaluation.reward import EVALUATION_FILE, RewardEvaluation
from rlhf_ray.models.reward.scorer import RewardScorer
from rlhf_ray.models.reward_model import load_stats
from rlhf_ray.models.tiny import tiny_encoder, tiny_model
from rlhf_ray.rundir.commit import verify
from rlhf_ray.rundir.lines import read_lines
from rlhf_ray.types import Message
from tests.warm_group import warm_group

OBJECTIVES = ["helpfulness", "honesty", "courtesy"]


def _offline_recipes() -> list[str]:
    files = sorted(RECIPES.glob("*.yaml"))
    return [file.name for file in files if not isinstance(load_config(file), RunConfig)]


@pytest.fixture(scope="module", autouse=True)
def _ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with warm_group(tmp_path_factory.mktemp("group")):
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    return {"smollm2-135m": tiny_model(folder / "decoder"), "minilm-l6": tiny_encoder(folder / "encoder")}


@pytest.fixture(scope="module")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ratings by objective, and pairs that name none, which train the gate."""
    rows = create_preference_data(24, kind="ratings", objectives=OBJECTIVES, seed=1)
    rows += create_preference_data(24, kind="pairs", seed=2)
    file = tmp_path_factory.mktemp("data") / "ratings.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("recipe", _offline_recipes())
def test_recipe(recipe: str, models: dict[str, Path], ratings: Path, tmp_path: Path) -> None:
    asked = load_config(recipe)
    path = ratings if asked.data.path == "ratings.jsonl" else "demo"  # type: ignore[union-attr]  # no online run here
    overrides = [f"model.path={models[asked.model.path]}", f"data.path={path}", "train.max_steps=2"]
    overrides += ["data.max_tokens=120", "train.batch_size=4", "train.cpus_per_worker=0.5", "train.eval_every=2"]
    overrides += ["data.limit=60"] if path == "demo" else [f"objectives=[{','.join(OBJECTIVES)}]"]
    overrides += ["num_layers=1"] if isinstance(asked, RewardModelConfig) and asked.num_layers else []
    config = load_config(recipe, overrides)
    assert not isinstance(config, RunConfig)
    run = tmp_path / "run"
    summary = launch_offline(config, run, False, "test")

    assert summary["finished"] and summary["steps"] == 2
    assert summary["heldout_loss"] == summary["heldout_loss"] and (run / "report.html").is_file()
    lines = read_lines(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2], "a line a step, with the evaluation in the last"
    assert all({names.TRAIN_LOSS, names.TRAIN_GRAD_NORM, names.TOKENS_PER_SECOND} <= line.keys() for line in lines)
    assert not verify(run / "checkpoints" / "step-000002")
    if isinstance(config, RewardModelConfig):
        folder = Path(str(summary["model_dir"]))
        hello = (Message("user", "hello"),)
        scores = RewardScorer.load(folder).score([(hello, "yes"), (hello, "no")])
        assert all(abs(score) < 1e3 for score in scores) and load_stats(folder) is not None
        evaluation = RewardEvaluation.model_validate_json((run / EVALUATION_FILE).read_text())
        assert evaluation.items == summary["items_heldout"]
    else:
        AutoModelForCausalLM.from_pretrained(summary["policy_dir"])
        if not isinstance(config, SFTConfig):
            low, high = summary["heldout_accuracy_ci95"]
            assert low <= summary["heldout_accuracy"] <= high
    if recipe == "dpo_adaptive.yaml":
        assert names.BETA_KL in lines[-1] and lines[-1][names.BETA] != config.method.beta  # type: ignore[union-attr]  # a DPO run
