"""How long members of the weight group wait: a little for each other, longer for a bucket."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlhf_ray.actors.inbox import TRIES
from rlhf_ray.actors.learner import PolicyLearner
from rlhf_ray.actors.weight_push import WeightBroadcast
from rlhf_ray.errors import RunError, StallError
from rlhf_ray.weight_sync import broadcast
from rlhf_ray.weight_sync.broadcast import Rendezvous, WeightGroup
from rlhf_ray.weight_sync.bucket import TensorSpec, plan_buckets
from tests.ports import free_port


@pytest.fixture(autouse=True)
def _one_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broadcast, "_MEET_S", 1.0)


def test_who_meets_nobody_gives_up() -> None:
    with pytest.raises(RuntimeError, match="timeout after 1000ms"):
        WeightGroup(Rendezvous("127.0.0.1", free_port(), 2, "gloo", 60.0), 0)


def test_a_bucket_may_take_longer_than_the_meeting() -> None:
    buckets = plan_buckets([TensorSpec("w", (3,), "float32")], 1000)
    meeting = Rendezvous("127.0.0.1", free_port(), 2, "gloo", 60.0)
    with ThreadPoolExecutor(1) as thread:
        joining = thread.submit(WeightGroup, meeting, 1)
        sender, receiver = WeightGroup(meeting, 0), joining.result()
        received = thread.submit(lambda: dict(receiver.receive(buckets, 7)))
        time.sleep(2.0)
        sender.send(buckets[0], [torch.tensor([1.0, 2.0, 3.0])], 7)
        assert received.result()["w"].tolist() == [1.0, 2.0, 3.0]


def test_ranks_gather_all_weights_though_the_sender_fails() -> None:
    """Those without a group do not know of it, and would wait for rank 0 in the next bucket."""

    class Failing:
        sent = 0

        def send(self, *bucket: object) -> None:
            self.sent += 1
            raise RuntimeError(f"Connection closed by peer in bucket {self.sent}")

    class Export:
        buckets = ("a", "b", "c")
        gathered = 0

        def __iter__(self) -> Iterator[tuple[str, list[torch.Tensor]]]:
            for bucket in self.buckets:
                self.gathered += 1
                yield bucket, []

    export = Export()
    rank = SimpleNamespace(rank=0, _group=Failing(), _export=export)
    with pytest.raises(RuntimeError, match="in bucket 1"):
        PolicyLearner.publish(rank, 1)  # type: ignore[arg-type]  # has what it reads
    assert export.gathered == 3


@pytest.mark.parametrize(("error", "tries"), [(StallError("late"), 1), (RunError("damaged"), TRIES)])
def test_a_stalled_push_is_not_made_again(monkeypatch: pytest.MonkeyPatch, error: Exception, tries: int) -> None:
    """It would wait as long once more."""
    asked: list[int] = []

    def push(version: int, since: int | None) -> None:
        asked.append(version)
        raise error

    rollout: Any = SimpleNamespace(tell=lambda sentence: None)
    weights = WeightBroadcast(SimpleNamespace(), rollout, "gloo")  # type: ignore[arg-type]  # nobody is asked
    monkeypatch.setattr(weights, "_now", lambda: (0, []))
    monkeypatch.setattr(weights, "_connect", lambda: None)
    monkeypatch.setattr(weights, "_push", push)
    with pytest.raises(type(error)):
        weights.push(3)
    assert asked == [3] * tries
