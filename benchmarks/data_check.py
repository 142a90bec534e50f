"""Memory and speed of `rlhf-ray data check`: `python benchmarks/data_check.py [--mb 1024] [--model smollm2-135m]`.

Writes that many megabytes of different preference pairs into a temporary folder and checks them, with tokens, in a
process of its own. The floor is the time of the tokenizer alone on the same texts, in batches of the same size.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LIMIT_GIB = 2.0
"""The project's target: peak resident memory of a check of 1 GB."""
CHECK = """
import json, resource, sys, time
began = time.perf_counter()
from rlhf_ray.cli.main import main
code = main(["data", "check", *sys.argv[1:], "--json"])
seconds, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB
print(json.dumps({"code": code, "seconds": seconds, "cpu": time.process_time(), "peak_gib": peak / 2**20}))
"""
FLOOR = """
import json, sys, time
from transformers import AutoTokenizer
from rlhf_ray.models.folder import resolve_model
backend = AutoTokenizer.from_pretrained(resolve_model(sys.argv[2])).backend_tokenizer
tokens, seconds, cpu, texts = 0, 0.0, 0.0, []
def flush():
    global tokens, seconds, cpu
    began, cpu_began = time.perf_counter(), time.process_time()
    tokens += sum(map(len, backend.encode_batch_fast(texts, add_special_tokens=False)))
    seconds += time.perf_counter() - began
    cpu += time.process_time() - cpu_began
    texts.clear()
for line in open(sys.argv[1], encoding="utf-8"):
    row = json.loads(line)
    texts += (row["prompt"], row["chosen"], row["rejected"])
    if len(texts) >= 768:
        flush()
flush()
print(json.dumps({"tokens": tokens, "seconds": seconds, "cpu": cpu}))
"""


def write_pairs(path: Path, nbytes: int) -> int:
    """Fills `path` with pairs of about 900 bytes, no two of them alike, and returns how many they are."""
    from rlhf_ray.data.synthetic import create_preference_data

    draw = random.Random(0)
    sentences = [
        sentence
        for row in create_preference_data(300, seed=1)
        for key in ("chosen", "rejected")
        for sentence in str(row[key]).split(". ")
    ]
    written = rows = 0
    with path.open("w", encoding="utf-8") as stream:
        while written < nbytes:
            prompt = f"Question {rows}: how shall I {draw.choice(sentences).lower()}?"
            answers = [". ".join(draw.choices(sentences, k=8)) for _ in range(2)]
            written += stream.write(json.dumps({"prompt": prompt, "chosen": answers[0], "rejected": answers[1]}) + "\n")
            rows += 1
    return rows


def last_line(code: str, *arguments: str) -> list[dict[str, float]]:
    """Runs `code` in a process of its own and returns the JSON objects that it printed, one a line."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=1024, help="size of the file, in MB")
    parser.add_argument("--model", default="smollm2-135m", help="whose tokenizer; smollm2-135m or a local folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.jsonl"
        began = time.perf_counter()
        rows = write_pairs(path, options.mb * 1_000_000)
        megabytes = path.stat().st_size / 1e6
        print(f"wrote {megabytes:.0f} MB, {rows:,} rows in {time.perf_counter() - began:.0f} s", flush=True)
        report, run = last_line(CHECK, str(path), "--model", options.model)
        (floor,) = last_line(FLOOR, str(path), options.model)
    if run["code"] or report["usable"] != rows:
        raise SystemExit(f"the check found {report['bad']} in {rows} good rows")
    tokens = report["tokens"]["total"]  # type: ignore[index]  # an object of the report
    print(f"check: {_speed(run, tokens)}, {megabytes / run['seconds']:.2f} MB/s")
    print(f"peak resident memory: {run['peak_gib']:.2f} GiB (target at 1 GB: under {LIMIT_GIB:g} GiB)")
    print(f"floor, the tokenizer alone: {_speed(floor, floor['tokens'])}")
    ratios = (run[key] / floor[key] for key in ("seconds", "cpu"))
    print("ratio {:.2f} (CPU time {:.2f}; on a busy machine only this one says something)".format(*ratios))


def _speed(run: dict[str, float], tokens: float) -> str:
    return f"{run['seconds']:.1f} s ({run['cpu']:.1f} s of CPU time), {tokens / run['seconds']:,.0f} tokens/s"


if __name__ == "__main__":
    main()
