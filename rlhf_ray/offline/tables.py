"""Token ids on disk as Arrow: written lazily once, mapped into memory by every worker."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rlhf_ray.errors import UserError

_BATCH = 1000


def write_table(file: Path, rows: Iterable[Mapping[str, object]]) -> int:
    """Writes `rows` (lists of integers, numbers, strings) and returns how many. Memory holds a batch at a time."""
    from datasets.arrow_writer import ArrowWriter  # type: ignore[import-untyped]  # ships no types

    file.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with ArrowWriter(path=str(file), writer_batch_size=_BATCH) as writer:
        for row in rows:
            writer.write(dict(row))
            count += 1
        if count:
            writer.finalize()
    return count


def read_table(file: Path) -> Any:
    """The rows of `write_table` as a `datasets.Dataset` that is mapped from the disk."""
    from datasets import Dataset  # type: ignore[import-untyped]  # ships no types

    if not file.is_file():
        raise UserError(f"{file} is missing: it is written when the run starts; start the run again")
    return Dataset.from_file(str(file.resolve()))  # TRL finds what it derived from a table by the table's own place
