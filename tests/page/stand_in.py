"""A stand-in for the gateway, which serves the page and answers as it is told: for tests of the page alone."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles

import rlhf_ray
from rlhf_ray.serving.limits import HEADERS

PAGE = Path(rlhf_ray.__file__).parent / "serving" / "page"
KEY = "rk-0123456789ab-right"
NOTHING_SAID: dict[str, Any] = {
    "counts": {
        "thumb": {"up": 0, "down": 0},
        "rating": {"1": 0, "2": 0, "3": 0, "4": 0, "5": 0},
        "correction": 0,
        "flag": {},
        "preference": {"a": 0, "b": 0, "tie": 0, "both_bad": 0},
        "ranking": 0,
    },
    "annotators": 0,
    "agreement": {"alpha": None, "items": 0},
    "canary_vs_stable": None,
    "by_day": [],
    "policies": [],
}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is an error."""

    status: int
    message: str
    retry_after: int | None = None
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for a reply."""

    conversation: str | None
    side: str | None
    key: str
    body: dict[str, Any]


@dataclass
class StandIn:
    """What it does, to be set by a test, and what was asked of it."""

    address: str = ""
    keys: set[str] = field(default_factory=lambda: {KEY})
    refusals: dict[str, list[Refusal]] = field(default_factory=dict)
    """By path, for the next requests to it."""
    replies: dict[str | None, str] = field(default_factory=dict)
    """By side; None is the chat."""
    pause_s: float = 0.005
    hold_after: int | None = None
    """So many words are sent, and the others after `release`."""
    break_after: int | None = None
    """So many words are sent, and then the reply breaks; once."""
    break_how: Literal["event", "end", "cut"] = "event"
    """With an event that says so, with an end that looks right, or with the connection."""
    summary: dict[str, Any] = field(default_factory=lambda: NOTHING_SAID)
    asked: list[Asked] = field(default_factory=list)
    feedback: list[dict[str, Any]] = field(default_factory=list)
    preferences: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    """All that was requested, with the query."""
    refused: set[int] = field(default_factory=set)
    """Statuses of the errors that were sent."""
    away: bool = False
    """A test keeps requests from reaching it, or cuts connections."""
    cut: int = 0
    """Replies that the client did not wait for."""
    released: threading.Event = field(default_factory=threading.Event)

    def reset(self) -> None:
        """As new, at the same address."""
        self.released.set()
        self.__init__(self.address)  # type: ignore[misc]

    def release(self) -> None:
        """Lets replies that are held go on."""
        self.released.set()

    def refusal(self, path: str, key: str) -> Refusal | None:
        """Why a request is refused, if it is."""
        found = None
        if key not in self.keys:
            found = Refusal(401, "give a valid API key as `Authorization: Bearer KEY`")
        elif self.refusals.get(path):
            found = self.refusals[path].pop(0)
        if found is not None:
            self.refused.add(found.status)
        return found

    async def events(self, asked: Asked) -> AsyncIterator[str]:
        """A reply as OpenAI streams it, a word at a time."""
        reply_id, complete = f"chatcmpl-{asked.side or 'stable'}-{uuid4().hex}", False
        text = self.replies.get(asked.side, f"You said: {asked.body['messages'][-1]['content']}")
        released, broken, self.break_after = self.released, self.break_after, None
        try:
            yield _event({"id": reply_id, "choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
            for index, word in enumerate(text.split(" ")):
                while index == self.hold_after and not released.is_set():
                    await asyncio.sleep(0.01)
                if index == broken and self.break_how == "cut":
                    raise ConnectionError("cut, as it was told to")
                if index == broken and self.break_how == "end":
                    return
                if index == broken:
                    error = {"message": "the engine failed in the middle of a reply", "type": "server_error"}
                    yield _event({"error": error | {"param": None, "code": None}})
                    return
                await asyncio.sleep(self.pause_s)
                piece = {"content": word if index == 0 else f" {word}"}
                yield _event({"id": reply_id, "choices": [{"index": 0, "delta": piece, "finish_reason": None}]})
            yield _event({"id": reply_id, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
            complete = True
            yield "data: [DONE]\n\n"
        finally:
            self.cut += not complete and broken is None


@contextmanager
def stand_in() -> Iterator[StandIn]:
    """One that listens on a free port until the end of the block."""
    state = StandIn()
    config = uvicorn.Config(_app(state), port=0, log_level="critical", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        waiting = threading.Event()
        while not server.started:
            assert thread.is_alive(), "the stand-in did not start"
            waiting.wait(0.02)
        state.address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        yield state
    finally:
        state.release()
        server.should_exit = True
        thread.join(30)


class _Guarded:
    """Counts, refuses, and adds headers; Starlette's own kind of middleware would end a broken stream properly."""

    def __init__(self, app: Any, state: StandIn) -> None:
        self._app, self._state = app, state

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)  # type: ignore[no-any-return]

        async def sending(message: Any) -> None:
            if message["type"] == "http.response.start":
                more = list(HEADERS.items())
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        request = Request(scope)
        path, key = request.url.path, request.headers.get("authorization", "").removeprefix("Bearer ")
        self._state.paths.append(str(request.url).removeprefix(self._state.address))
        refusal = self._state.refusal(path, key) if path.startswith("/v1/") else None
        await (self._app if refusal is None else _refused(refusal))(scope, receive, sending)


def _app(state: StandIn) -> _Guarded:
    app = FastAPI()

    @app.get("/")
    async def page() -> Response:
        return FileResponse(PAGE / "index.html")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "policy", "object": "model"}]}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        headers = request.headers
        key = headers["authorization"].removeprefix("Bearer ")
        body = await request.json()
        asked = Asked(headers.get("x-conversation-id"), headers.get("x-arena-side"), key, body)
        state.asked.append(asked)
        return StreamingResponse(state.events(asked), media_type="text/event-stream")

    @app.post("/v1/feedback")
    async def feedback(request: Request) -> Response:
        return _kept(state.feedback, await request.json())

    @app.post("/v1/preferences")
    async def preferences(request: Request) -> Response:
        return _kept(state.preferences, await request.json())

    @app.get("/v1/feedback/summary")
    async def summary() -> dict[str, Any]:
        return state.summary

    app.mount("/page", StaticFiles(directory=PAGE))
    return _Guarded(app, state)


def _event(body: object) -> str:
    return f"data: {json.dumps(body)}\n\n"


def _kept(items: list[dict[str, Any]], item: dict[str, Any]) -> Response:
    items.append(item)
    return JSONResponse({"feedback_id": uuid4().hex, "duplicate": False}, 201)


def _refused(refusal: Refusal) -> Response:
    error = {"message": refusal.message, "type": "server_error", "param": refusal.param, "code": None}
    headers = {} if refusal.retry_after is None else {"Retry-After": str(refusal.retry_after)}
    return JSONResponse({"error": error}, refusal.status, headers)
