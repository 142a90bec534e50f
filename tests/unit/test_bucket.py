"""Buckets: what goes in comes out, and nothing damaged gets through."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.weight_sync.bucket import HEADER_BYTES, TensorSpec, WeightPushError, checksum, pack, plan_buckets, unpack

SHAPES = ((3, 5), (7,), (64, 33), (1,), (1024, 9))


def _made(dtype: torch.dtype = torch.float32) -> tuple[list[TensorSpec], list[torch.Tensor]]:
    g = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=g).to(dtype) for shape in SHAPES]
    return [TensorSpec(f"t{i}", tuple(t.shape), str(dtype)[6:]) for i, t in enumerate(tensors)], tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("limit", [1, 4000, 1 << 20])
def test_round_trip(dtype: torch.dtype, limit: int) -> None:
    specs, tensors = _made(dtype)
    found = {}
    by_name = dict(zip([s.name for s in specs], tensors, strict=True))
    for bucket in plan_buckets(specs, limit):
        assert len(bucket.specs) == 1 or sum(s.nbytes for s in bucket.specs) <= limit
        flat = pack(bucket, [by_name[s.name] for s in bucket.specs], 3)
        found |= dict(unpack(bucket, flat, 3))
    assert found.keys() == by_name.keys()
    assert all(torch.equal(found[name], by_name[name]) for name in found)


def test_the_version_must_match() -> None:
    specs, tensors = _made()
    bucket = plan_buckets(specs, 1 << 20)[0]
    with pytest.raises(WeightPushError, match="expected weights of version 4, received version 3"):
        unpack(bucket, pack(bucket, tensors, 3), 4)


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 10**9), bit=st.integers(0, 7))
def test_any_flipped_bit_is_seen(place: int, bit: int) -> None:
    specs, tensors = _made()
    bucket = plan_buckets(specs, 1 << 20)[0]
    flat = pack(bucket, tensors, 1)
    where = HEADER_BYTES + place % (len(flat) - HEADER_BYTES)
    flat[where] ^= 1 << bit
    with pytest.raises(WeightPushError, match="checksum mismatch in the bucket of t0"):
        unpack(bucket, flat, 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4000), min_size=2, max_size=2, unique=True))
def test_swapped_words_are_seen(places: list[int]) -> None:
    words = torch.arange(1, 4002, dtype=torch.int64) * 7919
    swapped = words.clone()
    swapped[places[0]], swapped[places[1]] = words[places[1]].clone(), words[places[0]].clone()
    assert checksum(words.view(torch.uint8)) != checksum(swapped.view(torch.uint8))


def test_a_wrong_shape_is_refused_before_it_is_sent() -> None:
    specs, tensors = _made()
    bucket = plan_buckets(specs, 1 << 20)[0]
    with pytest.raises(ValueError, match=r"t1: expected shape \(7,\), got \(8,\)"):
        pack(bucket, [tensors[0], torch.zeros(8), *tensors[2:]], 1)
