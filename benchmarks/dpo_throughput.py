"""DPO under Ray Train with DeepSpeed against plain TRL in one process, alternating, on the same model and pairs.

    python benchmarks/dpo_throughput.py --steps 12 --rounds 2

Prints tokens a second (without padding, median over steps, the first two left out) of each round and the ratio of the
medians. Plain TRL draws rows at random, as it does by default; this project batches rows of like length.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from rlhf_ray import metrics as names
from rlhf_ray.cluster import launch_offline
from rlhf_ray.config import PreferenceConfig
from rlhf_ray.machine import cpu_cores
from rlhf_ray.models.folder import resolve_model
from rlhf_ray.rundir.lines import read_lines

SKIPPED = 2
BATCH = 8


def main() -> None:
    """Runs the rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--plain", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.plain:
        print(json.dumps(_plain(asked.model, asked.steps)))
        return
    plain, ours = list[float](), list[float]()
    for number in range(asked.rounds):
        plain.append(_plain_in_a_process(asked.model, asked.steps))
        ours.append(_ours(asked.model, asked.steps))
        print(f"round {number + 1}: plain TRL {plain[-1]:.0f}, Ray Train {ours[-1]:.0f} tokens/s", flush=True)
    print(json.dumps({"plain": plain, "ray_train": ours, "ratio": round(median(ours) / median(plain), 3)}))


def _ours(model: str, steps: int) -> float:
    config = PreferenceConfig.model_validate(
        {
            "name": "throughput",
            "model": {"path": model},
            "data": {"path": "demo"},
            "lora": {"rank": 16},
            "train": {"batch_size": BATCH, "learning_rate": 1e-4, "max_steps": steps},
        }
    )
    holder = Path(tempfile.mkdtemp())
    launch_offline(config, holder / "run", False, "benchmarks/dpo_throughput.py")
    lines = read_lines(holder / "run" / "metrics.jsonl")
    shutil.rmtree(holder)
    return median(float(str(line[names.TOKENS_PER_SECOND])) for line in lines[SKIPPED:])


def _plain_in_a_process(model: str, steps: int) -> float:
    command = [sys.executable, __file__, "--plain", "--model", model, "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.strip().splitlines()[-1]))


def _plain(model: str, steps: int) -> float:
    import torch
    from datasets import load_dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    from rlhf_ray.data.files import data_files

    torch.set_num_threads(cpu_cores())
    rates = list[float]()

    class Clock(TrainerCallback):
        began = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.began = time.monotonic()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            rates.append(counted.pop() / (time.monotonic() - self.began))

    counted = list[int]()

    class Counting(DPOTrainer):
        def training_step(self, model: Any, inputs: Any, *arguments: Any) -> Any:
            counted.append(int(inputs["attention_mask"].sum()))
            return super().training_step(model, inputs, *arguments)

    folder = resolve_model(model)
    arguments = DPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=BATCH,
        max_steps=steps,
        learning_rate=1e-4,
        max_length=256,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
    )
    trainer = Counting(
        model=AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        args=arguments,
        train_dataset=load_dataset("json", data_files=[str(file) for file in data_files("demo")], split="train"),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[Clock()],
    )
    trainer.train()
    return median(rates[SKIPPED:])


if __name__ == "__main__":
    main()
