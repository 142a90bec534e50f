"""What is recorded of a service: replies, and what people say about them. Checked here, once, for all who write."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PrivateAttr, StrictInt, ValidationInfo, field_validator, model_validator

from rlhf_ray.strict import Strict

FLAGS = ("harmful", "untrue", "off_topic", "other")
CHOICES = ("a", "b", "tie", "both_bad")
THUMBS = ("up", "down")
RATINGS = range(1, 6)
MAX_TEXT = 32_000
MAX_RANKED = 16


class UnknownReply(Exception):
    """There is no such reply: never, or not any more. `message` says so; through Ray, `str` is a traceback instead."""

    def __init__(self, reply_id: str) -> None:
        super().__init__(reply_id)
        self.reply_id = reply_id
        self.message = f"there is no reply {reply_id!r:.160}; one that nobody rated is forgotten after a while"

    def __str__(self) -> str:
        return self.message


class DifferentPrompts(Exception):
    """Replies that answer different messages cannot be compared. `message` says which two."""

    def __init__(self, first: str, other: str) -> None:
        super().__init__(first, other)
        self.message = f"{first!r:.160} and {other!r:.160} answer different messages; compare replies to the same ones"

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply that may be rated. `messages` is JSON, a list of `{"role", "content"}`; `created` is in UTC seconds."""

    id: str
    policy_version: str
    model_source: str
    role: str
    """What the policy was at that time: "stable" or "canary"."""
    conversation: str
    messages: str
    text: str
    finish_reason: str
    created: float


@dataclass(frozen=True, slots=True)
class Added:
    """The id under which a statement is kept. `duplicate`: it had been made before with the same idempotency key."""

    id: str
    duplicate: bool


def _storable(text: str) -> str:
    """What no database can store is refused here: PostgreSQL takes no NUL, and half a surrogate pair is no UTF-8."""
    if "\0" in text or (not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)):
        raise ValueError("holds a NUL or half a surrogate pair, which cannot be stored; remove it")
    return text


Text = Annotated[str, AfterValidator(_storable)]
ReplyId = Annotated[Text, Field(min_length=1, max_length=256)]


class _Statement(Strict):
    """What one person says. Its id is given here, so that a write that is tried again is known to be the same."""

    annotator: Annotated[Text, Field(max_length=128)] | None = None
    """Who says it; only a salted hash is kept. Null or empty: nobody knows."""
    comment: Annotated[Text, Field(max_length=4000)] | None = None
    idempotency_key: Annotated[Text, Field(min_length=1, max_length=128)] | None = None
    """The same key of the same annotator is the same statement."""
    _id: str = PrivateAttr(default_factory=lambda: uuid.uuid4().hex)

    @property
    def id(self) -> str:
        """32 hexadecimal digits."""
        return self._id


class FeedbackItem(_Statement):
    """What a person says about one reply: the body of `POST /v1/feedback`."""

    reply_id: ReplyId
    kind: Literal["thumb", "rating", "correction", "flag"]
    value: str | int
    """A thumb: "up" or "down"; a rating: 1 to 5; a correction: what the reply should have been; a flag: one of
    `FLAGS`."""

    @field_validator("value", mode="before")
    @classmethod
    def _of_its_kind(cls, value: object, info: ValidationInfo) -> object:
        kind = info.data.get("kind")  # missing if it is wrong, which is the error that is told then
        if kind in ("thumb", "flag"):
            words = THUMBS if kind == "thumb" else FLAGS
            if not isinstance(value, str) or value not in words:
                raise ValueError(f"of a {kind} must be one of {', '.join(words)}")
        elif kind == "rating" and (type(value) is not int or value not in RATINGS):
            raise ValueError(f"of a rating must be a whole number from {RATINGS[0]} to {RATINGS[-1]}")
        elif kind == "correction":
            if not isinstance(value, str) or not value.strip():
                raise ValueError("of a correction must be text: what the reply should have been")
            if len(value) > MAX_TEXT:
                raise ValueError(f"of a correction has {len(value)} characters; shorten it to {MAX_TEXT}")
            _storable(value)
        return value


class PreferenceItem(_Statement):
    """Which of several replies to the same messages is better: the body of `POST /v1/preferences`."""

    reply_ids: Annotated[tuple[ReplyId, ...], Field(min_length=2, max_length=MAX_RANKED)]
    choice: Literal["a", "b", "tie", "both_bad"] | None = None
    """Of two replies, `a` being the first."""
    ranks: tuple[StrictInt, ...] | None = None
    """One for each reply: 1 is best, equal ones are ties. 1, 1, 3 is the same as 1, 1, 2 and is kept as it."""

    @property
    def kind(self) -> Literal["preference", "ranking"]:
        """A choice of two, or an order of several."""
        return "preference" if self.ranks is None else "ranking"

    @field_validator("reply_ids")
    @classmethod
    def _each_once(cls, reply_ids: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(reply_ids)) < len(reply_ids):
            raise ValueError("names one reply twice; name each once")
        return reply_ids

    @field_validator("ranks")
    @classmethod
    def _without_gaps(cls, ranks: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if ranks is None:
            return None
        distinct = sorted(set(ranks))
        if distinct != list(range(1, len(distinct) + 1)) and any(
            rank != 1 + sum(other < rank for other in ranks) for rank in distinct
        ):
            raise ValueError("must count from 1 for the best without gaps (1, 1, 3 is fine after a tie)")
        return tuple(distinct.index(rank) + 1 for rank in ranks)

    @model_validator(mode="after")
    def _one_judgement(self) -> PreferenceItem:
        count = len(self.reply_ids)
        if (self.choice is None) == (self.ranks is None):
            raise ValueError("give choice (of two replies) or ranks (of two or more), one of them")
        if self.choice is not None and count != 2:
            raise ValueError(f"choice is between two replies, and reply_ids names {count}; give ranks instead")
        if self.ranks is not None and len(self.ranks) != count:
            raise ValueError(f"ranks has {len(self.ranks)} numbers for {count} replies; give one for each")
        return self


def utc_seconds(text: str) -> float:
    """The moment that an ISO date or time names, in UTC seconds; one without a zone is UTC. `ValueError` for others."""
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r:.40} is no date; write 2026-11-01 or 2026-11-01T12:00:00+00:00") from None
