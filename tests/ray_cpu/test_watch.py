"""Who is killed for not answering: those that have answered before, and nobody who still loads a model."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.train.v2._internal.execution.controller.placement_group_cleaner import PlacementGroupCleaner
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from rlhf_ray.actors import watch
from rlhf_ray.actors.group import InboxLost
from rlhf_ray.actors.pools import HEALTH, Pool
from rlhf_ray.actors.watch import StoppedElsewhere, Watch, end_cleaners, end_on_all_nodes
from rlhf_ray.cluster import connected
from rlhf_ray.config import PlacementConfig
from rlhf_ray.tags import processes, tags
from tests.short_lived import Inbox, Sleeper

HUNG_S = 5.0


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    with connected(PlacementConfig(), cpus=2):
        yield


Watching = Callable[..., list[str]]


@pytest.fixture
def watching(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watching]:
    """Begins to watch, and gives what is said."""
    monkeypatch.setattr(watch, "HUNG_S", HUNG_S)
    monkeypatch.setattr(watch, "HUNG_TRAIN_S", HUNG_S)
    begun: list[Watch] = []

    def begin(pools: list[Pool], groups: list[Any]) -> list[str]:
        said: list[str] = []
        begun.append(Watch("watched", pools, groups, said.append))
        return said

    yield begin
    for one in begun:
        one.stop()


def _sleeper(loads_s: float, of: type = Sleeper, role: str = "somebody") -> Any:
    kind: Any = ray.remote(concurrency_groups={HEALTH: 1})(of)  # type: ignore[call-overload]  # the stubs lack it
    environment = {"env_vars": tags("watched", role)}
    return kind.options(num_cpus=0, max_restarts=-1, runtime_env=environment).remote(loads_s)


def _group(inbox: Any, **others: Any) -> Any:
    """A group whose ranks and Ray Train controller nobody knows yet, but for `others`."""
    unknown = {"run": "watched", "role": "policy", "workers": lambda s: {}, "train_controller": lambda s: None}
    return SimpleNamespace(inbox=inbox, **{**unknown, **others})


def _await(what: Callable[[], bool]) -> None:
    limit = time.monotonic() + 40
    while not what():
        assert time.monotonic() < limit
        time.sleep(0.1)


def test_one_that_loads_is_left_alone_and_one_that_hangs_is_started_again(watching: Watching) -> None:
    actor = _sleeper(2 * HUNG_S)
    said = watching([Pool("rollout", [actor], 60.0)], [])
    first = ray.get(actor.pid.remote(), timeout=60)
    assert said == []
    time.sleep(3)  # it has been asked, and has answered
    actor.stop.remote()
    _await(lambda: bool(said))
    assert said == ["rollout-0 did not answer for 5 s and was killed."]
    pool = Pool("rollout", [actor], 60.0)
    assert pool.answer(pool.call(0, "pid")) != first


def test_so_is_one_that_hung_before_it_was_first_asked(watching: Watching) -> None:
    """Of a controller that is lost the next one takes the actors over."""
    actor = _sleeper(0.0)
    first = ray.get(actor.pid.remote(), timeout=60)
    actor.stop.remote()
    time.sleep(1)
    said = watching([Pool("rollout", [actor], 60.0)], [])
    _await(lambda: bool(said))
    pool = Pool("rollout", [actor], 60.0)
    assert pool.answer(pool.call(0, "pid")) != first


def test_so_is_the_controller_of_ray_train(watching: Watching) -> None:
    """One that has not introduced itself, or whose inbox is dead, is unknown."""
    inbox, controller = _sleeper(0.0), _sleeper(0.0)

    def lost(timeout_s: float) -> Any:
        raise InboxLost("the inbox of critic died")

    known = _group(inbox, train_controller=lambda s: controller)
    unknown, dead = _group(inbox, role="value"), _group(inbox, role="critic", workers=lost, train_controller=lost)
    said = watching([], [known, unknown, dead])
    ray.get(controller.pid.remote(), timeout=60)
    time.sleep(3)
    controller.stop.remote()
    _await(lambda: bool(said))
    assert said == ["Ray Train's controller of policy did not answer for 5 s and was killed."]


def test_an_inbox_loads_nothing_so_it_need_not_have_answered(
    watching: Watching, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor need Ray have connected to it, which then asks it to end in vain (Ray 2.60)."""
    monkeypatch.setattr(ray, "kill", lambda actor, no_restart: None)
    monkeypatch.setattr(watch, "end_stopped", lambda *_: [])
    inbox = _sleeper(0.0, Inbox, "policy inbox")
    first = ray.get(inbox.pid.remote(), timeout=60)
    inbox.stop.remote()
    time.sleep(1)
    said = watching([], [_group(inbox)])
    _await(lambda: bool(said))
    assert said == ["the inbox of policy did not answer for 5 s and was killed."]
    living = partial(processes, "watched")
    _await(lambda: first not in [one.pid for one in living()])
    _await(lambda: any(one.role == "policy inbox" and one.title.startswith("ray::Inbox") for one in living()))


def test_one_that_is_stopped_by_a_signal_is_not_waited_for(watching: Watching) -> None:
    actor = _sleeper(0.0, role="rollout-0")
    first = ray.get(actor.pid.remote(), timeout=60)
    said = watching([Pool("rollout", [actor], 60.0)], [])
    actor.stop.remote()
    _await(lambda: bool(said))
    assert said == ["rollout-0 was stopped by a signal for 2 s and was killed."]
    pool = Pool("rollout", [actor], 60.0)
    assert pool.answer(pool.call(0, "pid")) != first


def test_nor_is_it_on_another_node() -> None:
    actor = _sleeper(0.0, role="rollout-0")
    first = ray.get(actor.pid.remote(), timeout=60)
    actor.stop.remote()
    elsewhere, said = StoppedElsewhere(), list[str]()

    def told() -> bool:
        elsewhere.ask([node["NodeID"] for node in ray.nodes()], {"watched": ["rollout-0"]})
        said.extend(elsewhere.ended())
        return bool(said)

    _await(told)
    assert said == ["rollout-0"]
    pool = Pool("rollout", [actor], 60.0)
    assert pool.answer(pool.call(0, "pid")) != first


def test_nor_is_a_rank_that_its_group_does_not_know_yet(watching: Watching) -> None:
    inbox, rank = _sleeper(0.0), _sleeper(0.0, role="policy rank")
    ray.get([inbox.pid.remote(), rank.pid.remote()], timeout=60)
    rank.stop.remote()
    said = watching([], [_group(inbox)])
    _await(lambda: bool(said))
    assert said == ["policy rank was stopped by a signal for 2 s and was killed."]


def test_what_a_reward_function_has_started_ends_with_the_run() -> None:
    environment = os.environ | tags("watched", "reward function")
    with subprocess.Popen(["sleep", "60"], env=environment, start_new_session=True) as helper:
        ray.get(end_on_all_nodes("watched", "reward function"), timeout=30)
        assert helper.wait(5) == -signal.SIGKILL


@pytest.mark.parametrize("told", [True, False])
def test_a_cleaner_that_nobody_told_whom_to_look_after_ends_with_the_run(told: bool) -> None:
    """Ray Train's controller may die while it makes one. One that was told gives back the place of the ranks first."""
    environment = {"env_vars": {"RAY_ADDRESS": ray.get_runtime_context().gcs_address, **tags("cleaned", "any inbox")}}
    controller = _sleeper(0.0)
    ray.get(controller.pid.remote(), timeout=60)
    cleaner: Any = ray.remote(num_cpus=0)(PlacementGroupCleaner)
    cleaner = cleaner.options(lifetime="detached", runtime_env=environment).remote(
        controller._actor_id.hex(), 1.0, 5, 5
    )
    place = placement_group([{"CPU": 1}])
    ray.get([place.ready(), cleaner.register_placement_group.remote(place)], timeout=60)
    if told:
        ray.get(cleaner.start_monitoring.remote(), timeout=60)
    ray.kill(controller)
    assert [each.title for each in processes("cleaned")] == ["ray::PlacementGroupCleaner"]
    end_cleaners("cleaned")
    time.sleep(0.2)
    assert not processes("cleaned")
    assert (placement_group_table(place)["state"] == "REMOVED") is told
    remove_placement_group(place)


def test_an_error_of_the_watch_does_not_end_it(watching: Watching) -> None:
    said: list[str] = []
    broken = SimpleNamespace(run="watched", role="critic", inbox=None, workers=lambda s: 1 / 0)
    said = watching([], [broken])
    actor = _sleeper(0.0)
    ray.get(actor.pid.remote(), timeout=60)
    _await(lambda: bool(said))
    broken.__dict__.update(vars(_group(actor)))
    time.sleep(3)
    actor.stop.remote()
    _await(lambda: len(said) == 2)
    assert "The watch met an error, and goes on: AttributeError" in said[0]
    assert "did not answer" in said[1] or "was stopped by a signal" in said[1]
