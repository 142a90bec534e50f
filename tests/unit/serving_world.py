"""A service in memory: scripted engines, the real store, and a client without a network."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from rlhf_ray.serving.config import LimitsConfig, ServingConfig
from rlhf_ray.serving.gateway import make_app
from rlhf_ray.serving.meters import COUNTERS, Counted, Timed
from rlhf_ray.serving.replies import EngineGone, Finished, Part, Piece, Refused, Whole
from rlhf_ray.serving.service import Service
from rlhf_ray.serving.state import ServiceState
from rlhf_ray.serving.store import FeedbackStore
from rlhf_ray.serving.traffic import Policy, Traffic

STABLE = Policy("demo_1", "runs/demo", "/models/demo", "passed")
CANARY = Policy("dpo_2", "runs/dpo", "/models/dpo", "passed")


@dataclass
class ScriptedEngines:
    """Says the version and how many messages it saw; `deaths` first parts fail, `breaks` break after the first one."""

    seen: list[tuple[str, Mapping[str, Any]]] = field(default_factory=list)
    deaths: int = 0
    breaks: bool = False
    refuses: Refused | None = None
    gone: bool = False

    async def reply(self, version: str, reply_id: str, body: Mapping[str, Any]) -> AsyncIterator[Part]:
        """As the port says."""
        self.seen.append((version, body))
        if self.deaths:
            self.deaths -= 1
            raise ConnectionError("the replica died")
        if self.gone:
            raise EngineGone(version)
        if self.refuses is not None:
            yield self.refuses
            return
        text = f"{version} saw {len(body['messages'])}"
        if body["stream"]:
            for word in text.split():
                yield Piece(f'data: {{"id": "chatcmpl-{reply_id}", "said": "{word}"}}\n\n')
                if self.breaks:
                    raise ConnectionError("the replica died")
        else:
            yield Whole({"id": f"chatcmpl-{reply_id}", "choices": [{"message": {"content": text}}]})
        yield Finished(text, "stop", 7, 3)


class StoreWriter:
    """The store without an actor in front of it."""

    def __init__(self, store: FeedbackStore) -> None:
        self.store, self.broken = store, False

    async def keep_reply(self, reply: Any) -> None:
        if self.broken:
            raise ConnectionError("the writer died")
        self.store.keep_reply(reply)

    async def add_feedback(self, item: Any) -> Any:
        return self.store.add_feedback(item)

    async def add_preference(self, item: Any) -> Any:
        return self.store.add_preference(item)

    async def delete(self, reply_id: str) -> int:
        return self.store.delete(reply_id)

    async def forget(self, older_than: float) -> int:
        return self.store.forget(older_than)

    async def summary(self, since: float | None) -> Mapping[str, Any]:
        return self.store.summary(since)


@dataclass
class Counts:
    """`Meters` that can be read: amounts by name and labels, times by name."""

    amounts: Counter[tuple[str, ...]] = field(default_factory=Counter)
    times: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def count(self, name: Counted, amount: int = 1, **labels: str) -> None:
        assert set(labels) == set(COUNTERS[name][1])
        self.amounts[(name, *labels.values())] += amount

    def observe(self, name: Timed, seconds: float, policy: str) -> None:
        assert policy in (STABLE.version, CANARY.version)
        self.times[name].append(seconds)


class ServingWorld:
    """One service and what stands around it. `keys` has a key of each scope and one of all (`all`)."""

    def __init__(self, folder: Path, canary: bool = False, weight: float = 0.5, **settings: Any) -> None:
        url = f"sqlite:///{folder / 'serving.sqlite'}"
        limits = LimitsConfig(**settings.pop("limits", {}))
        self.config = ServingConfig(model="runs/demo", store=str(folder / "serving.sqlite"), limits=limits, **settings)
        self.state = ServiceState(url)
        scopes = {scope: [scope] for scope in ("chat", "feedback", "admin")} | {"all": ["chat", "feedback", "admin"]}
        self.keys = {name: self.state.add_key(opened, name) for name, opened in scopes.items()}
        self.writer, self.engines = StoreWriter(FeedbackStore(url)), ScriptedEngines()
        start = Traffic(STABLE.version, CANARY.version if canary else None, weight if canary else 0.0)
        traffic = self.state.start(self.config.name, "first", start)
        self.meters = Counts()
        self.service = Service(
            self.config, [STABLE, CANARY], self.state, traffic, self.engines, self.writer, self.meters
        )

    def client(self, key: str | None = "all", host: str = "127.0.0.1:8000") -> httpx.AsyncClient:
        """A client with one of `keys`, or without any."""
        headers = {} if key is None else {"Authorization": f"Bearer {self.keys[key]}"}
        transport = httpx.ASGITransport(make_app(self.service), raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url=f"http://{host}", headers=headers)


def chat(text: str = "hello", **more: Any) -> dict[str, Any]:
    """The body of a chat request."""
    return {"model": "policy", "messages": [{"role": "user", "content": text}], **more}
