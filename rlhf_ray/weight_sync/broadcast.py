"""The process group that weights travel through: policy rank 0 sends, every rollout worker receives.

Separate from the learners' own group, on a store of its own; gloo, or NCCL where each has a GPU of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor

from rlhf_ray.models.device import device
from rlhf_ray.weight_sync.bucket import Bucket, pack, unpack

_MEET_S = 30.0
"""So long members wait for each other. All are told at the same time, when they have nothing else to do; but NCCL's
meet in the first broadcast, for which the sender may have to gather its weights."""


@dataclass(frozen=True, slots=True)
class Rendezvous:
    """Where the group meets: rank 0 listens at `host:port`."""

    host: str
    port: int
    world_size: int
    backend: Literal["gloo", "nccl"]
    """NCCL needs a GPU of its own for every member; gloo goes through main memory and always works."""
    timeout_s: float
    """Of a broadcast."""


class WeightGroup:
    """One member of the group. Rank 0 calls `send`, every other rank `receive`, as often as weights change."""

    def __init__(self, meeting: Rendezvous, rank: int) -> None:
        timeout, nccl = timedelta(seconds=meeting.timeout_s), meeting.backend == "nccl"
        meet = timeout if nccl else min(timeout, timedelta(seconds=_MEET_S))
        store = dist.TCPStore(
            meeting.host, meeting.port, meeting.world_size, is_master=rank == 0, timeout=meet, wait_for_workers=False
        )
        self._store = store  # rank 0's store is the server: it must live as long as the group
        self._memory = device() if nccl else torch.device("cpu")
        if nccl:
            self._group: dist.ProcessGroup = dist.ProcessGroupNCCL(store, rank, meeting.world_size)  # type: ignore[call-arg,assignment]  # the stubs lack its default and its methods
        else:
            self._group = dist.ProcessGroupGloo(store, rank, meeting.world_size, meet)  # type: ignore[assignment]  # likewise
        self._group._set_default_timeout(timeout)  # type: ignore[attr-defined]  # the stubs lack it

    def send(self, bucket: Bucket, tensors: Sequence[Tensor], version: int) -> None:
        """Broadcasts one bucket from rank 0."""
        self._group.broadcast(pack(bucket, tensors, version).to(self._memory), 0).wait()

    def receive(self, buckets: Sequence[Bucket], version: int) -> Iterator[tuple[str, Tensor]]:
        """Names and verified tensors of all buckets."""
        for bucket in buckets:
            # A fresh buffer each: vLLM keeps the views until all tensors of a layer have come.
            flat = torch.empty(bucket.nbytes, dtype=torch.uint8, device=self._memory)
            self._group.broadcast(flat, 0).wait()
            yield from unpack(bucket, flat, version)
