"""What a commit takes from the training beside it: `python benchmarks/commit_cost.py FOLDER`.

One process trains on all cores without end; this one commits as a rank and its journal do: copy the weights, write,
flush and hash them, prune. The training that was lost is the time that is missing between the training steps that end
beside a commit, at the pace of the quiet seconds after it. The floor is the processor time, on one core, to copy and
to hash the bytes once.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from huggingface_hub import save_torch_state_dict

from rlhf_ray.rundir.commit import commit_directory, prune

WARM_UP_S, QUIET_S, AFTER_S = 10.0, 10.0, 3.0
TRAIN = """
import time, torch
layers = [torch.nn.TransformerEncoderLayer(576, 9, 1536, dropout=0.0, batch_first=True) for _ in range(2)]
model, x = torch.nn.Sequential(*layers), torch.randn(4, 96, 576)
while True:
    model.zero_grad()
    model(x).square().mean().backward()
    print(time.time(), flush=True)
"""


def floor(weights: dict[str, torch.Tensor]) -> float:
    """Seconds."""
    began = time.process_time()
    for tensor in weights.values():
        hashlib.sha256(tensor.clone().numpy().data)
    return time.process_time() - began


def commit(weights: dict[str, torch.Tensor], folder: Path, number: int) -> tuple[float, float]:
    """When it began and when it ended."""
    began = time.time()
    copies = {name: tensor.to("cpu", copy=True) for name, tensor in weights.items()}
    sealed = commit_directory(folder, f"step-{number:06d}", lambda to: save_torch_state_dict(copies, to), {})
    prune(folder, 2, sealed=sealed)
    return began, time.time()


def lost(finished: list[float], began: float, ended: float) -> float:
    """Seconds of training, from the times at which a training step was finished."""
    beside = [t for t in finished if began <= t <= ended + AFTER_S]
    quiet = [t for t in finished if ended + AFTER_S <= t <= ended + QUIET_S]
    step = (quiet[-1] - quiet[0]) / (len(quiet) - 1)
    return beside[-1] - beside[0] - (len(beside) - 1) * step


def main() -> None:
    """Prints one line a commit and the medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="an empty folder, on the disk that is of interest")
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--commits", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(1)
    weights = {f"{i}": torch.randn(16 * 2**18) for i in range(options.mib // 16)}
    least = min(floor(weights) for _ in range(3))
    log = options.folder / "steps"
    options.folder.mkdir(parents=True, exist_ok=True)
    with log.open("w") as stream:
        training = subprocess.Popen([sys.executable, "-c", TRAIN], stdout=stream)
        try:
            time.sleep(WARM_UP_S)
            times = []
            for number in range(options.commits):
                times.append(commit(weights, options.folder / "checkpoints", number))
                time.sleep(QUIET_S)
        finally:
            training.kill()
            training.wait()
    finished = [float(line) for line in log.read_text().splitlines()[:-1]]
    costs = [lost(finished, *each) for each in times]
    for (began, ended), cost in zip(times, costs, strict=True):
        print(f"{ended - began:5.2f} s to commit, {cost:5.2f} s of training lost")
    cost = statistics.median(costs)
    print(f"{options.mib} MiB: {cost:.2f} s of training lost (median); floor {least:.2f} s: {cost / least:.1f} times")


if __name__ == "__main__":
    main()
