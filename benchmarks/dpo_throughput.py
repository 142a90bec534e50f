"""DPO under Ray Train with DeepSpeed against plain TRL in one process: the same model, rows, batches and order.

    python benchmarks/dpo_throughput.py --steps 10 --rounds 3

A round is a run under Ray Train and then one of plain TRL on the token ids that the first left on disk. Both are timed
from one step's log to the next. Prints tokens a second (without padding, the first two steps left out) and the ratio
of each round. Timings of two things that do not run at once drift apart on a shared machine: take several rounds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rlhf_ray import metrics as names
from rlhf_ray.cluster import launch_offline
from rlhf_ray.config import PreferenceConfig
from rlhf_ray.data.length_buckets import LengthBuckets
from rlhf_ray.machine import cpu_cores
from rlhf_ray.models.folder import resolve_model
from rlhf_ray.offline.tables import read_table
from rlhf_ray.rundir.lines import read_lines

SKIPPED = 2
BATCH = 8
RATE = 1e-4
Step = tuple[float, float]
"""Tokens and seconds of one step."""


def main() -> None:
    """Runs the rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--plain", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.plain:
        print(json.dumps(_plain(asked.model, asked.steps, asked.plain)))
        return
    ratios = list[float]()
    for number in range(1, asked.rounds + 1):
        holder = Path(tempfile.mkdtemp())
        ours = _speed(_ours(asked.model, asked.steps, holder / "run"))
        plain = _speed(_plain_in_a_process(asked.model, asked.steps, holder / "run" / "data" / "train.arrow"))
        shutil.rmtree(holder)
        ratios.append(ours / plain)
        print(f"round {number}: Ray Train {ours:.1f}, plain TRL {plain:.1f} tokens/s, {ratios[-1]:.3f}", flush=True)
    print(json.dumps({"ratios": [round(ratio, 3) for ratio in ratios], "median": round(median(ratios), 3)}))


def _speed(steps: Sequence[Step]) -> float:
    """Tokens a second of all steps but the first ones."""
    return sum(tokens for tokens, _ in steps[SKIPPED:]) / sum(seconds for _, seconds in steps[SKIPPED:])


def _ours(model: str, steps: int, run: Path) -> list[Step]:
    config = PreferenceConfig.model_validate(
        {
            "name": "throughput",
            "model": {"path": model},
            "data": {"path": "demo"},
            "lora": {"rank": 16, "alpha": 32},
            "train": {"batch_size": BATCH, "learning_rate": RATE, "max_steps": steps},
        }
    )
    launch_offline(config, run, False, "benchmarks/dpo_throughput.py")
    lines = read_lines(run / "metrics.jsonl")
    rates = [(float(str(line[names.TOKENS_PER_SECOND])), float(str(line[names.TIME_STEP]))) for line in lines]
    return [(rate * seconds, seconds) for rate, seconds in rates]


def _plain_in_a_process(model: str, steps: int, table: Path) -> list[Step]:
    command = [sys.executable, __file__, "--plain", str(table), "--model", model, "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [(tokens, seconds) for tokens, seconds in json.loads(done.stdout.strip().splitlines()[-1])]


def _plain(model: str, steps: int, table: Path) -> list[Step]:
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import DPOConfig, DPOTrainer  # type: ignore[attr-defined]  # exported lazily

    torch.set_num_threads(cpu_cores())
    done = list[Step]()

    class Clock(TrainerCallback):
        last = time.monotonic()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                done.append((float(trainer.tokens), time.monotonic() - self.last))
                trainer.tokens, self.last = 0, time.monotonic()

    class Counting(DPOTrainer):  # type: ignore[misc]  # untyped
        tokens = 0

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset  # tokenized already

        def _get_train_sampler(self, train_dataset: Any = None) -> Any:
            return LengthBuckets(rows["length"][:], BATCH, 0)

        def training_step(self, model: Any, inputs: Any, *arguments: Any) -> Any:
            self.tokens += int(inputs["attention_mask"].sum())
            return super().training_step(model, inputs, *arguments)

    folder, rows = resolve_model(model), read_table(table)
    arguments = DPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=BATCH,
        max_steps=steps,
        learning_rate=RATE,
        weight_decay=0.01,
        lr_scheduler_type="cosine",
        warmup_steps=0.05,
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
        train_dataset=rows,
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
        callbacks=[Clock()],
    )
    trainer.train()
    return done


if __name__ == "__main__":
    main()
