"""The gateway over HTTP with scripted engines: what is answered, what is refused, and that nothing is lost."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import pytest
from serving_world import CANARY, STABLE, ServingWorld, chat

from rlhf_ray.serving.replies import Refused

T = TypeVar("T")
CHAT = "/v1/chat/completions"


@pytest.fixture
def world(tmp_path: Path) -> ServingWorld:
    return ServingWorld(tmp_path)


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


async def _post(world: ServingWorld, path: str, body: object, key: str | None = "all", **headers: str) -> Any:
    async with world.client(key) as client:
        return await client.post(path, json=body, headers=headers)


def _error(answer: Any, status: int, words: str, param: str | None = None) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert words in error["message"], error
    assert error["param"] == param and set(error) == {"message", "type", "param", "code"}


def test_a_reply_has_an_id_with_its_policy_and_can_be_rated(world: ServingWorld) -> None:
    answer = run(_post(world, CHAT, chat()))
    body = answer.json()
    assert body["id"].startswith(f"chatcmpl-{STABLE.version}-") and len(body["id"].rsplit("-", 1)[1]) == 32
    assert body["choices"][0]["message"]["content"] == "demo_1 saw 1"
    given = {"reply_id": body["id"], "kind": "thumb", "value": "up", "idempotency_key": "k1"}
    first, again = (run(_post(world, "/v1/feedback", given, key="feedback")) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == {"feedback_id": again.json()["feedback_id"], "duplicate": False}
    assert again.json()["duplicate"] is True


def test_a_stream_ends_with_usage_and_done(world: ServingWorld) -> None:
    answer = run(_post(world, CHAT, chat(stream=True, stream_options={"include_usage": True})))
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert [json.loads(event)["said"] for event in events[:3]] == ["demo_1", "saw", "1"]
    usage = json.loads(events[3])
    assert usage["choices"] == [] and usage["usage"] == {
        "prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10,
    }  # fmt: skip
    assert usage["id"] == json.loads(events[0])["id"] and events[4:] == ["[DONE]"]


@pytest.mark.parametrize("stream", [False, True])
def test_who_comes_while_another_policy_takes_over_is_told_to_come_again(world: ServingWorld, stream: bool) -> None:
    world.engines.gone = True
    answer = run(_post(world, CHAT, chat(stream=stream)))
    _error(answer, 503, "the service is changing")
    assert answer.headers["retry-after"] and len(world.engines.seen) == 1


def test_a_stream_that_breaks_ends_in_an_error_event_and_one_that_has_not_begun_goes_to_another_replica(
    world: ServingWorld,
) -> None:
    world.engines.deaths = 2
    assert run(_post(world, CHAT, chat())).status_code == 200 and len(world.engines.seen) == 3
    world.engines.deaths = 3
    _error(run(_post(world, CHAT, chat())), 503, "the engine failed")
    world.engines.breaks = True
    answer = run(_post(world, CHAT, chat(stream=True)))
    assert answer.status_code == 200 and "[DONE]" not in answer.text
    last = [line for line in answer.text.splitlines() if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == "server_error"


@pytest.mark.parametrize("parts", [0, 2])
def test_a_reply_that_takes_too_long_is_ended(tmp_path: Path, parts: int) -> None:
    world = ServingWorld(tmp_path, limits={"request_s": 0.3})

    async def slow(*arguments: Any) -> Any:
        given = 0
        async for part in type(world.engines).reply(world.engines, *arguments):
            if given == parts:
                await asyncio.sleep(60)
            given += 1
            yield part

    world.engines.reply = slow  # type: ignore[method-assign]
    answer = run(_post(world, CHAT, chat(stream=True)))
    if parts:
        assert answer.text.count("data: ") == 3 and "took more than 0.3 s" in answer.text.splitlines()[-2]
    else:
        _error(answer, 504, "took more than 0.3 s")
    assert world.service._places.taken == 0  # type: ignore[attr-defined]


def test_what_the_engine_refuses_is_an_error_of_the_request(world: ServingWorld) -> None:
    world.engines.refuses = Refused(400, "the conversation has 9000 tokens")
    for stream in (False, True):
        _error(run(_post(world, CHAT, chat(stream=stream))), 400, "9000 tokens")
    assert world.service._places.taken == 0  # type: ignore[attr-defined]  # no place is lost


def test_a_lost_writer_loses_no_reply(world: ServingWorld) -> None:
    world.writer.broken = True
    assert run(_post(world, CHAT, chat())).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "key", "status"),
    [
        ("POST", CHAT, None, 401), ("POST", CHAT, "feedback", 403), ("GET", "/v1/models", None, 401),
        ("POST", "/v1/feedback", "chat", 403), ("POST", "/v1/preferences", None, 401),
        ("GET", "/v1/feedback/summary", "chat", 403), ("GET", "/admin/policies", "chat", 403),
        ("POST", "/admin/promote", "feedback", 403), ("POST", "/admin/rollback", None, 401),
        ("DELETE", "/admin/replies/x", "chat", 403), ("GET", "/docs", "all", 404), ("GET", "/openapi.json", "all", 404),
        ("DELETE", CHAT, "all", 405), ("PUT", "/admin/promote", None, 405), ("GET", "/health", None, 200),
    ],
)  # fmt: skip
def test_every_route_needs_its_scope(world: ServingWorld, method: str, path: str, key: str | None, status: int) -> None:
    async def ask() -> Any:
        async with world.client(key) as client:
            return await client.request(method, path, json=chat() if method == "POST" else None)

    answer = run(ask())
    assert answer.status_code == status
    if status >= 400:
        assert answer.json()["error"]["message"]
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")


def test_a_wrong_key_is_no_key(world: ServingWorld) -> None:
    good = world.keys["all"]
    wrong = [
        "",
        "Bearer",
        f"Bearer {good}x",
        f"Bearer {good[:-1]}",
        f"Basic {good}",
        "Bearer rk-" + "0" * 77,
        "Bearer ü",
    ]

    async def ask(header: str, body: bytes) -> Any:
        async with world.client(None) as client:
            return await client.post(CHAT, content=body, headers={"Authorization": header.encode("latin-1")})

    for header, body in itertools.product(wrong, (json.dumps(chat()).encode(), b"{ not read before the key")):
        answer = run(ask(header, body))
        _error(answer, 401, "give a valid API key")
        assert answer.headers["www-authenticate"] == "Bearer"
    assert not world.engines.seen


@pytest.mark.parametrize(
    ("body", "status", "words", "param"),
    [
        (chat(model="gpt-4"), 404, "there is no model 'gpt-4'", "model"),
        ({"model": "policy", "messages": []}, 400, "messages", "messages"),
        (chat(chat_template="{{ 1 }}"), 400, "not supported here", "chat_template"),
        (chat(prompt_embeds="AAAA"), 400, "not supported here", "prompt_embeds"),
        (chat(logit_bias={"1": 2}), 400, "not supported here", "logit_bias"),
        (chat(max_tokens=100_000), 400, "at most 512", "max_tokens"),
        (chat(max_tokens=0), 400, "greater than 0", "max_tokens"),
        (chat(n=2), 400, "Input should be 1", "n"),
        (chat(temperature=3), 400, "less than or equal to 2", "temperature"),
        (chat("x" * 40_000), 400, "40000 characters: at most 32000", "messages"),
        (chat("   "), 400, "the last message is empty", "messages"),
        ({"model": "policy", "messages": [{"role": "user", "content": "a"}] * 65}, 400, "65 messages", "messages"),
        ({"model": "policy", "messages": [{"role": "tool", "content": "a"}]}, 400, "'system'", "messages.0.role"),
        ({"model": "policy", "messages": [{"role": "assistant", "content": "a"}]}, 400, "must be the user's", None),
        ([1], 400, "not a JSON object", None),
    ],
)  # fmt: skip
def test_a_bad_request_is_told_what_is_wrong(
    world: ServingWorld, body: object, status: int, words: str, param: str | None
) -> None:
    _error(run(_post(world, CHAT, body)), status, words, param)
    assert not world.engines.seen


def test_a_body_that_is_no_json_or_too_large_is_refused(world: ServingWorld) -> None:
    async def send(content: Any, **headers: str) -> Any:
        async with world.client() as client:
            return await client.post(CHAT, content=content, headers={"content-type": "application/json", **headers})

    async def endless() -> Any:
        for _ in range(40):
            yield b"x" * 65536

    assert run(send(b"{not json")).status_code == 400
    assert run(send(b"[" * 900_000)).status_code == 400
    _error(run(send(b"x" * (1 << 20) + b"x")), 413, "larger than 1048576 bytes")
    _error(run(send(endless())), 413, "larger than")
    assert run(send(b"{}", **{"content-length": "-5"})).status_code in (400, 413)
    assert not world.engines.seen


def test_another_host_name_is_refused(world: ServingWorld) -> None:
    """A web page that names this address as its own host (DNS rebinding) gets nothing."""

    async def ask(host: str) -> Any:
        async with world.client("all", host) as client:
            return await client.post(CHAT, json=chat())

    assert run(ask("localhost:8000")).status_code == 200 and run(ask("[::1]:8000")).status_code == 200
    _error(run(ask("evil.example:8000")), 403, "not addressed by this host name")


def test_limits_tell_when_to_come_back(tmp_path: Path) -> None:
    world = ServingWorld(tmp_path, limits={"requests_per_minute": 2})
    answers = [run(_post(world, CHAT, chat())) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert int(answers[2].headers["retry-after"]) >= 1
    assert run(_post(world, CHAT, chat(), key="chat")).status_code == 200, "another key has a share of its own"
    world = ServingWorld(tmp_path / "tokens", limits={"tokens_per_minute": 15})
    answers = [run(_post(world, CHAT, chat())) for _ in range(3)]  # 10 tokens each: the second one overdraws
    assert [answer.status_code for answer in answers] == [200, 200, 429]


def test_a_busy_service_says_so_and_a_place_is_free_again_afterwards(tmp_path: Path) -> None:
    world = ServingWorld(tmp_path, limits={"in_flight": 1})
    gate = asyncio.Event()

    async def slow(*arguments: Any) -> Any:
        await gate.wait()
        async for part in type(world.engines).reply(world.engines, *arguments):
            yield part

    async def both() -> list[Any]:
        async with world.client() as client:
            first = asyncio.create_task(client.post(CHAT, json=chat()))
            while not world.service._places.taken and not first.done():  # type: ignore[attr-defined]
                await asyncio.sleep(0)
            second = await client.post(CHAT, json=chat())
            gate.set()
            return [await first, second, await client.post(CHAT, json=chat())]

    world.engines.reply = slow  # type: ignore[method-assign]
    answers = run(both())
    assert [answer.status_code for answer in answers] == [200, 503, 200]
    assert answers[1].headers["retry-after"]


def test_a_canary_gets_its_share_of_conversations_and_keeps_each(tmp_path: Path) -> None:
    world = ServingWorld(tmp_path, canary=True, weight=0.3, limits={"requests_per_minute": 10_000})

    async def versions(conversation: str) -> set[str]:
        for _ in range(2):
            await _post(world, CHAT, chat(), **{"X-Conversation-Id": conversation})
        return {version for version, _ in world.engines.seen[-2:]}

    async def all_of_them() -> list[set[str]]:
        return [await versions(f"c{i}") for i in range(100)]

    found = run(all_of_them())
    assert all(len(each) == 1 for each in found), "sticky"
    share = sum(each == {CANARY.version} for each in found) / 100
    assert 0.15 < share < 0.45, "0.3 within three standard deviations"


def test_promote_and_roll_back(tmp_path: Path) -> None:
    world = ServingWorld(tmp_path, canary=True, weight=0.1)

    def told(path: str, method: str = "POST") -> Any:
        async def ask() -> Any:
            async with world.client("admin") as client:
                return await client.request(method, f"/admin/{path}")

        return run(ask())

    before = told("policies", "GET").json()
    assert (before["stable"]["version"], before["canary"]["version"], before["weight"]) == ("demo_1", "dpo_2", 0.1)
    after = told("promote").json()
    assert (after["stable"]["version"], after["canary"], after["previous"]["version"]) == ("dpo_2", None, "demo_1")
    assert run(_post(world, CHAT, chat())).json()["choices"][0]["message"]["content"].startswith("dpo_2")
    _error(told("promote"), 409, "there is no canary to promote")
    assert told("rollback").json()["stable"]["version"] == "demo_1"
    stale = replace(world.service._traffic, stable="dpo_2", canary=None)  # type: ignore[attr-defined]
    seen = world.service.changes
    told("rollback")
    world.service.refresh(world.state.keys(), stale, seen)
    assert world.service.policies()["stable"]["version"] == "dpo_2" and world.service.changes == seen + 1
    told("rollback")
    world.service.refresh(world.state.keys(), stale, seen)
    assert world.service.policies()["stable"]["version"] == "demo_1", "what was read before a change is older"
    start = world.service._traffic  # type: ignore[attr-defined]
    assert world.state.start("policy", "first", stale) == start, "a gateway that starts again goes on with it"


def test_blind_sides_are_the_two_policies_in_an_order_that_the_client_does_not_know(tmp_path: Path) -> None:
    world = ServingWorld(tmp_path, canary=True, limits={"requests_per_minute": 10_000})

    async def sides(conversation: str) -> tuple[str, str]:
        for side in ("a", "b"):
            await _post(world, CHAT, chat(), **{"X-Conversation-Id": conversation, "X-Arena-Side": side})
        return tuple(version for version, _ in world.engines.seen[-2:])  # type: ignore[return-value]

    async def all_of_them() -> list[tuple[str, str]]:
        return [await sides(f"c{i}") for i in range(60)]

    found = run(all_of_them())
    assert {frozenset(pair) for pair in found} == {frozenset({"demo_1", "dpo_2"})}
    assert 15 < sum(pair[0] == "demo_1" for pair in found) < 45


@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/v1/feedback", {"reply_id": "chatcmpl-x-0", "kind": "thumb", "value": "up"}, 404, "chatcmpl-x-0"),
        ("/v1/feedback", {"reply_id": "REPLY", "kind": "rating", "value": 6}, 400, "5"),
        ("/v1/feedback", {"reply_id": "REPLY", "kind": "rating", "value": True}, 400, ""),
        ("/v1/feedback", {"reply_id": "REPLY", "kind": "thumb", "value": "sideways"}, 400, "up"),
        ("/v1/feedback", {"reply_id": "REPLY", "kind": "correction", "value": "  "}, 400, ""),
        ("/v1/feedback", {"reply_id": "REPLY", "kind": "love", "value": 1}, 400, "kind"),
        ("/v1/feedback", {"reply_id": "REPLY", "kind": "thumb", "value": "up", "admin": True}, 400, "admin"),
        ("/v1/preferences", {"reply_ids": ["REPLY"], "choice": "a"}, 400, ""),
        ("/v1/preferences", {"reply_ids": ["REPLY", "nowhere"], "choice": "a"}, 404, "nowhere"),
        ("/v1/preferences", {"reply_ids": ["REPLY", "REPLY"], "choice": "a"}, 400, ""),
    ],
)  # fmt: skip
def test_bad_feedback_is_refused_and_nothing_is_stored(
    world: ServingWorld, path: str, body: dict[str, Any], status: int, words: str
) -> None:
    reply = run(_post(world, CHAT, chat())).json()["id"]
    sent = json.loads(json.dumps(body).replace("REPLY", reply))
    answer = run(_post(world, path, sent))
    assert answer.status_code == status and words in answer.json()["error"]["message"], answer.text
    assert list(world.writer.store.export_rows(None)) == []


def test_the_page_needs_no_key_and_nothing_else_is_served_beside_it(world: ServingWorld) -> None:
    async def ask(path: str) -> Any:
        async with world.client(None) as client:
            return await client.get(path)

    page = run(ask("/"))
    assert page.status_code == 200 and "<html" in page.text
    assert "script-src 'self'" in page.headers["content-security-policy"]
    assert run(ask("/page/app.js")).status_code == 200
    assert run(ask("/page/..%2Fconfig.py")).status_code == 404 and run(ask("/page/")).status_code == 404
