"""Rows of feedback in batches, the usable and the others: what a check and a clean copy both go through."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rlhf_ray.data.check_report import BadRowFound
from rlhf_ray.data.duplicates import SeenHashes, text_hash
from rlhf_ray.data.feedback import FeedbackConfig, prompt_key
from rlhf_ray.data.files import data_files, is_hub_id, raw_rows
from rlhf_ray.data.shapes import BadRow, parse, shape_of
from rlhf_ray.errors import UserError
from rlhf_ray.evidence import Demonstration, Item, Pair, PromptOnly, Ranking, Rating
from rlhf_ray.types import Message

SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "heldout")
"""The names of splits that are looked for in a folder."""
_ROWS = 256
_CHARACTERS = 1 << 20


@dataclass(frozen=True, slots=True)
class UsableRow:
    """A row that was understood. `raw` is as the file has it; there is at least one item, and all have one prompt."""

    where: str
    shape: str
    raw: object
    items: tuple[Item, ...]

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages before the answers."""
        return self.items[0].prompt

    @property
    def answers(self) -> tuple[str, ...]:
        """The different answers, in the order in which the items name them."""
        return tuple(dict.fromkeys(answer for item in self.items for answer in answers_of(item)))


@dataclass(frozen=True, slots=True)
class RowBatch:
    """Neighbouring rows of a file: at most 256 and about a million characters."""

    usable: list[UsableRow]
    refused: list[BadRowFound]


def read_batches(config: FeedbackConfig) -> Iterator[RowBatch]:
    """All rows of `config.path`, in order. Raises `UserError` as `files.raw_rows` does."""
    batch, characters = RowBatch([], []), 0
    for where, raw in raw_rows(config.path, config.split, config.limit):
        try:
            row = UsableRow(where, shape_of(raw), raw, tuple(parse(raw, where, config)))
        except BadRow as error:
            batch.refused.append(BadRowFound(where, error.cause, error.fix))
        else:
            batch.usable.append(row)
            characters += sum(len(message.content) for message in row.prompt) + sum(map(len, row.answers))
        if len(batch.usable) + len(batch.refused) >= _ROWS or characters >= _CHARACTERS:
            yield batch
            batch, characters = RowBatch([], []), 0
    yield batch


def answers_of(item: Item) -> tuple[str, ...]:
    """The answers that an item is about."""
    if isinstance(item, PromptOnly):
        return ()
    return (item.answer,) if isinstance(item, Demonstration) else item.answers


def prompt_hash(prompt: tuple[Message, ...]) -> int:
    """64 bits of the key by which prompts are held together when data is split."""
    return int.from_bytes(prompt_key(prompt)[:8], "big")


def fingerprint(items: tuple[Item, ...]) -> int:
    """64 bits of all that a row says: prompt, answers and judgements, and nothing of where it stands."""
    parts = [part for message in items[0].prompt for part in (message.role, message.content)]
    for item in items:
        parts += (item.kind, *answers_of(item))
        if isinstance(item, Demonstration | PromptOnly):
            continue
        if isinstance(item, Pair):
            verdict = f"{item.tie} {item.margin!r}"
        elif isinstance(item, Ranking):
            verdict = repr(item.ranks)
        else:
            verdict = repr(item.value if isinstance(item, Rating) else item.good)
        parts += (verdict, item.label.objective, repr(item.label.annotator), repr(item.label.weight))
    return text_hash(*parts)


def other_prompts(config: FeedbackConfig, other: FeedbackConfig | None) -> list[tuple[str, SeenHashes]]:
    """The prompts that must not be in `config` too, by the name of the data: those of `other` and, if `config.path` is
    a folder with several splits, those of its other splits. Rows that cannot be used are passed over."""
    sources = [(f"split {split}", config.model_copy(update={"split": split})) for split in _other_splits(config)]
    if other is not None:
        sources.append((other.path, other))
    return [(name, _prompts(source)) for name, source in sources]


def _prompts(config: FeedbackConfig) -> SeenHashes:
    seen = SeenHashes()
    for batch in read_batches(config.model_copy(update={"limit": None})):
        seen.add(prompt_hash(row.prompt) for row in batch.usable)
    return seen


def _other_splits(config: FeedbackConfig) -> list[str]:
    if is_hub_id(config.path) or not Path(config.path).expanduser().is_dir():
        return []
    ours = data_files(config.path, config.split)
    found = []
    for split in SPLITS:
        try:
            files = data_files(config.path, split)
        except UserError:  # there is no such split
            continue
        if files != ours:
            found.append(split)
    return found
