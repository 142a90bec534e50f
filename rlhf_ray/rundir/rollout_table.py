"""Rollouts as Parquet: one row a rollout, readable by any tool."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa  # type: ignore[import-untyped]  # pyarrow ships no types
import pyarrow.parquet as pq  # type: ignore[import-untyped]  # pyarrow ships no types

if TYPE_CHECKING:  # types.py loads torch, which a reader of the table does not need
    from rlhf_ray.types import Rollout

REPEATED = re.compile(r"#r?\d+$")
"""On the id of a prompt that comes again in one step: at the border of two epochs, or in a later round of dynamic
sampling (`#r`)."""
SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample_index", pa.int32()),
        ("prompt", pa.string()),  # the last user message
        ("messages", pa.string()),  # JSON
        ("response", pa.string()),
        ("finish_reason", pa.string()),
        ("policy_version", pa.int64()),  # at the first token
        ("versions", pa.string()),  # JSON: [[policy version, tokens sampled by it], ...], in order
        ("reward", pa.float64()),  # null where scoring failed or did not happen
        ("breakdown", pa.string()),  # JSON
        ("error", pa.string()),
        ("response_tokens", pa.int32()),
        ("cost", pa.float64()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
        ("rollout_logprobs", pa.list_(pa.float64())),  # as sampled
    ]
)


def write_rollouts(path: Path, rollouts: Sequence[Rollout]) -> None:
    """Writes `rollouts` to `path`, replacing it in one move."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist([_row(rollout) for rollout in rollouts], schema=SCHEMA)
    temporary = path.with_name(f".tmp-{path.name}")
    pq.write_table(table, temporary, compression="zstd")
    os.replace(temporary, path)


def read_rollouts(path: Path) -> list[dict[str, object]]:
    """The rows of `path` as dictionaries with the columns of `SCHEMA`, as far as the file has them."""
    names = [name for name in SCHEMA.names if name in pq.read_schema(path).names]
    rows: list[dict[str, object]] = pq.read_table(path, columns=names).to_pylist()
    return rows


def _row(rollout: Rollout) -> dict[str, object]:
    messages = rollout.prompt.messages
    asked = [message.content for message in messages if message.role == "user"]
    score = rollout.score
    return {
        "prompt_id": rollout.prompt.id,
        "sample_index": rollout.sample_index,
        "prompt": asked[-1] if asked else "",
        "messages": json.dumps([message.as_dict() for message in messages], ensure_ascii=False),
        "response": rollout.text,
        "finish_reason": rollout.finish_reason,
        "policy_version": rollout.policy_version,
        "versions": json.dumps(rollout.versions or [[rollout.policy_version, len(rollout.response_ids)]]),
        "reward": None if score is None or score.error else score.reward,
        "breakdown": json.dumps(dict(score.breakdown) if score else {}, sort_keys=True),
        "error": score.error if score else None,
        "response_tokens": len(rollout.response_ids),
        "cost": None if score is None else score.cost,
        "prompt_ids": rollout.prompt.token_ids,
        "response_ids": rollout.response_ids,
        "rollout_logprobs": rollout.rollout_logprobs,
    }
