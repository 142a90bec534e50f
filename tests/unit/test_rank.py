"""The life of a rank: one command of its inbox after another, and which of them end it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_ray.actors.inbox import BEGIN, Answer, Begin, Command, Inbox, Start
from rlhf_ray.actors.rank import _serve
from tests.inboxes import answer, now


class Remote:
    """An inbox as a rank sees it, with `ray.get` out of the way."""

    def __init__(self, made: Inbox) -> None:
        self._made = made

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=lambda *arguments: now(getattr(self._made, name)(*arguments)))


@pytest.fixture
def rank(monkeypatch: pytest.MonkeyPatch) -> Callable[[Inbox], None]:
    """Lives the life of rank 0 of an inbox, until it ends or waits."""
    import ray.train

    context = SimpleNamespace(get_world_rank=lambda: 0)
    monkeypatch.setattr("ray.get", lambda value: value)
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(current_actor="rank 0"))
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    return lambda made: _serve(Remote(made))


class Learner:
    """Counts."""

    def __init__(self, state: Path | None) -> None:
        self.total = 0

        self.updated = threading.Event()

    def update(self, amount: int) -> int:
        """The sum of what came."""
        self.total += amount
        self.updated.set()
        return self.total

    def save(self, ok: bool) -> Future[int]:
        """The sum at this time, or an error, once there has been an update."""
        total = self.total

        def write() -> int:
            assert self.updated.wait(10) and ok, "the disk is full"
            return total

        return ThreadPoolExecutor(1).submit(write)


LEARNER = Command(BEGIN, (Begin(Learner, {}, None),), mutates=True)


def test_a_rank_does_what_is_sent_until_it_is_told_to_stop(rank: Callable[[Inbox], None]) -> None:
    made = Inbox(1, clock_ns=lambda: 0)
    for command in (LEARNER, Command("update", (2,), mutates=True), Command("update", (3,), mutates=True), None):
        now(made.post(command))
    rank(made)
    assert [answered.value for index in (1, 2) for answered in now(made.wait(index, 0.01)) or []] == [2, 5]


@pytest.mark.parametrize("ok", [True, False])
def test_what_is_done_beside_others_is_answered_later(rank: Callable[[Inbox], None], ok: bool) -> None:
    """With the state as it was, or with the error."""
    made = Inbox(1, clock_ns=lambda: 0)
    for command in (LEARNER, Command("save", (ok,), mutates=False), Command("update", (2,), mutates=True), None):
        now(made.post(command))
    rank(made)
    assert [answered.value for answered in now(made.wait(2, 0.01)) or []] == [2]
    limit = time.monotonic() + 10
    while (saved := now(made.wait(1, 0.01))) is None and time.monotonic() < limit:
        time.sleep(0.01)
    assert saved is not None
    assert saved == [Answer(0)] if ok else "the disk is full" in str(saved[0].error)


def test_a_rank_ends_at_a_command_that_was_taken_back(rank: Callable[[Inbox], None]) -> None:
    """Another rank may have begun it, and wait in a collective: only an end of both helps. The next group goes on."""
    made = Inbox(2, clock_ns=lambda: 0)
    for command in (LEARNER, Command("update", (2,), mutates=True)):
        now(made.post(command))
    for index in (0, 1):
        now(made.answer(index, 1, Answer()))
    for command in (LEARNER, Command("update", (3,), mutates=True), None):
        now(made.post(command))
    begins, made._start = made._start, Start(None, 0)  # this one had joined before, and is late
    with pytest.raises(RuntimeError, match="'begin' cannot be had any more"):
        rank(made)
    made._start = begins
    rank(made)
    assert begins == Start(None, 2) and now(made.missing(3)) == [1]


def test_a_rank_that_joined_before_a_commit_does_not_leave_out_what_was_committed(
    rank: Callable[[Inbox], None],
) -> None:
    """It was told to start at the commit before, whose updates are gone: those of the next group start at this one."""
    made = Inbox(1, clock_ns=lambda: 0)
    for command in (LEARNER, Command("update", (2,), mutates=True), Command("save", (True,), mutates=False)):
        now(made.post(command))
    for index in range(3):
        answer(made, index, "x")
    before = made._start
    now(made.commit(Path("step-1"), 2))
    for last in (Command("update", (3,), mutates=True), None):
        now(made.post(last))
    after, made._start = made._start, before
    with pytest.raises(RuntimeError, match="'begin' cannot be had any more"):
        rank(made)
    made._start = after
    rank(made)
    assert [answered.value for answered in now(made.wait(3, 0.01)) or []] == [3]
