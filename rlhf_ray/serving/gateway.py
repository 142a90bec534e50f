"""The web service: OpenAI's chat API, feedback, administration and the page. Each route names the scope it needs."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from rlhf_ray.serving.keys import Key
from rlhf_ray.serving.limits import Guard
from rlhf_ray.serving.protocol import ApiError, ChatRequest
from rlhf_ray.serving.records import DifferentPrompts, FeedbackItem, PreferenceItem, UnknownReply, utc_seconds
from rlhf_ray.serving.service import Service

PAGE = Path(__file__).with_name("page")
Conversation = Annotated[str | None, Header(alias="X-Conversation-Id", max_length=128)]
Side = Annotated[str | None, Header(alias="X-Arena-Side", pattern="^[ab]$")]


def make_app(service: Service) -> FastAPI:
    """The ASGI application of one gateway."""
    app = FastAPI(title="rlhf-ray", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(
        Guard,
        hosts=service.hosts,
        body_bytes=service.config.limits.body_bytes,
        answered=lambda route, status: service.meters.count("requests", route=route, status=str(status)),
    )
    _add_errors(app)
    _add_chat(app, service)
    _add_feedback(app, service)
    _add_admin(app, service)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/")
    async def page() -> Response:
        return Response((PAGE / "index.html").read_bytes(), media_type="text/html; charset=utf-8")

    app.mount("/page", StaticFiles(directory=PAGE))
    return app


def _allowed(service: Service, scope: str) -> Callable[[Request], Key]:
    """The dependency of a route: the key of the request, which opens `scope`."""

    def key(request: Request) -> Key:
        return service.authorised(request.headers.get("authorization", ""), scope)

    return key


def _add_chat(app: FastAPI, service: Service) -> None:
    chatting = Depends(_allowed(service, "chat"))

    @app.get("/v1/models")
    async def models(key: Key = chatting) -> dict[str, Any]:
        model = {"id": service.config.name, "object": "model", "created": int(service.began), "owned_by": "rlhf-ray"}
        return {"object": "list", "data": [model]}

    @app.post("/v1/chat/completions")
    async def chat(
        sent: Request, conversation: Conversation = None, side: Side = None, key: Key = chatting
    ) -> Response:
        request = _checked(ChatRequest, await _body(sent))  # not by FastAPI: it reads the body before it asks for a key
        reply = await service.chat(key, request, conversation, side)
        if request.stream:
            return StreamingResponse(_events(reply), media_type="text/event-stream")
        return JSONResponse([part async for part in reply][-1])


async def _events(reply: AsyncIterator[Any]) -> AsyncIterator[str]:
    """A stream that breaks ends in an event that says so: the status line has been sent long ago."""
    try:
        async for events in reply:
            yield events
        yield "data: [DONE]\n\n"
    except ApiError as error:
        yield f"data: {json.dumps(error.body())}\n\n"


def _add_feedback(app: FastAPI, service: Service) -> None:
    judging = Depends(_allowed(service, "feedback"))

    @app.post("/v1/feedback")
    async def feedback(request: Request, key: Key = judging) -> Response:
        item = _item(FeedbackItem, await _body(request), key)
        return _added(service, item.kind, await service.writer.add_feedback(item))

    @app.post("/v1/preferences")
    async def preferences(request: Request, key: Key = judging) -> Response:
        item = _item(PreferenceItem, await _body(request), key)
        kind = "preference" if item.ranks is None else "ranking"
        return _added(service, kind, await service.writer.add_preference(item))

    @app.get("/v1/feedback/summary")
    async def summary(since: str | None = None, key: Key = judging) -> dict[str, Any]:
        try:
            moment = None if since is None else utc_seconds(since)
        except ValueError as error:
            raise ApiError(400, f"since: {error}", "since") from None
        return dict(await service.writer.summary(moment))


def _add_admin(app: FastAPI, service: Service) -> None:
    admin = Depends(_allowed(service, "admin"))

    @app.get("/admin/policies")
    async def policies(key: Key = admin) -> dict[str, Any]:
        return service.policies()

    @app.post("/admin/promote")
    async def promote(key: Key = admin) -> dict[str, Any]:
        await service.change_traffic(lambda traffic: traffic.promoted())
        return service.policies()

    @app.post("/admin/rollback")
    async def rollback(key: Key = admin) -> dict[str, Any]:
        await service.change_traffic(lambda traffic: traffic.rolled_back())
        return service.policies()

    @app.delete("/admin/replies/{reply_id}")
    async def delete(reply_id: str, key: Key = admin) -> dict[str, int]:
        return {"deleted": await service.writer.delete(reply_id)}


def _added(service: Service, kind: str, added: Any) -> Response:
    if not added.duplicate:
        service.meters.count("feedback", kind=kind)
    body = {"feedback_id": added.id, "duplicate": added.duplicate}
    return JSONResponse(body, status_code=200 if added.duplicate else 201)


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError):
        raise ApiError(400, "the body is not JSON") from None
    if not isinstance(body, dict):
        raise ApiError(400, "the body is not a JSON object")
    return body


def _item(model: type[Any], body: dict[str, Any], key: Key) -> Any:
    return _checked(model, {**body, "annotator": body.get("annotator") or key.id})


def _checked(model: type[Any], body: dict[str, Any]) -> Any:
    try:
        return model.model_validate(body)
    except ValidationError as error:
        raise _explained(error.errors()) from None


def _explained(problems: Any) -> ApiError:
    first = problems[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "this is not supported here; leave it out"
    return ApiError(400, f"{place}: {message}" if place else message, place or None)


def _add_errors(app: FastAPI) -> None:
    """Every error has OpenAI's body."""

    def answer(error: ApiError) -> JSONResponse:
        headers = {} if error.retry_after is None else {"retry-after": str(max(1, round(error.retry_after + 0.5)))}
        if error.status == 401:
            headers["www-authenticate"] = "Bearer"
        return JSONResponse(error.body(), error.status, headers)

    @app.exception_handler(ApiError)
    async def known(_: Request, error: ApiError) -> JSONResponse:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return answer(_explained(error.errors()))

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> JSONResponse:
        return answer(ApiError(error.status_code, str(error.detail)))

    @app.exception_handler(UnknownReply)
    async def unknown(_: Request, error: UnknownReply) -> JSONResponse:
        return answer(ApiError(404, error.message, "reply_id"))

    @app.exception_handler(DifferentPrompts)
    async def different(_: Request, error: DifferentPrompts) -> JSONResponse:
        return answer(ApiError(400, error.message, "reply_ids"))

    @app.exception_handler(Exception)
    async def other(_: Request, error: Exception) -> JSONResponse:
        return answer(ApiError(500, "something went wrong in the service; its log says what"))
