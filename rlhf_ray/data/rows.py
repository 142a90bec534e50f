"""Rows of a prompt file: what shapes are accepted, and what is said about the others."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from rlhf_ray.errors import UserError
from rlhf_ray.types import Message

DEMO = Path(__file__).parent / "demo"
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
_ROLES = ("system", "user", "assistant")
_TURN = re.compile(r"\n\n(Human|Assistant):")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_FILE_SUFFIXES = {".json", ".csv", ".tsv", ".txt", ".gz", ".zip", ".yaml", ".yml", *SUFFIXES}


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One prompt as read. `where` names its file and row for error messages."""

    where: str
    id: str
    messages: tuple[Message, ...]
    reference: str | None = None


def is_hub_id(path: str) -> bool:
    """True for `owner/name` that is neither a local path nor looks like a file."""
    return bool(_HUB_ID.fullmatch(path)) and not Path(path).exists() and Path(path).suffix not in _FILE_SUFFIXES


def read_file_rows(path: str, split: str = "train", limit: int | None = None) -> list[PromptRow]:
    """The first `limit` prompts of a .jsonl, .jsonl.gz or .parquet file or of `split` of a hub data set.

    Raises `UserError` naming the file, the row (counted from 1; the line of a JSONL file) and what is wrong.
    """
    if is_hub_id(path):
        raw = _hub_rows(path, split)
    else:
        file = Path(path).expanduser()
        if not file.is_file():
            raise UserError(f"prompt file {path} does not exist (nor is it a hub id of the form owner/name)")
        if not file.name.endswith(SUFFIXES):
            raise UserError(f"prompt file {path} must end in {', '.join(SUFFIXES)}")
        raw = _parquet_rows(file) if file.suffix == ".parquet" else _jsonl_rows(file)
    stem = Path(path).name.split(".")[0]
    rows = [_parse(row, f"{path} row {number}", f"{stem}-{number}") for number, row in islice(raw, limit)]
    if not rows:
        raise UserError(f'prompt file {path} is empty; write one JSON object per line, e.g. {{"prompt": "Hello"}}')
    _refuse_repeated_ids(rows)
    return rows


def _jsonl_rows(file: Path) -> Iterator[tuple[int, object]]:
    try:
        with gzip.open(file, "rb") if file.suffix == ".gz" else file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    text = line.decode("utf-8-sig").strip()
                    if text:
                        yield number, json.loads(text)
                except ValueError as error:
                    raise UserError(f"{file} row {number}: not a JSON object ({error})") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"prompt file {file} cannot be read: {error}") from error


def _parquet_rows(file: Path) -> Iterator[tuple[int, object]]:
    import pyarrow.parquet as pq  # type: ignore[import-untyped]  # pyarrow ships no types
    from pyarrow import ArrowException

    try:
        yield from enumerate(pq.read_table(file).to_pylist(), start=1)
    except (ArrowException, OSError) as error:
        raise UserError(f"prompt file {file} cannot be read as Parquet: {error}") from error


def _hub_rows(name: str, split: str) -> Iterator[tuple[int, object]]:
    import datasets  # type: ignore[import-untyped]  # datasets ships no types

    try:
        rows = datasets.load_dataset(name, split=split)
    except Exception as error:  # the hub client raises a dozen unrelated types; all mean "not available"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"prompts.path: {name} (split {split}) is not a local file and cannot be loaded from the hub: {reason}; "
            "check the name and the network, or give a .jsonl or .parquet file"
        ) from error
    yield from enumerate(rows, start=1)


def _parse(row: object, where: str, default_id: str) -> PromptRow:
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: holds {type(row).__name__} instead of a JSON object")
    key = next((name for name in ("prompt", "messages", "chosen") if row.get(name) is not None), None)
    if key is None:
        has = ", ".join(map(str, row)) or "none"
        raise UserError(f"{where}: needs one of the keys prompt, messages, chosen (it has: {has})")
    value = row[key]
    if isinstance(value, str) and key == "prompt":
        messages: tuple[Message, ...] = (Message("user", value),)
    elif isinstance(value, str) and key == "chosen":
        messages = _anthropic_hh(value, where)
    else:
        messages = _messages(value, f"{where}: {key}")
        if key == "prompt" and messages[-1].role != "user":
            raise UserError(f"{where}: prompt ends with a turn of {messages[-1].role}, expected user")
        messages = _up_to_last_user(messages, where)
    if not messages[-1].content.strip():
        raise UserError(f"{where}: the last user turn is empty")
    given = row.get("id")
    if given is not None and not isinstance(given, str | int):
        raise UserError(f"{where}: id must be a string (got {given!r})")
    reference = row.get("reference") if row.get("reference") is not None else row.get("answer")
    if reference is not None and not isinstance(reference, str | int | float):
        raise UserError(f"{where}: the reference answer must be a string (got {type(reference).__name__})")
    return PromptRow(
        where, default_id if given is None else str(given), messages, None if reference is None else str(reference)
    )


def _messages(value: object, where: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{where} must be a non-empty list of {{role, content}} (got {type(value).__name__})")
    messages = []
    for position, turn in enumerate(value, start=1):
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, Mapping) else (None, None)
        if role not in _ROLES:
            raise UserError(f"{where}: turn {position} needs a role of {', '.join(_ROLES)} (got {role!r})")
        if not isinstance(content, str):
            raise UserError(f"{where}: turn {position} needs a content string (got {type(content).__name__})")
        messages.append(Message(role, content))
    return tuple(messages)


def _up_to_last_user(messages: tuple[Message, ...], where: str) -> tuple[Message, ...]:
    last = max((i for i, message in enumerate(messages) if message.role == "user"), default=None)
    if last is None:
        raise UserError(f"{where}: has no user turn")
    return messages[: last + 1]


def _anthropic_hh(text: str, where: str) -> tuple[Message, ...]:
    """The turns of `\\n\\nHuman: ...\\n\\nAssistant: ...` before the last answer (Bai et al. 2022, arXiv 2204.05862).

    Neighbouring turns of one speaker become one turn: chat templates want them to alternate.
    """
    head, *parts = _TURN.split(text)
    turns: list[Message] = []
    for speaker, content in zip(parts[::2], parts[1::2], strict=True):
        role = "user" if speaker == "Human" else "assistant"
        if turns and turns[-1].role == role:
            turns[-1] = Message(role, f"{turns[-1].content}\n\n{content.strip()}")
        else:
            turns.append(Message(role, content.strip()))
    if head.strip() or len(turns) < 2 or turns[0].role != "user" or turns[-1].role != "assistant":
        raise UserError(
            f"{where}: chosen must be a message list or read '\\n\\nHuman: ... \\n\\nAssistant: ...', starting with "
            "Human and ending with Assistant"
        )
    return tuple(turns[:-1])


def _refuse_repeated_ids(rows: list[PromptRow]) -> None:
    first: dict[str, str] = {}
    for row in rows:
        if row.id in first:
            raise UserError(f"{row.where}: the id {row.id!r} was already used by {first[row.id]}; ids must differ")
        first[row.id] = row.where
