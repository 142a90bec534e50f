"""What passes between gateway and engine about one reply, and from the gateway to whoever keeps it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Piece:
    """Server-sent events of a streamed reply, ready to be sent."""

    events: str


@dataclass(frozen=True, slots=True)
class Whole:
    """The body of a reply that is not streamed."""

    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a reply that came to its end."""

    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The engine will not or cannot answer."""

    status: int
    message: str


class EngineGone(Exception):
    """The policy is not served any more: the application was deployed again without it."""


Part = Piece | Whole | Finished | Refused


class Engines(Protocol):
    """The policies' engines, by version."""

    def reply(self, version: str, reply_id: str, body: Mapping[str, Any]) -> AsyncIterator[Part]:
        """Answers `body` (`ChatRequest.for_engine`) as `version`. Raises what its death raises, or `EngineGone`."""


class Writer(Protocol):
    """Whoever keeps replies and feedback (`FeedbackStore`, behind an actor)."""

    async def keep_reply(self, reply: Any) -> None: ...

    async def add_feedback(self, item: Any) -> Any: ...

    async def add_preference(self, item: Any) -> Any: ...

    async def delete(self, reply_id: str) -> int: ...

    async def forget(self, older_than: float) -> int: ...

    async def summary(self, since: float | None) -> Mapping[str, Any]: ...
