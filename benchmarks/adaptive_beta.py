"""Beta held fixed against beta that follows a target KL, on the demo's preferences and the embedded model.

    python benchmarks/adaptive_beta.py --target-kl 4 --steps 60

Both runs measure the KL alike; the fixed one has a controller that may not move. Prints the KL of the last steps
(smoothed, as the controller reads it) and that of the saved policy on held-out answers, as multiples of the target.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from rlhf_ray.cluster import launch_offline
from rlhf_ray.config import PreferenceConfig


def main() -> None:
    """Runs both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target-kl", type=float, default=4.0)
    parser.add_argument("--beta", type=float, default=0.05)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--learning-rate", type=float, default=2e-4)
    parser.add_argument("--loss", default="sigmoid")
    parser.add_argument("--model", default="smollm2-135m")
    asked = parser.parse_args()
    for name, limits in (("fixed", {"beta_range": [asked.beta, asked.beta]}), ("adaptive", {})):
        print(json.dumps(_run(name, limits, asked)), flush=True)


def _run(name: str, limits: dict[str, Any], asked: argparse.Namespace) -> dict[str, object]:
    adaptive = {"type": "kl", "target_kl": asked.target_kl, **limits}
    config = PreferenceConfig.model_validate(
        {
            "name": name,
            "model": {"path": asked.model},
            "data": {"path": "demo"},
            "lora": {"rank": 16},
            "method": {"type": "dpo", "loss": asked.loss, "beta": asked.beta, "adaptive_beta": adaptive},
            "train": {"max_steps": asked.steps, "learning_rate": asked.learning_rate},
        }
    )
    run = Path(tempfile.mkdtemp()) / name
    summary = launch_offline(config, run, False, "benchmarks/adaptive_beta.py")
    return {
        "run": name,
        "beta_last": summary["beta_last"],
        "kl_last_over_target": round(summary["kl_last"] / asked.target_kl, 3),
        "heldout_kl_over_target": round(summary["heldout_kl"] / asked.target_kl, 3),
        "heldout_accuracy": round(summary["heldout_accuracy"], 3),
        "seconds": round(summary["seconds_total"]),
    }


if __name__ == "__main__":
    main()
