"""A weight push between two processes: `python benchmarks/weight_push.py [--model smollm2-135m] [--pushes 5]`.

One process sends the model's weights in sealed buckets, the other verifies them and loads them into vLLM, as in a run.
The floor is the time to copy the same bytes once in memory. CPU only: the processes meet over gloo.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path

THREADS = 2


def memcpy_bandwidth(nbytes: int = 256 << 20, repeats: int = 5) -> float:
    """Bytes a second of the fastest of `repeats` copies of `nbytes`."""
    import torch

    source, target = torch.ones(nbytes, dtype=torch.uint8), torch.empty(nbytes, dtype=torch.uint8)
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        target.copy_(source)
        seconds.append(time.perf_counter() - began)
    return nbytes / min(seconds[1:])  # the first one also maps the pages


def send(folder: Path, port: int, bucket_mib: int, pushes: int, pipe: Connection) -> None:
    """The sender's process: tells the layout, joins, and sends when told to."""
    import torch
    from transformers import AutoModelForCausalLM

    from rlhf_ray.weight_sync.broadcast import Rendezvous, WeightGroup
    from rlhf_ray.weight_sync.bucket import TensorSpec, plan_buckets

    torch.set_num_threads(THREADS)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    buckets = plan_buckets([TensorSpec(n, tuple(t.shape), "float32") for n, t in tensors.items()], bucket_mib << 20)
    pipe.send(buckets)
    group = WeightGroup(Rendezvous("127.0.0.1", port, 2, "gloo", 120.0), 0)
    for _ in range(pushes):
        version: int = pipe.recv()
        for bucket in buckets:
            group.send(bucket, [tensors[spec.name] for spec in bucket.specs], version)
    pipe.recv()  # rank 0 holds the group's store: it leaves last


def receive(folder: Path, port: int, pushes: int, pipe: Connection) -> tuple[list[float], int]:
    """The receiver's side, in this process: seconds of each push, and its bytes."""
    from rlhf_ray.actors.rollout import RolloutActor
    from rlhf_ray.actors.vllm_engine import EngineSpec, engine_environment
    from rlhf_ray.config import RolloutConfig
    from rlhf_ray.weight_sync.broadcast import Rendezvous

    spec = EngineSpec(folder, "float32", 256, THREADS, on_gpu=False, rollout=RolloutConfig(kv_cache_gib=0.25))
    os.environ.update(engine_environment(spec))
    actor = RolloutActor(spec)
    buckets = pipe.recv()
    actor.join(Rendezvous("127.0.0.1", port, 2, "gloo", 120.0), 1, buckets)
    seconds = []
    for version in range(1, pushes + 1):
        began = time.perf_counter()
        pipe.send(version)
        actor.load_weights(version)
        seconds.append(time.perf_counter() - began)
    pipe.send(None)
    return seconds, sum(bucket.nbytes for bucket in buckets)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="smollm2-135m or a local folder")
    parser.add_argument("--pushes", type=int, default=5)
    parser.add_argument("--bucket-mib", type=int, default=32)
    options = parser.parse_args()

    from rlhf_ray.models.folder import resolve_model

    folder = resolve_model(options.model)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    sender = context.Process(target=send, args=(folder, port, options.bucket_mib, options.pushes, theirs), daemon=True)
    sender.start()
    seconds, nbytes = receive(folder, port, options.pushes, ours)
    sender.join()
    bandwidth = memcpy_bandwidth()
    median, floor = statistics.median(seconds), nbytes / bandwidth
    print("seconds per push:", " ".join(f"{each:.2f}" for each in seconds))
    print(f"median {median:.2f} s for {nbytes / 2**20:.0f} MiB")
    print(f"floor {floor:.3f} s: one copy at the measured {bandwidth / 2**30:.1f} GiB/s")
    print(f"ratio {median / floor:.1f}")


if __name__ == "__main__":
    main()
