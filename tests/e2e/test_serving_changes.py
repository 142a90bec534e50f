"""A service that changes while people talk to it: its engine dies, then it gets another model and another limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
from ray import serve

from rlhf_ray.cluster import connected
from rlhf_ray.config import PlacementConfig
from rlhf_ray.models.tiny import tiny_model
from rlhf_ray.serving.app import build, serving_config
from rlhf_ray.serving.state import ServiceState
from tests.ports import free_port

PATIENCE_S = 180
STREAMING = (1, 3)  # of four people


class Load:
    """Four people who ask one thing after another; two of them have their replies streamed."""

    def __init__(self, address: str, key: str) -> None:
        self.answers: list[tuple[bool, int, str]] = []
        """Streamed or not, status, body; in the order of their ends."""
        self.told_to_return = 0
        self._turns = [0] * 4
        self._address, self._headers = address, {"Authorization": f"Bearer {key}"}
        self._stop = threading.Event()
        self._people = [threading.Thread(target=self._ask, args=(number,), daemon=True) for number in range(4)]

    def __enter__(self) -> Load:
        for person in self._people:
            person.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for person in self._people:
            person.join(PATIENCE_S)

    def wait(self, more: int) -> list[tuple[bool, int, str]]:
        """The next `more` answers, and whatever came with them."""
        before, deadline = len(self.answers), time.monotonic() + PATIENCE_S
        while len(self.answers) < before + more:
            assert time.monotonic() < deadline, f"{len(self.answers) - before} answers in {PATIENCE_S} s"
            time.sleep(0.1)
        return self.answers[before:]

    def wait_for_all(self) -> None:
        """Until whatever was under way is over: everybody has had two more answers, and asked for one meanwhile."""
        wanted, deadline = [turn + 2 for turn in self._turns], time.monotonic() + PATIENCE_S
        while any(turn < least for turn, least in zip(self._turns, wanted, strict=True)):
            assert time.monotonic() < deadline, f"{self._turns} answers to each; {wanted} were expected by now"
            time.sleep(0.1)

    def post(self, **more: Any) -> httpx.Response:
        """One request of somebody else."""
        said = {"model": "policy", "messages": [{"role": "user", "content": "hello"}], **more}
        return httpx.post(self._address, json=said, headers=self._headers, timeout=PATIENCE_S)

    def _ask(self, number: int) -> None:
        streamed = number in STREAMING
        with httpx.Client(headers=self._headers, timeout=PATIENCE_S) as client:
            while not self._stop.is_set():
                said = [{"role": "user", "content": f"{number} {self._turns[number]}"}]
                body = {"model": "policy", "messages": said, "max_tokens": 24, "stream": streamed}
                answer = client.post(self._address, json=body)
                if answer.status_code == 503:  # as OpenAI's client does
                    self.told_to_return += 1
                    time.sleep(float(answer.headers["retry-after"]))
                    continue
                self.answers.append((streamed, answer.status_code, answer.text))
                self._turns[number] += 1


def _args(model: str, **limits: Any) -> dict[str, Any]:
    engine = {"context": 256, "kv_cache_gib": 0.25, "threads": 1, "cpus": 0.5}
    many = {"requests_per_minute": 10**6, "tokens_per_minute": 10**8}
    return {"model": model, "store": "serving.sqlite", "engine": engine, "limits": many | limits}


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of a Serve without applications, which is gone afterwards."""
    monkeypatch.chdir(tmp_path)
    port = free_port()
    with connected(PlacementConfig(), 6):
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        yield f"http://127.0.0.1:{port}/v1/chat/completions"
        serve.shutdown()


def _engines(model: str) -> list[str]:
    """The names of its replicas."""
    actors = ray.util.list_named_actors(all_namespaces=True)
    return [actor["name"] for actor in actors if f"#{model}_" in actor["name"]]


def _complete(streamed: bool, status: int, body: str) -> bool:
    return status == 200 and (body.endswith("data: [DONE]\n\n") if streamed else '"usage"' in body)


def test_a_dead_engine_and_a_new_model_lose_no_request(address: str, tmp_path: Path) -> None:
    """Whole replies are all there. A stream that had begun when its engine died ends early, in an error event; whoever
    came while one application took the place of the other may be told to come again."""
    for seed, name in enumerate(("one", "two")):
        tiny_model(tmp_path / name, seed=seed)
    key = ServiceState(serving_config(_args("one")).store_url).add_key(["chat"], "load")
    serve.run(build(_args("one")), name="rlhf-ray", route_prefix="/")
    with Load(address, key) as load:
        load.wait(20)
        (engine,) = _engines("one")
        ray.kill(ray.get_actor(engine, namespace="serve"))
        around = load.wait(40)
        torn = [body for streamed, status, body in around if streamed and not _complete(streamed, status, body)]
        assert len(torn) <= len(STREAMING)
        assert all("the engine failed in the middle" in body.strip().splitlines()[-1] for body in torn)
        before = len(load.answers)
        assert not load.told_to_return
        serve.run(build(_args("two", max_tokens=100)), name="rlhf-ray", route_prefix="/")
        assert load.told_to_return < len(load.answers) - before, "the old application answers until the new one does"
        load.wait_for_all()
        told = load.told_to_return
        load.wait(40)
        assert not [answer for answer in load.answers[before:] if not _complete(*answer)]
        assert load.told_to_return == told, "only who came in between"
        assert load.post(max_tokens=101).status_code == 400
        assert load.post(max_tokens=2).json()["id"].startswith("chatcmpl-two_")
    assert not [answer for answer in load.answers if not answer[0] and not _complete(*answer)]
    versions = [body.partition("chatcmpl-")[2].partition("_")[0] for _, _, body in load.answers]
    assert set(versions) == {"one", "two"} and versions == sorted(versions), "none of the old one after the new one"
    assert not _engines("one") and len(_engines("two")) == 1
