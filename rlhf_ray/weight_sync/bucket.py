"""Flat buckets of weights with a header that the receiver verifies.

A bucket is one contiguous byte tensor: a 64-byte header (version, three checksum words, payload size), then the
tensors, each aligned to 16 bytes. The layout travels once, at the start; after that a push is one broadcast a bucket.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import UInt8
from torch import Tensor

HEADER_BYTES = 64
_ALIGN = 16
_COLUMNS = 1024


class WeightPushError(Exception):
    """A push that did not arrive whole. The receiving engine refuses to generate until a later push succeeds."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """Name, shape and dtype (`float32`, `bfloat16`) of one tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Its size in memory."""
        return math.prod(self.shape) * int(getattr(torch, self.dtype).itemsize)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Tensors that travel together; `offsets[i]` is where the i-th begins in the flat byte tensor."""

    specs: tuple[TensorSpec, ...]
    offsets: tuple[int, ...]
    nbytes: int


def plan_buckets(specs: Sequence[TensorSpec], bucket_bytes: int) -> tuple[Bucket, ...]:
    """Groups `specs` in order into buckets of at most `bucket_bytes`; a larger tensor gets a bucket of its own."""
    groups: list[list[TensorSpec]] = []
    size = 0
    for spec in specs:
        if not groups or size + spec.nbytes > bucket_bytes:
            groups.append([])
            size = 0
        groups[-1].append(spec)
        size += spec.nbytes
    return tuple(_lay_out(group) for group in groups)


def _lay_out(specs: Sequence[TensorSpec]) -> Bucket:
    offsets, end = [], HEADER_BYTES
    for spec in specs:
        offsets.append(end)
        end += _padded(spec.nbytes)
    return Bucket(tuple(specs), tuple(offsets), end)


def _padded(nbytes: int) -> int:
    return -(-nbytes // _ALIGN) * _ALIGN


def pack(bucket: Bucket, tensors: Sequence[Tensor], version: int) -> UInt8[Tensor, " n"]:
    """The bucket's byte tensor, on the device of `tensors`, sealed with `version` and its checksum."""
    flat = torch.empty(bucket.nbytes, dtype=torch.uint8, device=tensors[0].device)
    flat[:HEADER_BYTES] = 0
    for spec, offset, tensor in zip(bucket.specs, bucket.offsets, tensors, strict=True):
        if tuple(tensor.shape) != spec.shape:
            raise ValueError(f"{spec.name}: expected shape {spec.shape}, got {tuple(tensor.shape)}")
        flat[offset : offset + spec.nbytes].copy_(tensor.contiguous().view(-1).view(torch.uint8))
        flat[offset + spec.nbytes : offset + _padded(spec.nbytes)] = 0
    flat[:HEADER_BYTES].view(torch.int64)[:5] = torch.tensor([version, *checksum(flat[HEADER_BYTES:]), bucket.nbytes])
    return flat


def unpack(bucket: Bucket, flat: UInt8[Tensor, " n"], version: int) -> list[tuple[str, Tensor]]:
    """Names and tensors (views into `flat`), after the version and checksum have been verified."""
    header = flat[:HEADER_BYTES].view(torch.int64)[:5].tolist()
    if header[0] != version:
        raise WeightPushError(f"expected weights of version {version}, received version {header[0]}")
    if header[4] != bucket.nbytes or tuple(header[1:4]) != checksum(flat[HEADER_BYTES:]):
        raise WeightPushError(f"version {version}: checksum mismatch in the bucket of {bucket.specs[0].name}")
    return [
        (spec.name, flat[offset : offset + spec.nbytes].view(getattr(torch, spec.dtype)).view(spec.shape))
        for spec, offset in zip(bucket.specs, bucket.offsets, strict=True)
    ]


def checksum(payload: UInt8[Tensor, " n"]) -> tuple[int, int, int]:
    """Three position-sensitive sums over the payload's 64-bit words, modulo 2^64.

    A plain sum, and sums weighted by row and by column of the payload laid out 1024 words wide (Fletcher's idea in two
    dimensions): integer arithmetic, so the same on CPU and GPU in any order, at the speed of memory.
    """
    words = payload.view(torch.int64)
    whole = words.numel() // _COLUMNS * _COLUMNS
    table, rest = words[:whole].view(-1, _COLUMNS), words[whole:]
    rows, columns = table.sum(dim=1), table.sum(dim=0)
    columns[: rest.numel()] += rest
    by_row = (rows * torch.arange(1, len(rows) + 1, device=rows.device)).sum() + rest.sum() * (len(rows) + 1)
    by_column = (columns * torch.arange(1, _COLUMNS + 1, device=columns.device)).sum()
    return int(rows.sum() + rest.sum()), int(by_row), int(by_column)
