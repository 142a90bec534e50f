"""The order of training rows: rows of like length together, so that little is padded, and everything reproducible."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

_POOL = 50
"""Batches that are sorted together: enough for nearly no padding, few enough that batches differ between epochs."""


class LengthBuckets:
    """Row numbers in an order drawn from (seed, epoch): an index sampler for a torch `DataLoader`.

    Rows are shuffled, cut into pools of some batches, sorted by length within a pool, and the batches shuffled. Every
    row comes once an epoch; the rows of one optimizer step are neighbours, whatever the number of ranks.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self._lengths = np.asarray(lengths)
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose order comes next."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        draw = np.random.default_rng([self._seed, self._epoch])
        order = draw.permutation(len(self._lengths))
        size = self._batch_size * _POOL
        pools = [order[start : start + size] for start in range(0, len(order), size)]
        ordered = np.concatenate([pool[np.argsort(-self._lengths[pool], kind="stable")] for pool in pools])
        whole = len(ordered) // self._batch_size * self._batch_size
        batches = ordered[:whole].reshape(-1, self._batch_size)
        yield from (int(i) for i in batches[draw.permutation(len(batches))].reshape(-1))
        yield from (int(i) for i in ordered[whole:])  # the incomplete batch comes last
