"""What rollouts ahead of the learner save: `python benchmarks/max_lag.py --steps 6 --rounds 1`.

SmolLM2 with GRPO and adapters, generation on one core and everything else on another (`placement.mode: separate`, and
the processes are pinned: Linux would let policy and reference have both cores while no generation runs). With
`max_lag: 0` a step takes generation and the rest in turn; with `max_lag: 1` it can take no less than the longer of the
two. Prints both steps, the two phases of the first, and the second step over the longer phase: medians, each run's
first two steps left out. Then the mean rewards of the later half and of the last eighth of both; with `--model tiny
--tokens 12 --steps 160 --rounds 3` these are of a model that learns the task in so many steps, with three seeds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
import threading
from pathlib import Path
from statistics import fmean, median

import psutil

from rlhf_ray import metrics as names
from rlhf_ray.cluster import connected, launch
from rlhf_ray.config import PlacementConfig, RunConfig
from rlhf_ray.models.tiny import tiny_model

TARGET = 1.15
WARM_UP = 2
ROLES = ("ray::RolloutActor", "ray::RayTrainWorker", "ray::ReferenceActor", "ray::RewardActor")


def share_of_vowels(prompt: str, response: str, reference: str | None) -> float:
    """A reward that costs nothing to compute."""
    return sum(character in "aeiou" for character in response.lower()) / max(1, len(response))


def config(asked: argparse.Namespace, model: str, max_lag: int, seed: int) -> RunConfig:
    """The same run but for the lag."""
    learner = {"learning_rate": 4e-4, "lora": {"rank": 16}} if asked.model != "tiny" else {"learning_rate": 1e-3}
    return RunConfig.model_validate(
        {
            "name": f"lag-{max_lag}",
            "seed": seed,
            "model": {"path": model},
            "prompts": {"path": "demo", "max_prompt_tokens": 64},
            "algorithm": {"type": "grpo", "importance": "token"},
            "policy": {**learner, "microbatch_tokens": 1024, "cpus_per_worker": 0.6},
            "reference": {"cpus": 0.2},
            "reward": {"sources": [{"type": "function", "path": "max_lag:share_of_vowels"}], "cpus": 0.2,
                       "truncated": {"mode": "score"}},
            "rollout": {"samples_per_prompt": 4, "max_new_tokens": asked.tokens, "kv_cache_gib": 0.5, "cpus": 1},
            "train": {"num_steps": asked.steps, "prompts_per_step": asked.prompts, "checkpoint_every": 1000,
                      "max_lag": max_lag},
            "placement": {"mode": "separate", "threads": 1},
        }
    )  # fmt: skip


def pin(over: threading.Event) -> None:
    """Keeps the engine on the first core and the other roles on the second, until `over`."""
    first, second, *_ = sorted(os.sched_getaffinity(0))
    while not over.wait(0.5):
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error, OSError):  # it may have ended
                name = " ".join(process.cmdline()[:1])
                core = first if name.startswith("ray::RolloutActor") else second
                if name.startswith(
                    ("ray::RolloutActor", "ray::RayTrainWorker", "ray::ReferenceActor", "ray::RewardActor")
                ):
                    for thread in process.threads():
                        os.sched_setaffinity(thread.id, {core})


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
        over = threading.Event()
        threading.Thread(target=pin, args=(over,), daemon=True).start()
        model = asked.model if asked.model != "tiny" else str(tiny_model(Path(folder, "tiny")))
        for number in range(asked.rounds):
            runs = {lag: _steps(config(asked, model, lag, number), Path(folder, f"{number}-{lag}")) for lag in (0, 1)}
            print(json.dumps(_figures(runs[0], runs[1])), flush=True)
        over.set()


def _steps(run: RunConfig, path: Path) -> list[dict[str, float]]:
    launch(run, path, resume=False, command="benchmarks/max_lag.py")
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def _figures(synchronous: list[dict[str, float]], ahead: list[dict[str, float]]) -> dict[str, float]:
    generate = median(one["time/generate"] + one["time/score"] for one in synchronous[WARM_UP:])
    step, lagged = (median(one[names.TIME_STEP] for one in run[WARM_UP:]) for run in (synchronous, ahead))
    longer = max(generate, step - generate)
    count = len(synchronous)
    found = {
        "step_max_lag_0": step,
        "of_it_generation": generate,
        "of_it_the_rest": step - generate,
        "step_max_lag_1": lagged,
        "over_the_longer_phase": lagged / longer,
        "target": TARGET,
        **{
            f"reward_{what}_max_lag_{lag}": fmean(one[names.REWARD_MEAN] for one in run[-max(1, count // part) :])
            for what, part in (("later_half", 2), ("last_eighth", 8))
            for lag, run in enumerate((synchronous, ahead))
        },
    }
    return {name: round(value, 3) for name, value in found.items()}


if __name__ == "__main__":
    main()
