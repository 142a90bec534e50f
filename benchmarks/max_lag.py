"""What rollouts ahead of the learner save: `python benchmarks/max_lag.py --steps 6 --rounds 1`.

SmolLM2 with GRPO and adapters, generation and learning on a core each (`placement.mode: separate`). With `max_lag: 0`
a step takes generation and the rest in turn; with `max_lag: 1` it can take no less than the longer of the two. Prints
both steps, the two phases of the first, and the second step over the longer phase: medians, each run's first two steps
left out. Then the mean reward of the last steps of both.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import fmean, median

from rlhf_ray import metrics as names
from rlhf_ray.cluster import connected, launch
from rlhf_ray.config import PlacementConfig, RunConfig

TARGET = 1.15
WARM_UP = 2


def share_of_vowels(prompt: str, response: str, reference: str | None) -> float:
    """A reward that costs nothing to compute."""
    return sum(character in "aeiou" for character in response.lower()) / max(1, len(response))


def config(asked: argparse.Namespace, max_lag: int, seed: int) -> RunConfig:
    """The same run but for the lag."""
    return RunConfig.model_validate(
        {
            "name": f"lag-{max_lag}",
            "seed": seed,
            "model": {"path": asked.model},
            "prompts": {"path": "demo", "max_prompt_tokens": 64},
            "algorithm": {"type": "grpo", "importance": "token"},
            "policy": {"learning_rate": 4e-4, "lora": {"rank": 16}, "microbatch_tokens": 1024, "cpus_per_worker": 0.6},
            "reference": {"cpus": 0.2},
            "reward": {"sources": [{"type": "function", "path": "max_lag:share_of_vowels"}], "cpus": 0.2},
            "rollout": {"samples_per_prompt": 4, "max_new_tokens": asked.tokens, "kv_cache_gib": 0.5, "cpus": 1},
            "train": {"num_steps": asked.steps, "prompts_per_step": asked.prompts, "checkpoint_every": 1000,
                      "max_lag": max_lag},
            "placement": {"mode": "separate", "threads": 1},
        }
    )  # fmt: skip


def main() -> None:
    """Alternates the two and prints a line a round."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--model", default="smollm2-135m")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, connected(PlacementConfig(), cpus=2):
        for number in range(asked.rounds):
            runs = {lag: _steps(config(asked, lag, number), Path(folder) / f"{number}-{lag}") for lag in (0, 1)}
            print(json.dumps(_figures(runs[0], runs[1])), flush=True)


def _steps(run: RunConfig, path: Path) -> list[dict[str, float]]:
    launch(run, path, resume=False, command="benchmarks/max_lag.py")
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def _figures(synchronous: list[dict[str, float]], ahead: list[dict[str, float]]) -> dict[str, float]:
    generate = median(one["time/generate"] + one["time/score"] for one in synchronous[WARM_UP:])
    step, lagged = (median(one[names.TIME_STEP] for one in run[WARM_UP:]) for run in (synchronous, ahead))
    longer = max(generate, step - generate)
    last = len(synchronous) // 2
    found = {
        "step_max_lag_0": step,
        "of_it_generation": generate,
        "of_it_the_rest": step - generate,
        "step_max_lag_1": lagged,
        "over_the_longer_phase": lagged / longer,
        "target": TARGET,
        "reward_max_lag_0": fmean(one[names.REWARD_MEAN] for one in synchronous[last:]),
        "reward_max_lag_1": fmean(one[names.REWARD_MEAN] for one in ahead[last:]),
    }
    return {name: round(value, 3) for name, value in found.items()}


if __name__ == "__main__":
    main()
