"""What orchestration costs in a finished run: `python benchmarks/overhead.py runs/demo`.

Overhead is the step's time minus the time inside the models, vLLM and the weight push (`time/overhead`). The first step
is left out of the median and maximum: it pays for warm-up. A commit costs the time for which it held up the loop, and
what it takes from the step beside which it is written.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path

LIMIT = 0.05
"""The project's target: overhead as a share of the step."""


def shares(lines: Sequence[dict[str, float]]) -> list[float]:
    """Overhead as a share of each step."""
    return [line["time/overhead"] / line["time/step"] for line in lines]


def main() -> None:
    """Prints one line a step and the figures of the run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run directory")
    run = parser.parse_args().run
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    if not lines:
        parser.error(f"{run} has no finished step")
    print("step   seconds  overhead  share   push")
    for line, share in zip(lines, shares(lines), strict=True):
        step, seconds, push = int(line["step"]), line["time/step"], line["time/push"]
        print(f"{step:4d} {seconds:9.2f} {line['time/overhead']:9.3f} {share:6.1%} {push:6.2f}")
    later = lines[1:] or lines
    found, pushes = shares(later), [line["time/push"] for line in later]
    typical, worst = statistics.median(found), max(found)
    print(f"overhead: median {typical:.1%}, max {worst:.1%} of the step (target: under {LIMIT:.0%})")
    beside = [line["time/step"] + line["time/commit"] for line in later if "time/commit" in line]
    alone = [line["time/step"] for line in later if "time/commit" not in line]
    if beside and alone:
        held_up = statistics.median(line["time/commit"] for line in later if "time/commit" in line)
        more = statistics.median(beside) / statistics.median(alone) - 1
        print(f"commits: held up the loop for {held_up:.2f} s (median); with that, the {len(beside)} steps beside one")
        print(f"  took {more:+.1%} of the {len(alone)} others (medians; target: under {LIMIT:.0%})")
    print(f"weight push: median {statistics.median(pushes):.2f} s, max {max(pushes):.2f} s")


if __name__ == "__main__":
    main()
