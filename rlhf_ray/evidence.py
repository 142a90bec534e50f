"""What people say about answers: pairs, rankings, ratings, thumbs. And what they would have answered themselves.

One row of a file may hold several pieces of evidence (three annotators, four objectives); each is one object here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

if TYPE_CHECKING:  # it loads torch, which a reader of feedback does not need
    from rlhf_ray.types import Message

OVERALL = "overall"
"""The objective of evidence that names none."""

Kind = Literal["pair", "ranking", "rating", "thumb"]
KINDS: tuple[Kind, ...] = ("pair", "ranking", "rating", "thumb")


@dataclass(frozen=True, slots=True)
class Label:
    """Where a judgement comes from and what it is about. `where` names file and row for messages to people."""

    where: str
    objective: str = OVERALL
    annotator: str | None = None
    weight: float = 1.0
    category: str | None = None
    """Of the prompt, such as `Safety`: evaluations have a table by it."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt: `chosen` is preferred, by `margin` (0: not said), or neither if it is a `tie`."""

    kind: ClassVar[Kind] = "pair"
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    label: Label
    tie: bool = False
    margin: float = 0.0

    @property
    def answers(self) -> tuple[str, ...]:
        """Chosen, rejected."""
        return (self.chosen, self.rejected)


@dataclass(frozen=True, slots=True)
class Ranking:
    """K answers to one prompt with their `ranks`: 1 is best, equal ranks are ties. Best first."""

    kind: ClassVar[Kind] = "ranking"
    prompt: tuple[Message, ...]
    answers: tuple[str, ...]
    ranks: tuple[int, ...]
    label: Label


@dataclass(frozen=True, slots=True)
class Rating:
    """One answer and its `value` on the scale of the data's config."""

    kind: ClassVar[Kind] = "rating"
    prompt: tuple[Message, ...]
    answer: str
    value: float
    label: Label

    @property
    def answers(self) -> tuple[str, ...]:
        """The one answer."""
        return (self.answer,)


@dataclass(frozen=True, slots=True)
class Thumb:
    """One answer, good or not."""

    kind: ClassVar[Kind] = "thumb"
    prompt: tuple[Message, ...]
    answer: str
    good: bool
    label: Label

    @property
    def answers(self) -> tuple[str, ...]:
        """The one answer."""
        return (self.answer,)


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A prompt and the answer to imitate: no judgement, so no label beyond where it stands."""

    kind: ClassVar[Literal["demonstration"]] = "demonstration"
    prompt: tuple[Message, ...]
    answer: str
    where: str


@dataclass(frozen=True, slots=True)
class PromptOnly:
    """A prompt that nobody has answered: for rollouts."""

    kind: ClassVar[Literal["prompt"]] = "prompt"
    prompt: tuple[Message, ...]
    where: str


Evidence = Pair | Ranking | Rating | Thumb
Item = Evidence | Demonstration | PromptOnly
