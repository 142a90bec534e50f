"""Runs a function on N ranks of a gloo group, in processes of their own, and brings back what they return."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp

from tests.ports import free_port

_LIBRARIES = ["torch", "transformers", "peft", "deepspeed", "trl", "rlhf_ray.offline.worker"]


def on_ranks(world_size: int, work: Callable[..., Any], *arguments: object) -> list[Any]:
    """`work(rank, *arguments)` on every rank; the values in rank order. Fails with the first rank's traceback."""
    port = free_port()
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(_LIBRARIES)  # loaded once; spawned ranks would take most of their time for it
    answers = context.SimpleQueue()
    ranks = [
        context.Process(target=_rank, args=(rank, world_size, port, work, arguments, answers))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    found: dict[int, Any] = {}
    while len(found) < world_size:
        rank, value, error = answers.get()
        if error:
            for process in ranks:
                process.terminate()
            raise AssertionError(f"rank {rank}:\n{error}")
        found[rank] = value
    for process in ranks:
        process.join(30)
    return [found[rank] for rank in range(world_size)]


def _rank(
    rank: int, world_size: int, port: int, work: Callable[..., Any], arguments: tuple[object, ...], answers: Any
) -> None:
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    import torch

    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world_size)
    try:
        answers.put((rank, work(rank, *arguments), None))
    except BaseException:
        answers.put((rank, None, traceback.format_exc()))
    torch.distributed.destroy_process_group()
