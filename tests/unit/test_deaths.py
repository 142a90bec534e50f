"""What Ray's memory monitor has killed is dead, and no error of the code."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import OutOfMemoryError

from rlhf_ray.actors.driver import _ControllerLost, _Controllers
from rlhf_ray.actors.group import InboxLost, LearnerGroup
from rlhf_ray.actors.inbox import Answer
from rlhf_ray.actors.pools import ActorLost, Pool
from rlhf_ray.launching import recovery


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(reference: object, timeout: float | None = None) -> object:
        raise OutOfMemoryError("Task was killed due to the node running low on memory.")

    monkeypatch.setattr(ray, "get", get)


@pytest.mark.usefixtures("killed")
def test_who_calls_such_an_actor_hears_of_a_death(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ActorLost, match="reward-1 died during 'score'"):
        Pool("reward", [], 1.0).get(None, 1, "score")
    group = LearnerGroup.__new__(LearnerGroup)
    group.role = "policy"
    with pytest.raises(InboxLost, match="the inbox of policy died"):
        group._get(None)
    monkeypatch.setattr("rlhf_ray.actors.group._REBUILD_S", 0.0)
    rank: Any = SimpleNamespace(__ray_ready__=SimpleNamespace(remote=lambda: None))
    monkeypatch.setattr(group, "workers", lambda: {0: rank})
    assert group._bereaved([Answer(error="Connection closed by peer")], 0)


@pytest.mark.usefixtures("killed")
def test_the_driver_makes_another_controller(tmp_path: Any) -> None:
    call = SimpleNamespace(remote=lambda *_: None)
    controller: Any = SimpleNamespace(run=call, __ray_ready__=call)
    with pytest.raises(_ControllerLost, match="The controller died"):
        _Controllers(lambda number: controller, tmp_path, 1.0, print)._follow(controller)


@pytest.mark.parametrize(
    ("cause", "loss"),
    [
        ({"oom_context": {"error_message": "low on memory"}}, True),
        ({"actor_died_error_context": {"reason": "WORKER_DIED"}}, True),
        ({"actor_died_error_context": {"reason": "RAY_KILL"}}, False),
        ({}, False),
    ],
)
def test_a_run_that_lost_it_is_worth_another_try(cause: dict[str, Any], loss: bool) -> None:
    assert recovery._is_loss(cause) is loss
