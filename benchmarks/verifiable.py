"""GRPO on answers that a rule checks: `python benchmarks/verifiable.py gsm8k TRAIN.jsonl TEST.jsonl --steps 20`.

`gsm8k`: rows with `question` and `answer`, the last number has to be right. `sentiment`: tab-separated `sentence` and
`label` (0 or 1), one word has to be right. Both run the recipe `grpo_math.yaml`, on SmolLM2 and in bfloat16 if there is
a GPU. Prints the share of right answers to held-out prompts before and after, with its interval, and the run's time.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import tempfile
from pathlib import Path

from rlhf_ray.cluster import connected, launch
from rlhf_ray.config import RunConfig
from rlhf_ray.config_file import load_config

ASK = "Review: {sentence}\nIs this review positive or negative? Answer with one word."


def sentiment_rows(path: Path, limit: int, folder: Path) -> Path:
    """The same as prompts with references."""
    text = gzip.decompress(path.read_bytes()).decode() if path.suffix == ".gz" else path.read_text(encoding="utf-8")
    table = list(csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))[:limit]
    rows = [
        {
            "prompt": ASK.format(sentence=row["sentence"].strip()),
            "reference": ("negative", "positive")[int(row["label"])],
        }
        for row in table
    ]
    file = folder / f"{path.name.split('.')[0]}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def main() -> None:
    """One run and one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("task", choices=["gsm8k", "sentiment"])
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--heldout", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set", action="append", default=[], dest="values", metavar="a.b=c", help="laid over the recipe"
    )
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = [asked.train, asked.test]
        values = []
        if asked.task == "sentiment":
            files = [sentiment_rows(file, 4000, Path(folder)) for file in files]
            rule = "[{type: function, path: 'rlhf_ray.rewards.rules:same_word'}]"
            values += [f"reward.sources={rule}", "rollout.max_new_tokens=4", "train.prompts_per_step=16"]
        values += [f"prompts.path={files[0]}", f"prompts.heldout_path={files[1]}", f"train.num_steps={asked.steps}"]
        values += [f"train.eval_prompts={asked.heldout}", f"seed={asked.seed}", *asked.values]
        config = load_config("grpo_math.yaml", values)
        assert isinstance(config, RunConfig)
        run = Path(folder) / "run"
        with connected(config.placement, cpus=2):
            summary = launch(config, run, resume=False, command="benchmarks/verifiable.py")
    print(json.dumps({"task": asked.task, "steps": asked.steps, **summary}, default=str))


if __name__ == "__main__":
    main()
