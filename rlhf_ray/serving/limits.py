"""How much a key and all keys together may ask for, and what a request may be at all."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection
from typing import Any

from rlhf_ray.serving.protocol import ApiError

Clock = Callable[[], float]

HEADERS = {
    b"content-security-policy": b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    b"img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
}


class Bucket:
    """A token bucket that holds `per_minute` at most and is refilled at that rate. It may be overdrawn once, because
    what a reply costs is known after it."""

    def __init__(self, per_minute: float, clock: Clock = time.monotonic) -> None:
        self._most, self._rate, self._clock = per_minute, per_minute / 60, clock
        self._level, self._at = per_minute, clock()

    def wait(self) -> float:
        """Seconds until something may be taken; 0 now."""
        now = self._clock()
        self._level = min(self._most, self._level + (now - self._at) * self._rate)
        self._at = now
        return 0.0 if self._level >= 1 else (1 - self._level) / self._rate

    def take(self, amount: float) -> None:
        """Takes, also what is not there."""
        self._level -= amount


class Quotas:
    """Requests and tokens of each key."""

    def __init__(self, requests_per_minute: float, tokens_per_minute: float, clock: Clock = time.monotonic) -> None:
        self._sizes, self._clock = (requests_per_minute, tokens_per_minute), clock
        self._buckets: dict[str, tuple[Bucket, Bucket]] = {}

    def admit(self, key: str) -> None:
        """Counts one request; `ApiError` 429 if the key has had its share."""
        requests, tokens = self._of(key)
        for bucket, what in ((requests, "requests"), (tokens, "tokens")):
            if (wait := bucket.wait()) > 0:
                raise ApiError(429, f"this key has used up its {what} a minute", retry_after=wait)
        requests.take(1)

    def charge(self, key: str, tokens: int) -> None:
        """The tokens of a prompt and its reply."""
        self._of(key)[1].take(tokens)

    def _of(self, key: str) -> tuple[Bucket, Bucket]:
        if key not in self._buckets:
            first, second = self._sizes
            self._buckets[key] = Bucket(first, self._clock), Bucket(second, self._clock)
        return self._buckets[key]


class Places:
    """So many requests at once; one more is told to come back."""

    def __init__(self, places: int) -> None:
        self.taken, self._places = 0, places

    def __enter__(self) -> None:
        if self.taken >= self._places:
            raise ApiError(503, "the service is busy; try again", retry_after=2.0)
        self.taken += 1

    def __exit__(self, *_: object) -> None:
        self.taken -= 1


class Guard:
    """ASGI middleware in front of everything: the Host header, the size of the body, headers of every answer.

    A Host of another name means that a web page reached a local service through a name of its own (DNS rebinding).
    """

    def __init__(self, app: Any, hosts: Collection[str], body_bytes: int, answered: Callable[[str, int], None]) -> None:
        """`answered` is told the route (as it is declared, or "other") and the status of every answer."""
        self._app, self._hosts, self._most, self._answered = app, frozenset(hosts), body_bytes, answered

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # no web sockets here
        headers, send = dict(scope["headers"]), self._sending(scope, send)
        host = headers.get(b"host", b"").decode("latin-1").rsplit(":", 1)[0].strip("[]").lower()
        length = headers.get(b"content-length", b"0")
        if self._hosts and host not in self._hosts:
            await _refuse(send, ApiError(403, "this service is not addressed by this host name (allowed_hosts)"))
        elif not length.isdigit() or int(length) > self._most or (body := await self._body(receive)) is None:
            await _refuse(send, self._too_large())
        else:
            await self._app(scope, _again(body, receive), send)

    def _sending(self, scope: Any, send: Any) -> Any:
        """`send`, with `HEADERS`, and counted."""

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                self._answered(getattr(scope.get("route"), "path", "other"), message["status"])
                have = {name.lower() for name, _ in message.get("headers", ())}
                more = [(name, value) for name, value in HEADERS.items() if name not in have]
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        return sending

    async def _body(self, receive: Any) -> bytes | None:
        """All of it; None if it is too large, whatever its length was said to be."""
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self._most:
                return None
        return body

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than {self._most} bytes")


def _again(body: bytes, receive: Any) -> Any:
    """`body` once more; after it whatever comes, such as the client's going away."""
    given = False

    async def receiving() -> Any:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receiving


async def _refuse(send: Any, error: ApiError) -> None:
    body = json.dumps(error.body()).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
