"""What an error of a rank means: its own fault if all ranks live, the death of its neighbour otherwise."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from rlhf_ray.actors.group import LearnerGroup
from rlhf_ray.actors.inbox import TRIES, Answer
from rlhf_ray.cluster import connected
from rlhf_ray.config import PlacementConfig
from rlhf_ray.errors import RunError, StallError
from tests.short_lived import Idle, Sleeper

BROKEN = Answer(error="Connection closed by peer")


@dataclass
class Ranks:
    """Two ranks which say what a test tells them to."""

    group: LearnerGroup
    workers: list[Any] = field(default_factory=list)

    def join(self) -> None:
        """Two more, in place of those that were there before."""
        self.workers = [ray.remote(Sleeper).options(num_cpus=0).remote(0.0) for _ in range(2)]
        for rank, worker in enumerate(self.workers):
            ray.get([worker.pid.remote(), self.group.inbox.join.remote(rank, worker)])

    def answer(self, index: int, *answers: Answer) -> None:
        for rank, answer in enumerate(answers):
            ray.get(self.group.inbox.answer.remote(index, rank, answer))


@pytest.fixture
def ranks() -> Iterator[Ranks]:
    with connected(PlacementConfig(), cpus=2):
        config = SimpleNamespace(num_workers=2)
        group = LearnerGroup(Idle("policy", "group", config), 60.0)  # type: ignore[arg-type]  # has what it reads
        made = Ranks(group)
        group.begin(dict, {}, Path("nowhere"))
        made.join()
        assert group._beginning is not None
        made.answer(group._beginning, Answer(), Answer())
        yield made


def test_an_error_while_all_ranks_live_is_the_caller_s(ranks: Ranks) -> None:
    index = ranks.group.post("update", mutates=True)
    ranks.answer(index, Answer("x"), BROKEN)
    with pytest.raises(RunError, match="policy failed at 'update': rank 1: Connection closed by peer"):
        ranks.group.collect(index, "update")


@pytest.mark.parametrize("answered", [True, False])
def test_the_neighbour_of_one_that_died_is_asked_again(ranks: Ranks, answered: bool) -> None:
    """Also if that one had answered: its last word to its neighbour went with it."""
    group = ranks.group
    index = group.post("update", mutates=True)
    if answered:
        ranks.answer(index, Answer("x"))
    ray.get(group.inbox.answer.remote(index, 1, BROKEN))
    ray.kill(ranks.workers[0])
    with ThreadPoolExecutor(1) as thread:
        collecting = thread.submit(group.collect, index, "update")
        time.sleep(1.0)  # it has seen the error by now
        ranks.join()
        ranks.answer(index, Answer("y"), Answer("z"))
        assert collecting.result(60) == ["y", "z"]


def test_so_it_is_if_the_next_ranks_are_there_before_anybody_has_looked(ranks: Ranks) -> None:
    index = ranks.group.post("update", mutates=True)
    ranks.answer(index, Answer("x"), BROKEN)
    answers = ray.get(ranks.group.inbox.wait.remote(index, 1.0))
    ranks.join()
    assert answers[0].error and ranks.group._bereaved(answers, index)


def test_ranks_that_die_again_and_again_are_given_up(ranks: Ranks) -> None:
    """Their errors are forgotten each time; that they have died is not."""
    index = ranks.group.post("update", mutates=True)
    for _ in range(TRIES + 1):
        ranks.join()
    with pytest.raises(RunError, match=f"its ranks died more than {TRIES} times in turn"):
        ranks.group.collect(index, "update")


def test_ranks_that_replay_are_not_late(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline is of one command; ranks that were built again take those of the past first."""
    group = ranks.group
    monkeypatch.setattr("rlhf_ray.actors.group._POLL_S", 0.2)
    group.deadline_s = 2.0
    index = group.post("update", mutates=True)

    def replay() -> None:
        for _ in range(5):
            time.sleep(1.0)
            ray.get(group.inbox.take.remote(index))
        ranks.answer(index, Answer("x"), Answer("y"))

    with ThreadPoolExecutor(1) as thread:
        replaying = thread.submit(replay)
        assert group.collect(index, "update") == ["x", "y"]
        replaying.result()
    with pytest.raises(StallError, match=r"policy: ranks \[0, 1\] did not answer 'update' within 2 s"):
        group.call("update", mutates=True)
