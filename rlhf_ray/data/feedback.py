"""Human feedback from files, of every shape, as evidence: checked once, split by prompt, read again a row at a time."""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeVar

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from rlhf_ray.data.files import raw_rows
from rlhf_ray.data.shapes import BadRow, parse, shape_of
from rlhf_ray.errors import UserError
from rlhf_ray.evidence import OVERALL, Demonstration, Item, Pair, PromptOnly, Ranking
from rlhf_ray.strict import Strict
from rlhf_ray.types import Message

K = TypeVar("K")

_SHOWN = 3  # bad rows that are spelled out; the others are counted


class FeedbackConfig(Strict):
    """Where feedback comes from, how much of it is held out, and what happens to rows that cannot be used."""

    path: str
    """`demo`, a file (.jsonl, .json, .csv, .parquet, each also .gz where that makes sense), a folder, or a hub id."""
    split: str = "train"
    """The split of a hub data set."""
    heldout_path: str | None = None
    """A file of its own for evaluation; null holds out whole prompts of `path`."""
    heldout_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.15
    limit: PositiveInt | None = None
    """Read the first rows only."""
    max_tokens: PositiveInt = 256
    """Of prompt and answer together; longer conversations lose their beginning."""
    on_bad_row: Literal["error", "drop"] = "error"
    """`drop` counts and reports the rows that cannot be used instead of stopping."""
    rating_scale: tuple[float, float] = (1.0, 5.0)
    rating_step: PositiveFloat = 1.0
    """Ratings lie on `low, low + step, ..., high`."""

    @model_validator(mode="after")
    def _scale(self) -> FeedbackConfig:
        low, high = self.rating_scale
        if low >= high:
            raise ValueError(f"rating_scale = [{low:g}, {high:g}]: the first number must be the lower one")
        if abs((high - low) / self.rating_step - round((high - low) / self.rating_step)) > 1e-6:
            raise ValueError(f"rating_step = {self.rating_step:g} does not divide rating_scale = [{low:g}, {high:g}]")
        return self


@dataclass(frozen=True, slots=True)
class Feedback:
    """Feedback that was read once and found usable; `train` and `heldout` read it again, a row at a time.

    Counts are over the training and the held-out part together.
    """

    config: FeedbackConfig
    counts: dict[str, dict[str, int]]
    """Items by kind ("pair", "demonstration", ...) and objective; `OVERALL` where there is none."""
    shapes: dict[str, int]
    """Usable rows by the name of their shape."""
    ties: int
    """Comparisons without a preference."""
    dropped: int
    """Rows that cannot be used and are left out, as `on_bad_row: drop` wants it."""
    reasons: list[str]
    """The first of these: file, row, cause and fix."""
    num_train: int
    """Items that `train` gives."""
    num_heldout: int
    """Items that `heldout` gives."""
    notes: list[str]
    """What people should know, a sentence each."""
    heldout_keys: frozenset[bytes]
    """`prompt_key` of every held-out prompt."""

    def train(self) -> Iterator[Item]:
        """The items to train on, in the order of the data, anew at each call."""
        items = _items(self.config, self.config.path, self.config.limit, "data.path")
        return (item for item in items if prompt_key(item.prompt) not in self.heldout_keys)

    def heldout(self) -> Iterator[Item]:
        """The items for evaluation, none of whose prompts is trained on."""
        if self.config.heldout_path is not None:
            return _items(self.config, self.config.heldout_path, None, "data.heldout_path")
        items = _items(self.config, self.config.path, self.config.limit, "data.path")
        return (item for item in items if prompt_key(item.prompt) in self.heldout_keys)


def open_feedback(config: FeedbackConfig, seed: int) -> Feedback:
    """Reads all rows of `config` once, keeping some hundred bytes a prompt, and holds out whole prompts.

    Raises one `UserError` that counts the rows that cannot be used and spells out the first of them; another one if
    every comparison is a tie or nothing is left to train on.
    """
    tally = _Tally()
    train = _read(config, config.path, config.limit, "data.path", tally)
    apart = _read(config, config.heldout_path, None, "data.heldout_path", tally) if config.heldout_path else None
    _refuse_unusable(config, tally)
    heldout = frozenset(draw_heldout(train, config.heldout_fraction, seed) if apart is None else apart)
    shared = sum(size for key, size in train.items() if key in heldout)
    num_train = sum(train.values()) - shared
    if not num_train:
        raise UserError(f"data.path: every prompt of {config.path} is in data.heldout_path too; give another one")
    return Feedback(
        config=config,
        counts={kind: dict(by_objective) for kind, by_objective in tally.counts.items()},
        shapes=dict(tally.shapes),
        ties=tally.ties,
        dropped=tally.bad,
        reasons=tally.reasons,
        num_train=num_train,
        num_heldout=shared if apart is None else sum(apart.values()),
        notes=_notes(tally, 0 if apart is None else shared),
        heldout_keys=heldout,
    )


def prompt_key(prompt: tuple[Message, ...]) -> bytes:
    """16 bytes that stand for the prompt; equal prompts have equal keys in every process."""
    text = json.dumps([(message.role, message.content) for message in prompt])
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def draw_heldout(sizes: Mapping[K, int], fraction: float, seed: int) -> set[K]:
    """The prompts to hold out: whole ones, in an order drawn from `seed`, until about `fraction` of all items is.

    `sizes` is the number of items of each prompt, in the order of the data. No prompt is in both parts, because answers
    to one prompt are alike and a split across them would flatter the accuracy. `UserError` for fewer than two prompts.
    """
    if len(sizes) < 2:
        raise UserError("data.path: holding out rows needs at least two different prompts; add rows with others")
    prompts = list(sizes)
    random.Random(seed).shuffle(prompts)
    wanted = max(1, round(fraction * sum(sizes.values())))
    heldout: set[K] = set()
    held = 0
    for prompt in prompts[:-1]:  # one prompt always stays for training
        if held >= wanted:
            break
        heldout.add(prompt)
        held += sizes[prompt]
    return heldout


@dataclass(slots=True)
class _Tally:
    """What is known about the rows read so far."""

    rows: int = 0
    bad: int = 0
    reasons: list[str] = field(default_factory=list)
    shapes: Counter[str] = field(default_factory=Counter)
    counts: dict[str, Counter[str]] = field(default_factory=dict)
    comparisons: int = 0
    ties: int = 0

    def refuse(self, where: str, error: BadRow) -> None:
        self.bad += 1
        if self.bad <= _SHOWN:
            self.reasons.append(f"{where}: {error}")

    def add(self, item: Item) -> None:
        objective = OVERALL if isinstance(item, Demonstration | PromptOnly) else item.label.objective
        self.counts.setdefault(item.kind, Counter())[objective] += 1
        if isinstance(item, Pair | Ranking):
            self.comparisons += 1
            self.ties += item.tie if isinstance(item, Pair) else len(set(item.ranks)) == 1


def _read(config: FeedbackConfig, path: str, limit: int | None, key: str, tally: _Tally) -> dict[bytes, int]:
    """The number of items of each prompt, in the order of the rows."""
    sizes: dict[bytes, int] = {}
    for where, row in raw_rows(path, config.split, limit, key=key):
        tally.rows += 1
        try:
            items = parse(row, where, config)
        except BadRow as error:
            tally.refuse(where, error)
            continue
        tally.shapes[shape_of(row)] += 1
        for item in items:
            tally.add(item)
            prompt = prompt_key(item.prompt)
            sizes[prompt] = sizes.get(prompt, 0) + 1
    return sizes


def _items(config: FeedbackConfig, path: str, limit: int | None, key: str) -> Iterator[Item]:
    for where, row in raw_rows(path, config.split, limit, key=key):
        try:
            yield from parse(row, where, config)
        except BadRow as error:
            if config.on_bad_row == "error":
                raise UserError(f"{key}: {where}: {error} (the file was good when it was checked)") from None


def _refuse_unusable(config: FeedbackConfig, tally: _Tally) -> None:
    if tally.bad and (config.on_bad_row == "error" or tally.bad == tally.rows):
        more = f"\n  and {tally.bad - _SHOWN} more" if tally.bad > _SHOWN else ""
        drop = ", or set data.on_bad_row to drop" if config.on_bad_row == "error" and tally.bad < tally.rows else ""
        listed = "\n  ".join(tally.reasons)
        raise UserError(
            f"data.path: {tally.bad} of {tally.rows} rows of {config.path} cannot be used; mend or remove them{drop}:\n"
            f"  {listed}{more}"
        )
    if tally.comparisons and tally.comparisons == tally.ties and not tally.counts.keys() & {"rating", "thumb"}:
        raise UserError(
            f"data.path: all {tally.ties} comparisons of {config.path} are ties, so nothing can be learned from them; "
            "add rows in which one answer is preferred"
        )


def _notes(tally: _Tally, shared: int) -> list[str]:
    notes = []
    if tally.bad:
        notes.append(f"{tally.bad} of {tally.rows} rows cannot be used and are left out, the first: {tally.reasons[0]}")
    if tally.ties:
        notes.append(f"{tally.ties} of {tally.comparisons} comparisons are ties")
    guessed = tally.shapes["implicit preference (text)"]
    if guessed:
        notes.append(f"{guessed} rows have no prompt of their own: what both answers begin with was taken as it")
    if shared:
        notes.append(f"{shared} training items are left out because their prompts are held out")
    return notes
