"""Rows of a prompt file: what shapes are accepted, and what is said about the others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath

from rlhf_ray.data.fields import BadRow, Row, as_row, as_text, given, kind_of
from rlhf_ray.data.files import raw_rows
from rlhf_ray.data.messages import Messages, as_messages, as_prompt, check_order, hh_messages
from rlhf_ray.errors import UserError
from rlhf_ray.types import Message


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One prompt as read. `where` names its file and row for error messages."""

    where: str
    id: str
    messages: tuple[Message, ...]
    reference: str | None = None


def read_file_rows(path: str, split: str, limit: int | None, *, key: str) -> list[PromptRow]:
    """The first `limit` prompts of a file, a folder, or of `split` of a hub data set (see `files.raw_rows`).

    `key` is the config key of `path`, for messages. Raises `UserError` naming the file, the row (counted from 1; the
    line of a JSONL file) and what is wrong.
    """
    rows = []
    for where, row in raw_rows(path, split, limit, key=key):
        try:
            rows.append(_parse(as_row(row), where))
        except BadRow as error:
            raise UserError(f"{where}: {error}") from None
    _refuse_repeated_ids(rows)
    return rows


def _parse(row: Row, where: str) -> PromptRow:
    messages = _messages(row)
    own_id = row["id"] if given(row, "id") else _default_id(where)
    if not isinstance(own_id, str | int):
        raise BadRow(f"id is {kind_of(own_id)}", "it must be text or a number")
    reference = next((row[key] for key in ("reference", "answer") if given(row, key)), None)
    if reference is not None and not isinstance(reference, str | int | float):
        raise BadRow(f"the reference answer is {kind_of(reference)}", "it must be text or a number")
    return PromptRow(where, str(own_id), messages, None if reference is None else str(reference))


def _messages(row: Row) -> Messages:
    """The conversation up to its last user turn."""
    key = next((name for name in ("prompt", "question", "messages", "chosen") if name in row), None)
    if key is None:
        has = ", ".join(row) or "nothing"
        raise BadRow(f"it has no prompt, question, messages or chosen (it has: {has})", "add one of them")
    value = row[key]
    if key in ("prompt", "question"):
        return as_prompt(value, key)
    if key == "chosen" and isinstance(value, str):
        messages = hh_messages(value, key)
        if messages[-1].role != "assistant":
            raise BadRow("chosen ends with a turn of the Human", "end it with the Assistant's")
    else:
        messages = as_messages(value, key)
    last = max((i for i, message in enumerate(messages) if message.role == "user"), default=None)
    if last is None:
        raise BadRow(f"{key} has no user turn", "add it")
    check_order(messages, key)
    as_text(messages[last].content, f"the last user turn of {key}")
    return messages[: last + 1]


def _default_id(where: str) -> str:
    """`prompts-3` for "prompts.jsonl row 3"."""
    name, _, number = where.rpartition(" row ")
    return f"{PurePath(name).name.split('.')[0]}-{number}"


def _refuse_repeated_ids(rows: list[PromptRow]) -> None:
    first: dict[str, str] = {}
    for row in rows:
        if row.id in first:
            raise UserError(f"{row.where}: the id {row.id!r} was already used by {first[row.id]}; ids must differ")
        first[row.id] = row.where
