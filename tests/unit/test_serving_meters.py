"""What a gateway counts and times, and that nothing a client sends makes a new series."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from serving_world import STABLE, ServingWorld, chat

from rlhf_ray.serving.meters import COUNTERS, HISTOGRAMS, PREFIX

CHAT = "/v1/chat/completions"
GRAFANA = Path(__file__).parents[2] / "deploy" / "grafana.json"


@pytest.fixture
def world(tmp_path: Path) -> ServingWorld:
    return ServingWorld(tmp_path)


def _asked(world: ServingWorld, *requests: tuple[str, str, Any], key: str | None = "all") -> list[Any]:
    async def ask() -> list[Any]:
        async with world.client(key) as client:
            return [await client.request(method, path, json=body) for method, path, body in requests]

    return asyncio.run(ask())


def test_answers_are_counted_by_route_and_status(world: ServingWorld) -> None:
    _asked(world, ("POST", CHAT, chat()), ("POST", CHAT, chat()), ("POST", CHAT, {}), ("GET", "/v1/models", None))
    _asked(world, ("GET", "/no/such/route-7f3", None), ("DELETE", "/admin/replies/chatcmpl-x", None))
    _asked(world, ("GET", "/v1/models", None), key=None)
    counted = {labels: amount for (name, *rest), amount in world.meters.amounts.items() if (labels := tuple(rest))}
    found = {key: amount for key, amount in counted.items() if key[0].startswith("/") or key[0] == "other"}
    assert found == {
        (CHAT, "200"): 2, (CHAT, "400"): 1, ("/v1/models", "200"): 1, ("/v1/models", "401"): 1,
        ("other", "404"): 1, ("/admin/replies/{reply_id}", "200"): 1,
    }  # fmt: skip


def test_what_is_refused_before_any_route_is_counted_too(world: ServingWorld) -> None:
    async def ask() -> int:
        async with world.client(host="evil.example") as client:
            return (await client.get("/v1/models")).status_code

    assert asyncio.run(ask()) == 403
    assert world.meters.amounts[("requests", "other", "403")] == 1


def test_a_reply_is_timed_and_its_tokens_counted(world: ServingWorld) -> None:
    """The scripted engine says seven tokens of prompt and three of reply."""
    _asked(world, ("POST", CHAT, chat()))
    assert set(world.meters.times) == {"reply_seconds"}
    _asked(world, ("POST", CHAT, chat(stream=True)))
    (first,), (token,), replies = (
        world.meters.times[name] for name in ("first_token_seconds", "token_seconds", "reply_seconds")
    )
    assert 0 <= first <= replies[1] and token == pytest.approx((replies[1] - first) / 2, abs=1e-3)
    assert world.meters.amounts[("tokens", STABLE.version, "prompt")] == 14
    assert world.meters.amounts[("tokens", STABLE.version, "completion")] == 6


def test_a_torn_reply_is_counted_and_one_that_another_replica_answers_is_not(world: ServingWorld) -> None:
    world.engines.deaths = 1
    _asked(world, ("POST", CHAT, chat()))
    assert ("torn_replies", STABLE.version) not in world.meters.amounts
    world.engines.breaks = True
    _asked(world, ("POST", CHAT, chat(stream=True)))
    assert world.meters.amounts[("torn_replies", STABLE.version)] == 1


def test_feedback_is_counted_once_by_kind(world: ServingWorld) -> None:
    first, second = (answer.json()["id"] for answer in _asked(world, ("POST", CHAT, chat()), ("POST", CHAT, chat())))
    thumb = {"reply_id": first, "kind": "thumb", "value": "up", "idempotency_key": "k"}
    said = {"reply_ids": [first, second]}
    path, compared = "/v1/feedback", "/v1/preferences"
    _asked(world, ("POST", path, thumb), ("POST", path, thumb), ("POST", path, {**thumb, "value": "sideways"}))
    _asked(world, ("POST", compared, {**said, "choice": "a"}), ("POST", compared, {**said, "ranks": [1, 2]}))
    found = {kind: amount for (name, kind, *_), amount in world.meters.amounts.items() if name == "feedback"}
    assert found == {"thumb": 1, "preference": 1, "ranking": 1}


def test_the_dashboard_asks_for_metrics_and_labels_that_exist() -> None:
    """Of the service's own: each name in each expression of deploy/grafana.json, and the labels it selects or sums."""
    exported = {f"ray_{PREFIX}{name}_total": set(labels) for name, (_, labels) in COUNTERS.items()}
    exported |= {f"ray_{PREFIX}{name}_bucket": {"policy", "le"} for name in HISTOGRAMS}
    panels = json.loads(GRAFANA.read_text())["panels"]
    expressions = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    asked = set()
    for expression in expressions:
        names = re.findall(rf"ray_{PREFIX}\w+", expression)
        assert names and set(names) <= set(exported), expression
        labels = set(re.findall(r"(\w+)\s*=~?\"", expression))
        labels |= {label.strip() for by in re.findall(r"by \(([^)]*)\)", expression) for label in by.split(",")}
        assert all(labels <= exported[name] for name in names), expression
        asked |= set(names)
    assert asked == set(exported), "every metric has its panel"
