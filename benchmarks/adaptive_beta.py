"""Beta held fixed against beta that follows a target KL, on the demo's preferences and the embedded model.

    python benchmarks/adaptive_beta.py --steps 32 --share 0.4

The fixed run measures the KL by a controller that may not move; the adaptive one then gets a share of the KL that the
first ended with as its target. Prints the KL of the last steps (smoothed, as the controller reads it) and that of the
saved policy on held-out answers, as multiples of the target.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from rlhf_ray import metrics as names
from rlhf_ray.cluster import launch_offline
from rlhf_ray.config import PreferenceConfig
from rlhf_ray.rundir.lines import read_lines


def main() -> None:
    """Runs both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--share", type=float, default=0.4)
    parser.add_argument("--beta", type=float, default=0.05)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--loss", default="cdpo", help="cdpo and ipo have a finite optimum for every beta")
    parser.add_argument("--target", type=float, help="leave the fixed run out: this is the target")
    parser.add_argument("--controller", type=json.loads, default={}, help="settings as JSON: '{\"horizon\": 10}'")
    parser.add_argument("--model", default="smollm2-135m")
    asked = parser.parse_args()
    target = asked.target
    if target is None:
        fixed = _run("fixed", {"target_kl": 1.0, "beta_range": [asked.beta, asked.beta]}, asked)
        target = asked.share * fixed["heldout_kl"]
        print(json.dumps({"run": "fixed", **_figures(fixed, target)}), flush=True)
    adaptive = _run("adaptive", {"target_kl": target, **asked.controller}, asked)
    print(json.dumps({"run": "adaptive", **_figures(adaptive, target)}), flush=True)


def _run(name: str, controller: dict[str, Any], asked: argparse.Namespace) -> dict[str, Any]:
    config = PreferenceConfig.model_validate(
        {
            "name": name,
            "model": {"path": asked.model},
            "data": {"path": "demo"},
            "lora": {"rank": 16},
            "method": {
                "type": "dpo",
                "loss": asked.loss,
                "label_smoothing": 0.1 if asked.loss == "cdpo" else 0.0,
                "beta": asked.beta,
                "adaptive_beta": {"type": "kl", **controller},
            },
            "train": {"max_steps": asked.steps, "learning_rate": asked.learning_rate},
        }
    )
    run = Path(tempfile.mkdtemp()) / name
    summary = launch_offline(config, run, False, "benchmarks/adaptive_beta.py")
    steps = read_lines(run / "metrics.jsonl")
    return {**summary, "kls": [step[names.BETA_KL] for step in steps], "betas": [step[names.BETA] for step in steps]}


def _figures(summary: dict[str, Any], target: float) -> dict[str, object]:
    every = max(1, len(summary["kls"]) // 10)
    return {
        "target_kl": round(target, 3),
        "kl_last_over_target": round(summary["kl_last"] / target, 3),
        "heldout_kl_over_target": round(summary["heldout_kl"] / target, 3),
        "heldout_accuracy": round(summary["heldout_accuracy"], 3),
        "kl_over_target": [round(kl / target, 2) for kl in summary["kls"][::every]],
        "beta": [round(beta, 3) for beta in summary["betas"][::every]],
        "seconds": round(summary["seconds_total"]),
    }


if __name__ == "__main__":
    main()
