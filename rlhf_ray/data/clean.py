"""Writes feedback again as JSON lines, one line for a row, without the rows that cannot or should not be used."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TextIO

from rlhf_ray.data.canonical import canonical_row
from rlhf_ray.data.checked_rows import RowBatch, UsableRow, fingerprint, other_prompts, prompt_hash, read_batches
from rlhf_ray.data.duplicates import SeenHashes
from rlhf_ray.data.feedback import FeedbackConfig
from rlhf_ray.data.shapes import BadRow, parse
from rlhf_ray.errors import UserError

BAD = "cannot be used"
DUPLICATE = "exact duplicate of an earlier row"
LEAK = "prompt is also in {other}"


@dataclass(frozen=True, slots=True)
class Cleaned:
    """The clean copy, how many rows it has, and how many were left out, by reason."""

    path: str
    written: int
    dropped: Mapping[str, int]

    def as_json(self) -> dict[str, object]:
        """The same as a dictionary."""
        return asdict(self)


def fix(
    config: FeedbackConfig,
    out: Path,
    other: FeedbackConfig | None = None,
    on_rows: Callable[[int], None] | None = None,
) -> Cleaned:
    """Writes the rows of `config` to the JSONL file `out`, which must not exist yet.

    Left out are rows that cannot be used (those with empty or equal answers are among them), exact duplicates, and rows
    whose prompt is in `other` or in another split of the same folder. Near-duplicates stay. A row is written with the
    plainest keys that say the same (`canonical.canonical_row`); columns that are no feedback are not kept. Raises
    `UserError` if `out` exists or does not end in .jsonl, or if no row is left; then there is no file.
    """
    if out.suffix != ".jsonl":
        raise UserError(f"{out}: the clean copy is written as JSON lines, so its name must end in .jsonl")
    if out.exists():
        raise UserError(f"{out} exists already and is not overwritten; give another name or remove it")
    others = other_prompts(config, other)
    seen, dropped, rows = SeenHashes(), Counter[str](), 0
    try:
        stream = out.open("x", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror}; give a path in a folder that exists") from error
    with stream:
        try:
            written = 0
            for batch in read_batches(config):
                written += _write(stream, batch, config, others, seen, dropped)
                rows += len(batch.usable) + len(batch.refused)
                if on_rows:
                    on_rows(rows)
            if not written:
                reasons = "; ".join(f"{count}: {reason}" for reason, count in dropped.items())
                raise UserError(f"{config.path}: no row is left to write ({reasons})")
        except BaseException:
            out.unlink()
            raise
    return Cleaned(str(out), written, dict(dropped))


def _write(
    stream: TextIO,
    batch: RowBatch,
    config: FeedbackConfig,
    others: list[tuple[str, SeenHashes]],
    seen: SeenHashes,
    dropped: Counter[str],
) -> int:
    """Writes the rows of a batch that stay and returns how many; counts the others in `dropped`."""
    if batch.refused:
        dropped[BAD] += len(batch.refused)
    rows = batch.usable
    for name, prompts in others:
        leaked = prompts.holds([prompt_hash(row.prompt) for row in rows])
        if any(leaked):
            dropped[LEAK.format(other=name)] += leaked.count(True)
        rows = [row for row, leaks in zip(rows, leaked, strict=True) if not leaks]
    repeated = seen.add_and_tell([fingerprint(row.items) for row in rows])
    if any(repeated):
        dropped[DUPLICATE] += repeated.count(True)
    kept = [row for row, again in zip(rows, repeated, strict=True) if not again]
    stream.writelines(f"{_line(row, config)}\n" for row in kept)
    return len(kept)


def _line(row: UsableRow, config: FeedbackConfig) -> str:
    canonical = canonical_row(row.items)
    try:
        same = tuple(parse(canonical, row.where, config)) == row.items
    except BadRow:
        same = False
    # A rare mixture, say ratings by annotator beside ratings by objective, has no plainer form than its own.
    return json.dumps(canonical, ensure_ascii=False) if same else json.dumps(row.raw, default=str)
