"""One gateway's part of a service: who may ask, which policy answers, what is kept of it. Knows ports only."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from rlhf_ray.errors import UserError
from rlhf_ray.serving.config import ServingConfig
from rlhf_ray.serving.keys import Key, Keyring
from rlhf_ray.serving.limits import Places, Quotas
from rlhf_ray.serving.meters import Meters
from rlhf_ray.serving.protocol import ApiError, ChatRequest
from rlhf_ray.serving.records import Reply
from rlhf_ray.serving.replies import EngineGone, Engines, Finished, Part, Piece, Refused, Whole, Writer
from rlhf_ray.serving.state import ServiceState
from rlhf_ray.serving.traffic import Policy, Traffic

_LOG = logging.getLogger(__name__)
_ATTEMPTS = 3


class Service:
    """Answers what the routes of `gateway.make_app` ask."""

    def __init__(
        self,
        config: ServingConfig,
        policies: Sequence[Policy],
        state: ServiceState,
        traffic: Traffic,
        engines: Engines,
        writer: Writer,
        meters: Meters,
    ) -> None:
        """`traffic` names versions of `policies`."""
        self.config, self.writer, self.meters, self.began = config, writer, meters, time.time()
        self.changes = 0
        self._policies = {policy.version: policy for policy in policies}
        self._state, self._traffic, self._engines = state, traffic, engines
        self._keyring = Keyring(state.keys())
        limits = config.limits
        self._quotas = Quotas(limits.requests_per_minute, limits.tokens_per_minute)
        self._places = Places(limits.in_flight)
        self._keeping: set[asyncio.Future[None]] = set()

    @property
    def hosts(self) -> frozenset[str]:
        """The host names under which the service may be addressed; any, if it listens on all interfaces without
        being told its names."""
        names = {name.lower() for name in self.config.allowed_hosts}
        if self.config.host in ("0.0.0.0", "::"):
            return frozenset(names)
        local = {"localhost", "127.0.0.1", "::1"} if self.config.host in ("127.0.0.1", "localhost", "::1") else set()
        return frozenset(names | local | {self.config.host.lower()})

    def authorised(self, header: str, scope: str) -> Key:
        """The key in an Authorization header; `ApiError` if there is none or it does not open `scope`."""
        kind, _, text = header.partition(" ")
        key = self._keyring.find(text.strip()) if kind.lower() == "bearer" else None
        if key is None:
            raise ApiError(401, "give a valid API key as `Authorization: Bearer KEY`")
        if scope not in key.scopes:
            raise ApiError(403, f"this key does not open {scope}; it has {', '.join(sorted(key.scopes))}")
        return key

    async def chat(
        self, key: Key, request: ChatRequest, conversation: str | None, side: str | None
    ) -> AsyncIterator[Any]:
        """The reply: server-sent events, or one body. What is refused raises `ApiError` at once, before anything is
        sent; later errors come out of the iterator."""
        request.check(self.config.limits, self.config.name)
        self._quotas.admit(key.id)
        version, conversation = self._version(key, request, conversation, side)
        reply = self._reply(key, version, request, conversation)
        first = await anext(reply)

        async def whole() -> AsyncIterator[Any]:
            yield first
            async for part in reply:
                yield part

        return whole()

    def policies(self) -> dict[str, Any]:
        """The body of `GET /admin/policies`."""
        traffic = self._traffic

        def shown(version: str | None) -> dict[str, str] | None:
            if version is None:
                return None
            policy = self._policies[version]
            return {"version": version, "source": policy.source, "gate": policy.gate}

        names = {"stable": traffic.stable, "canary": traffic.canary, "previous": traffic.previous}
        return {name: shown(version) for name, version in names.items()} | {"weight": traffic.weight}

    async def change_traffic(self, change: Callable[[Traffic], Traffic]) -> None:
        """Requests from now on follow it; those under way end where they are. `ApiError` 409 if it cannot be."""
        try:
            self._traffic = change(self._traffic)
        except UserError as error:
            raise ApiError(409, str(error)) from None
        self.changes += 1
        await asyncio.to_thread(self._state.set_traffic, self.config.name, self._traffic)

    async def forget_unrated(self) -> None:
        """Deletes the text of replies that nobody rated in time."""
        await self.writer.forget(time.time() - 60 * self.config.keep_unrated_minutes)

    def refresh(self, keys: Sequence[Key], traffic: Traffic | None, changes: int) -> None:
        """What other processes changed, read when this one had made `changes`: what it has changed since is newer.
        There is no traffic for it if another deployment has taken its name."""
        self._keyring = Keyring(keys)
        if traffic is not None and changes == self.changes:
            self._traffic = traffic

    def _version(self, key: Key, request: ChatRequest, conversation: str | None, side: str | None) -> tuple[str, str]:
        """Who answers, and the conversation: one without an id is known by its key and its first user message."""
        if conversation is None:
            first = next(message.text for message in request.messages if message.role == "user")
            conversation = hashlib.sha256(f"{key.id}:{first}".encode("utf-8", "surrogateescape")).hexdigest()
        if side is None:
            return self._traffic.version_for(conversation), conversation
        turn = sum(message.role == "user" for message in request.messages)
        return self._traffic.version_of_side(side, conversation, turn), conversation

    async def _parts(self, version: str, request: ChatRequest) -> AsyncIterator[tuple[str, Part]]:
        """The reply's id and the engine's parts. An engine that dies before its first part is asked again: Serve
        sends the request to another replica, or to the one that takes its place."""
        body, seconds = request.for_engine(self.config.limits), self.config.limits.request_s
        until = asyncio.get_running_loop().time() + seconds
        for attempt in range(1, _ATTEMPTS + 1):
            reply_id, began = f"{version}-{uuid.uuid4().hex}", False
            try:
                async for part in _in_time(self._engines.reply(version, reply_id, body), until):
                    if isinstance(part, Refused):
                        raise ApiError(part.status, part.message)
                    began = True
                    yield f"chatcmpl-{reply_id}", part
                return
            except ApiError:
                raise
            except TimeoutError:
                raise ApiError(504, f"the reply took more than {seconds:g} s", retry_after=10.0) from None
            except EngineGone:
                raise ApiError(503, "the service is changing; try again", retry_after=1.0) from None
            except Exception as error:
                _LOG.warning("engine of %s failed (attempt %d): %s", version, attempt, type(error).__name__)
                if began:
                    self.meters.count("torn_replies", policy=version)
                if began or attempt == _ATTEMPTS:
                    raise ApiError(503, "the engine failed in the middle of a reply", retry_after=5.0) from error

    async def _reply(self, key: Key, version: str, request: ChatRequest, conversation: str) -> AsyncIterator[Any]:
        """Events of a stream, or one body. The reply is given to the writer before its end is sent: feedback that comes
        later, through this gateway, is written after it."""
        with self._places:
            asked, first = time.monotonic(), None
            whole: Mapping[str, Any] | None = None
            async for reply_id, part in self._parts(version, request):
                if isinstance(part, Piece):
                    first = first or time.monotonic()
                    yield part.events
                elif isinstance(part, Whole):
                    whole = part.body
                elif isinstance(part, Finished):
                    self._quotas.charge(key.id, part.prompt_tokens + part.completion_tokens)
                    self._measure(version, asked, first, part)
                    self._keep(reply_id, version, request, conversation, part)
                    if request.stream_options is not None and request.stream_options.include_usage:
                        yield _usage(reply_id, self.config.name, part)
            if whole is not None:
                yield whole

    def _measure(self, version: str, asked: float, first: float | None, end: Finished) -> None:
        """The tokens of a reply, and its times; `first` is that of its first token, if it was streamed."""
        now = time.monotonic()
        self.meters.count("tokens", end.prompt_tokens, policy=version, kind="prompt")
        self.meters.count("tokens", end.completion_tokens, policy=version, kind="completion")
        self.meters.observe("reply_seconds", now - asked, policy=version)
        if first is not None:
            self.meters.observe("first_token_seconds", first - asked, policy=version)
            if end.completion_tokens > 1:
                self.meters.observe("token_seconds", (now - first) / (end.completion_tokens - 1), policy=version)

    def _keep(self, reply_id: str, version: str, request: ChatRequest, conversation: str, end: Finished) -> None:
        """Does not wait for the disk: a reply is not lost because the writer is, it can only not be rated then."""
        reply = Reply(
            id=reply_id,
            policy_version=version,
            model_source=self._policies[version].source,
            role="canary" if version == self._traffic.canary else "stable",
            conversation=conversation,
            messages=json.dumps([message.plain() for message in request.messages], ensure_ascii=False),
            text=end.text,
            finish_reason=end.finish_reason,
            created=time.time(),
        )
        keeping = asyncio.ensure_future(self.writer.keep_reply(reply))
        self._keeping.add(keeping)
        keeping.add_done_callback(self._kept)

    def _kept(self, keeping: asyncio.Future[None]) -> None:
        self._keeping.discard(keeping)
        if not keeping.cancelled() and (error := keeping.exception()) is not None:
            _LOG.warning("a reply was not kept and cannot be rated: %s", type(error).__name__)


async def _in_time(parts: AsyncIterator[Part], until: float) -> AsyncIterator[Part]:
    """The parts that come before `until`, in the loop's time; then `TimeoutError`."""
    while True:
        try:
            async with asyncio.timeout_at(until):
                part = await anext(parts)
        except StopAsyncIteration:
            return
        yield part


def _usage(reply_id: str, model: str, end: Finished) -> str:
    body = {
        "id": reply_id,
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": model,
        "choices": [],
        "usage": {
            "prompt_tokens": end.prompt_tokens,
            "completion_tokens": end.completion_tokens,
            "total_tokens": end.prompt_tokens + end.completion_tokens,
        },
    }
    return f"data: {json.dumps(body)}\n\n"
