"""Reward models against a TF-IDF Bradley-Terry model on the same prompt-grouped split, and their speed against the
arithmetic floor.

    python benchmarks/reward_models.py hh-harmless.jsonl.gz minilm-joint minilm-separate smollm2-lora

Prints one line a model: held-out accuracy with its 95 % interval, the accuracy that is left without length, seconds,
tokens a second and their share of the peak of this machine's matrix products, measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from rlhf_ray.cluster import launch_offline
from rlhf_ray.config import RewardModelConfig
from rlhf_ray.config_file import load_config
from rlhf_ray.data.feedback import FeedbackConfig, open_feedback
from rlhf_ray.evaluation.reward import EVALUATION_FILE, evaluate_reward_model
from rlhf_ray.evaluation.reward_items import ScoredItem
from rlhf_ray.evidence import Pair
from rlhf_ray.machine import cpu_cores

_STOPPING = {"epochs": 3, "eval_every": 30, "patience": 3}
MODELS: dict[str, dict[str, Any]] = {
    "minilm-joint": {
        "model": {"path": "minilm-l6"},
        "train": {"batch_size": 16, "learning_rate": 4e-5, "weight_decay": 0.1, **_STOPPING},
    },
    "minilm-separate": {
        "model": {"path": "minilm-l6"},
        "architecture": {"type": "separate", "shared": True},
        "train": {"batch_size": 16, "learning_rate": 4e-5, "weight_decay": 0.1, **_STOPPING},
    },
    "smollm2-lora": {
        "num_layers": 15,
        "lora": {"rank": 16},
        "train": {"batch_size": 16, "microbatch_size": 8, "learning_rate": 2e-4, "epochs": 1},
    },
}


def main() -> None:
    """Runs what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("models", nargs="*")
    parser.add_argument("--max-tokens", type=int, default=128)
    parser.add_argument("--keep", type=Path, help="where the run directories stay; a temporary folder if not given")
    parser.add_argument("--set", nargs="*", default=[], help="overrides such as train.epochs=2")
    asked = parser.parse_args()
    unknown = set(asked.models) - MODELS.keys()
    if unknown:
        parser.error(f"unknown models {', '.join(sorted(unknown))}; there are {', '.join(MODELS)}")
    feedback = FeedbackConfig(
        path=str(asked.data), max_tokens=asked.max_tokens, on_bad_row="drop", heldout_fraction=0.2
    )
    print(json.dumps(_tfidf(feedback)), flush=True)
    for name in asked.models:
        print(json.dumps(_train(name, feedback, asked.keep, asked.set)), flush=True)


def _tfidf(config: FeedbackConfig) -> dict[str, object]:
    """Logistic regression on the difference of two answers' TF-IDF vectors: Bradley-Terry on words and word pairs."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    began = time.monotonic()
    feedback = open_feedback(config, 0)
    train = [item for item in feedback.train() if isinstance(item, Pair) and not item.tie]
    heldout = [item for item in feedback.heldout() if isinstance(item, Pair)]
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, min_df=2)
    words.fit([answer for pair in train for answer in pair.answers])
    difference = words.transform([p.chosen for p in train]) - words.transform([p.rejected for p in train])
    flips = np.where(np.arange(len(train)) % 2 == 0, 1, -1)
    model = LogisticRegression(C=1.0, max_iter=1000, fit_intercept=False)
    model.fit(difference.multiply(flips[:, None]).tocsr(), flips)
    scored = [_scored(pair, words.transform(pair.answers) @ model.coef_[0]) for pair in heldout]
    found = evaluate_reward_model(scored, seed=0)
    return {"model": "tf-idf", "pairs": len(train), **_figures(found), "seconds": round(time.monotonic() - began, 1)}


def _scored(pair: Pair, scores: Sequence[float]) -> ScoredItem:
    return ScoredItem(pair, tuple(map(float, scores)), tuple(len(answer.split()) for answer in pair.answers))


def _figures(found: Any) -> dict[str, object]:
    length = found.length
    return {
        "accuracy": round(found.overall.accuracy, 4),
        "ci95": [round(bound, 4) for bound in found.overall.ci95],
        "decisions": found.overall.decisions,
        "length_controlled": length and round(length.length_controlled.accuracy, 4),
    }


def _train(name: str, feedback: FeedbackConfig, keep: Path | None, overrides: Sequence[str]) -> dict[str, object]:
    from rlhf_ray.evaluation.reward import RewardEvaluation

    tree: dict[str, Any] = {"kind": "reward", "name": name, "data": feedback.model_dump(mode="json"), **MODELS[name]}
    holder = keep or Path(tempfile.mkdtemp())
    holder.mkdir(parents=True, exist_ok=True)
    recipe = holder / f"{name}.yaml"
    recipe.write_text(yaml.safe_dump(tree))
    config = load_config(recipe, overrides)
    assert isinstance(config, RewardModelConfig)  # as its kind says
    run = holder / name
    shutil.rmtree(run, ignore_errors=True)
    peak = _peak_flops()
    summary = launch_offline(config, run, False, "benchmarks/reward_models.py")
    found = RewardEvaluation.model_validate_json((run / EVALUATION_FILE).read_text())
    per_token = _flops_per_token(config, Path(str(summary["model_dir"])))
    return {
        "model": name,
        **_figures(found),
        "seconds": round(summary["seconds_total"]),
        "train_seconds": round(summary["seconds_by_phase"]["train"]),
        "tokens_per_second": round(summary["tokens_per_second"]),
        "share_of_peak": round(summary["tokens_per_second"] * per_token / peak, 3),
        "peak_gflops": round(peak / 1e9),
        "heldout_loss": round(summary["heldout_loss"], 4),
        "run": str(run) if keep else None,
    }


def _flops_per_token(config: RewardModelConfig, model: Path) -> float:
    """Of the layers: 6 a weight (forward and two backward products), 4 where the weights are frozen (LoRA)."""
    from rlhf_ray.models.reward.saving import load_reward_network

    network = load_reward_network(model)[0]
    weights = sum(p.numel() for name, p in network.named_parameters() if p.dim() == 2 and "embed" not in name)
    return (4 if config.lora else 6) * weights / len(network.backbones)


def _peak_flops(size: int = 1024, seconds: float = 2.0) -> float:
    """Floating-point operations a second of float32 matrix products on all cores."""
    torch.set_num_threads(cpu_cores())
    a, b = torch.randn(size, size), torch.randn(size, size)
    a @ b
    began, done = time.monotonic(), 0
    while time.monotonic() - began < seconds:
        a @ b
        done += 1
    return done * 2 * size**3 / (time.monotonic() - began)


if __name__ == "__main__":
    main()
