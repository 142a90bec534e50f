"""What a trial costs in a sweep, and the same run alone: core-seconds, wall-clock seconds, peak memory.

    python benchmarks/sweep_sharing.py                   # PPO, eight trials of three steps on a tiny model, three alone
    python benchmarks/sweep_sharing.py --kind dpo

Both are measured in the same way, by the CPU time of all their processes, start of Ray included. The metrics of a trial
and of the run alone must be equal to the last bit.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rlhf_ray.evaluation.memory import PeakMemory
from rlhf_ray.models.tiny import tiny_model
from rlhf_ray.rundir.lines import read_lines

ROOT = Path(__file__).parents[1]
PPO = """
name: sharing
recipe: demo.yaml
set:
  model.path: tiny
  prompts.max_prompt_tokens: 256
  reward.sources.0: {type: function, path: "tests.builders:share_of_vowels"}
  policy.lora: null
  critic.lora: null
  critic.init: policy
  rollout.max_new_tokens: 12
  train: {num_steps: 3, prompts_per_step: 8, checkpoint_every: 3, eval_prompts: 8}
space:
  algorithm.clip_range: {grid: [0.1, 0.2, 0.3, 0.4]}
  algorithm.kl_coef: {grid: [0.02, 0.2]}
metric: reward_after
"""
DPO = """
name: sharing
recipe: dpo.yaml
set: {model.path: tiny, lora: null, method.precompute_reference: true, train.max_steps: 6}
space: {method.beta: {grid: [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0]}}
metric: heldout_accuracy
"""
CLOCKS = ("time/", "busy/", "throughput/")


def measured(folder: Path, *words: str) -> dict[str, float]:
    """Core-seconds, seconds and peak GiB of a command of rlhf-ray."""
    began = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with PeakMemory(interval_s=1.0) as processes:
        command = [sys.executable, "-m", "rlhf_ray.cli.main", *words]
        subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    cost = processes.core_seconds - own_seconds(processes)
    return {"core_seconds": cost, "seconds": time.monotonic() - began, "peak_gib": processes.peak_gib}


def own_seconds(processes: PeakMemory) -> float:
    """Of this program, which only measures."""
    return sum(seconds for (pid, _), seconds in processes.by_process.items() if pid == os.getpid())


def comparable(run: Path) -> list[dict[str, object]]:
    """The metrics of a run without times."""
    return [{k: v for k, v in line.items() if not k.startswith(CLOCKS)} for line in read_lines(run / "metrics.jsonl")]


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=("ppo", "dpo"), default="ppo")
    parser.add_argument("--alone", type=int, default=3, help="how many of the trials to run alone as well")
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sweep-sharing-"))
    tiny_model(folder / "tiny")
    (folder / "sweep.yaml").write_text({"ppo": PPO, "dpo": DPO}[arguments.kind], encoding="utf-8")
    together = measured(folder, "sweep", "sweep.yaml", "--out", "sweep")
    runs = sorted((folder / "sweep" / "runs").iterdir())
    alone = []
    for run in runs[:: max(1, len(runs) // arguments.alone)][: arguments.alone]:
        alone.append(measured(folder, "train", str(run / "config.yaml"), "--run-dir", f"alone/{run.name}"))
        assert comparable(run) == comparable(folder / "alone" / run.name), f"trial {run.name} is not the run alone"
    each = together["core_seconds"] / len(runs)
    told = {
        "trials": len(runs),
        "core_seconds_a_trial": round(each, 1),
        "core_seconds_alone": [round(one["core_seconds"], 1) for one in alone],
        "times_fewer": round(statistics.median(one["core_seconds"] for one in alone) / each, 2),
        "seconds_a_trial": round(together["seconds"] / len(runs), 1),
        "seconds_alone": [round(one["seconds"], 1) for one in alone],
        "peak_gib": {"sweep": round(together["peak_gib"], 2), "alone": round(max(o["peak_gib"] for o in alone), 2)},
        "metrics_equal": True,
    }
    print(json.dumps(told, indent=2))
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
