"""JSON Lines files that survive a crash: whole lines only, never invalid JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from rlhf_ray.rundir.commit import replace_file


def append_line(path: Path, record: Mapping[str, object]) -> None:
    """Appends one line and hands it to the operating system before returning."""
    line = json.dumps(record, allow_nan=False, ensure_ascii=False)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")


def read_lines(path: Path) -> list[dict[str, object]]:
    """The records of `path` ([] if there is no file). A torn last line is left out; a damaged earlier one is an error.

    Raises `ValueError` naming the line.
    """
    if not path.exists():
        return []
    records: list[dict[str, object]] = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        torn_allowed = number == len(lines)  # a whole line ends with a newline, so the last piece is empty or torn
        try:
            record: object = json.loads(line)
        except json.JSONDecodeError as error:
            if torn_allowed:
                break
            raise ValueError(f"{path.name} line {number} is not valid JSON: {error}") from error
        if not isinstance(record, dict):
            raise ValueError(f"{path.name} line {number} is not a JSON object")
        if not torn_allowed:
            records.append(record)
    return records


def keep_lines(path: Path, wanted: Callable[[dict[str, object]], bool]) -> int:
    """Rewrites `path` with its wanted records only (a torn last line goes too); returns how many records went."""
    if not path.exists():
        return 0
    records = read_lines(path)
    kept = [record for record in records if wanted(record)]
    replace_file(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in kept))
    return len(records) - len(kept)


def flush_to_disk(path: Path) -> None:
    """Waits until the disk holds what was appended to `path`."""
    if path.exists():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())


def finite(value: object) -> object:
    """`value` with every NaN and infinity inside replaced by None, and unknown types by their text: valid JSON."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return str(value)
