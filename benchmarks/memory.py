"""Is `rlhf-ray doctor CONFIG` right about memory? `python benchmarks/memory.py OUT`: estimate and peak of every role.

PPO with vLLM and every role: three sizes of a Llama with SmolLM2's vocabulary and random weights, and the middle size
with adapters; five steps with a commit after each. A process's peak is the kernel's own (`VmHWM`), less what it shared
with others when it was last looked at; the peak of a role is the largest sum over its processes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from rlhf_ray.config import RunConfig
from rlhf_ray.config_file import dump_config
from rlhf_ray.evaluation.memory import memory_bytes
from rlhf_ray.footprint import estimated_gib
from rlhf_ray.models.smollm2 import smollm2_folder
from rlhf_ray.tags import processes, run_id

SIZES = {"small": (320, 8, 5), "middle": (448, 16, 7), "large": (576, 30, 9)}
"""Width, blocks, heads; the large one is SmolLM2-135M's."""
TARGET = 0.2
"""An estimate that is further off than this makes the command fail."""


def make_models(folder: Path, width: int, blocks: int, heads: int) -> tuple[Path, Path]:
    """A policy and a reward model of that shape."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

    base = smollm2_folder()
    config = AutoConfig.from_pretrained(base)
    config.hidden_size, config.num_hidden_layers, config.num_attention_heads = width, blocks, heads
    config.num_key_value_heads, config.intermediate_size, config.num_labels = 1, width * 8 // 3, 1
    config.head_dim = width // heads
    tokenizer = AutoTokenizer.from_pretrained(base)
    config.pad_token_id = tokenizer.pad_token_id
    policy, reward = folder / "policy", folder / "reward"
    for target, made in ((policy, AutoModelForCausalLM), (reward, AutoModelForSequenceClassification)):
        made.from_config(config).save_pretrained(target)
        tokenizer.save_pretrained(target)
    return policy, reward


def make_config(folder: Path, policy: Path, reward: Path, lora: bool) -> RunConfig:
    """The run that is measured."""
    learner: dict[str, Any] = {"microbatch_tokens": 1024, "lora": {"rank": 16} if lora else None}
    return RunConfig.model_validate(
        {
            "name": folder.name,
            "model": {"path": str(policy)},
            "prompts": {"path": "demo", "max_prompt_tokens": 64},
            "policy": learner,
            "critic": learner,
            "reward": {"sources": [{"type": "model", "path": str(reward)}]},
            "rollout": {"kv_cache_gib": 0.5, "max_new_tokens": 64},
            "train": {"num_steps": 5, "prompts_per_step": 16, "checkpoint_every": 1, "keep_checkpoints": 1},
        }
    )


def peaks(run_dir: Path, process: subprocess.Popen[bytes]) -> dict[str, float]:
    """GiB by role, until the process ends."""
    found: defaultdict[str, float] = defaultdict(float)
    while process.poll() is None:
        now: defaultdict[str, float] = defaultdict(float)
        for each in processes(run_id(run_dir)):
            now[each.role.removesuffix(" rank").partition("-")[0]] += peak_bytes(each.pid) / 2**30
        for role, size in now.items():
            found[role] = max(found[role], size)
        time.sleep(0.5)
    return dict(found)


def peak_bytes(pid: int) -> int:
    """Until now; 0 if the process is gone. Samples of its memory alone would miss what is there for a moment."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    found = {line.split()[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmHWM:", "VmRSS:"))}
    alone = memory_bytes(pid)
    return found["VmHWM:"] - found["VmRSS:"] + alone if found and alone else 0


def main() -> None:
    """Prints a table and writes it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", choices=[*SIZES, "adapters"])
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    for name in [options.only] if options.only else [*SIZES, "adapters"]:
        shape = SIZES.get(name, SIZES["middle"])
        folder = options.out / f"memory-{name}"
        config = make_config(folder, *make_models(folder, *shape), lora=name == "adapters")
        (folder / "run.yaml").write_text(dump_config(config))
        run_dir = folder / f"run-{name}"
        command = [sys.executable, "-m", "rlhf_ray.cli.main", "train", str(folder / "run.yaml")]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [*command, "--run-dir", str(run_dir), "--max-failures", "0"], stdout=log, stderr=log
            )
            measured = peaks(run_dir, process)
        if process.returncode:
            parser.error(f"the run ended with exit code {process.returncode}; see {folder / 'log'}")
        estimate = estimated_gib(config)
        for role, guess in estimate.items():
            off = guess / measured[role] - 1
            results.append({"size": name, "role": role, "estimate": guess, "peak": measured[role], "off": off})
            said = f"{name:<10} {role:<12} {guess:6.2f} GiB estimated, {measured[role]:6.2f} at its peak: {off:+.0%}"
            print(said, flush=True)
    (options.out / "memory.json").write_text(json.dumps(results, indent=1))
    worst = max(abs(result["off"]) for result in results)
    print(f"furthest off: {worst:.0%} (target: within {TARGET:.0%})")
    sys.exit(worst > TARGET)


if __name__ == "__main__":
    main()
