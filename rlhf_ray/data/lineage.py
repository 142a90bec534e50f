"""Which feedback of a service is behind a data file: what a run's manifest and its model card say of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any


def feedback_lineage(rows: Iterable[object]) -> dict[str, object] | None:
    """What the rows of `rlhf-ray feedback export` among `rows` come from: numbers of rows, statements, replies and
    annotators, replies by policy version, and the times (ISO 8601, UTC) of the first and the last statement. None if
    no row is from there. The ids are not in it: the file, whose hash the manifest has, says them."""
    replies: dict[int, str] = {}  # hashes: a million ids stay small
    statements: set[int] = set()
    annotators: set[int] = set()
    first, last = math.inf, -math.inf
    count = 0
    for row in rows:
        if not isinstance(row, Mapping) or not isinstance(row.get("feedback_id"), str):
            continue
        count += 1
        statements.add(hash(row["feedback_id"]))
        replies |= zip(map(hash, row.get("reply_ids") or ()), row.get("policy_versions") or (), strict=False)
        if row.get("annotator"):
            annotators.add(hash(row["annotator"]))
        if isinstance(given := row.get("given_at"), int | float):
            first, last = min(first, given), max(last, given)
    if not count:
        return None
    return {
        "rows": count,
        "statements": len(statements),
        "replies": len(replies),
        "annotators": len(annotators),
        "policy_versions": dict(sorted(Counter(replies.values()).items())),
        "given": [datetime.fromtimestamp(moment, UTC).isoformat(timespec="seconds") for moment in (first, last)]
        if first <= last
        else [],
    }


def lineage_words(lineage: Mapping[str, Any]) -> str:
    """A section of a model card: the lineage in words, and its `files` with their SHA-256."""
    versions, given = lineage["policy_versions"], lineage["given"]
    spoken = ", ".join(f"`{version}` ({count})" for version, count in versions.items())
    between = f", given from {given[0]} to {given[-1]}" if given else ""
    hashes = "\n".join(f"- `{file}`, SHA-256 `{digest}`" for file, digest in lineage["files"].items())
    return (
        f"\n## Feedback\n\nMade from what people said about served replies: {lineage['statements']} statements by "
        f"{lineage['annotators']} annotators about {lineage['replies']} replies of {spoken}{between}. They are the "
        f"{lineage['rows']} rows with a `feedback_id` in\n\n{hashes}\n"
    )
