"""What a check of feedback data found, as frozen values: made by `check.check`, printed by `rlhf-ray data check`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from rlhf_ray.data.agreement import Agreement


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """An answer of an example row, what was said about it, and its length in tokens (None without a tokenizer)."""

    text: str
    verdict: str
    tokens: int | None


@dataclass(frozen=True, slots=True)
class ExampleRow:
    """A row as the model will see it: the prompt through the chat template up to where the answer begins."""

    where: str
    shape: str
    prompt: str
    prompt_tokens: int | None
    answers: tuple[ShownAnswer, ...]


@dataclass(frozen=True, slots=True)
class BadRowFound:
    """A row that cannot be used: where it is, what is wrong, and how to mend it."""

    where: str
    cause: str
    fix: str


@dataclass(frozen=True, slots=True)
class BadRows:
    """How many rows cannot be used, how many of them for an empty answer or for answers that are equal; the first."""

    total: int
    empty_answers: int
    identical_answers: int
    first: tuple[BadRowFound, ...]


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """A row that says nearly what an earlier one says; `similarity` is an estimated Jaccard similarity."""

    where: str
    earlier: str
    similarity: float


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Rows that repeat an earlier row: exactly (same prompt, answers and judgement), or nearly (prompt and answers)."""

    exact: int
    near: int
    first_exact: tuple[str, ...]
    first_near: tuple[NearDuplicate, ...]


@dataclass(frozen=True, slots=True)
class Leak:
    """Rows whose prompt is also in other data: a split across them would flatter every number."""

    other: str
    rows: int
    first: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Distribution:
    """Of lengths in tokens."""

    count: int
    p50: int
    p95: int
    max: int


@dataclass(frozen=True, slots=True)
class TokenLengths:
    """Lengths in tokens. A row is over-long if its prompt with its longest answer and the end has over `max_tokens`."""

    max_tokens: int
    overlong: int
    longest: int
    longest_where: str
    prompts: Distribution
    answers: Distribution | None
    total: int
    """Tokens counted altogether, prompts and answers."""


@dataclass(frozen=True, slots=True)
class LengthBias:
    """How often the longer of two answers is preferred, among `comparisons` of answers of different length."""

    longer_wins: float
    comparisons: int
    unit: Literal["tokens", "characters"]


@dataclass(frozen=True, slots=True)
class Report:
    """What a file of feedback holds and what is wrong with it."""

    path: str
    rows: int
    usable: int
    prompts: int
    """Different prompts among the usable rows."""
    shapes: Mapping[str, int]
    """Rows of each shape."""
    kinds: Mapping[str, int]
    """Items of each kind: pair, ranking, rating, thumb, demonstration, prompt. One row may hold several."""
    objectives: Mapping[str, int]
    """Judgements about each objective."""
    ties: int
    """Pairs without a winner, and rankings with equal ranks."""
    examples: tuple[ExampleRow, ...]
    bad: BadRows
    duplicates: Duplicates
    leaks: tuple[Leak, ...]
    tokens: TokenLengths | None
    """None without a tokenizer or usable rows."""
    annotators: int
    agreement: tuple[Agreement, ...]
    """Empty if no two annotators judged the same."""
    length_bias: LengthBias | None
    """None if no two answers of different length were compared."""

    def as_json(self) -> dict[str, object]:
        """The same as nested dictionaries, lists, texts and numbers."""
        return asdict(self)
