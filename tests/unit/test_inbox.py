"""The mailbox of a worker group: where ranks begin, what is asked again, and when a group has died too often."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlhf_ray.actors.inbox import BEGIN, TRIES, Answer, Begin, Command, Inbox, Start
from rlhf_ray.errors import LostError
from tests.inboxes import RUNNER, answer, now

BUILT = Begin(dict, {}, None)


def inbox(*commands: Command) -> Inbox:
    """Of two ranks that have joined, begun, and been sent `commands`; its indexes begin with 0."""
    made = Inbox(2, clock_ns=lambda: 0)
    for rank in (0, 1):
        now(made.join(rank, f"worker {rank}"))
    now(made.post(Command(BEGIN, (BUILT,), mutates=True)))
    answer(made, 0, "built", "built")
    for command in commands:
        now(made.post(command))
    return made


UPDATE = Command("update", ("batch",), mutates=True)
ASK = Command("logprobs", ("batch",), mutates=False)


def test_a_rebuilt_rank_replays_what_changed_it_and_skips_what_was_answered() -> None:
    made = inbox(UPDATE, ASK, UPDATE, ASK)
    for index in (1, 2, 3):
        answer(made, index, "x", "y")
    assert now(made.join(0, "another")) == Start(None, 0)
    taken = [now(made.take(index)) for index in range(5)]
    assert [(command.name, bool(command.arguments), done) for command, done in taken if command] == [
        (BEGIN, True, True), ("update", True, True), ("logprobs", False, True), ("update", True, True),
        ("logprobs", True, False),
    ]  # fmt: skip
    assert [command.mutates for command, _ in taken if command] == [True, True, False, True, False]


def test_after_a_commit_a_rank_starts_there() -> None:
    """Nothing before it is replayed, and its arguments are free."""
    made = inbox(UPDATE)
    answer(made, 1, "x", "y")
    now(made.commit(Path("step-1"), 1))
    now(made.post(UPDATE))
    start = now(made.join(1, "another"))
    assert start == Start(Begin(dict, {}, Path("step-1")), 2)
    command, done = now(made.take(1))
    assert command == Command("update", (), mutates=True, forgotten=True) and done


def test_errors_of_the_group_before_are_forgotten_and_values_are_not() -> None:
    made = inbox(UPDATE, UPDATE)
    now(made.answer(1, 0, Answer(error="Connection closed by peer")))
    assert now(made.wait(1, 0.01)) == [Answer(error="rank 0: Connection closed by peer")]
    assert now(made.missing(1)) == [1]
    now(made.join(1, "another"))
    assert now(made.wait(1, 0.01)) is None and now(made.missing(1)) == [0, 1]
    answer(made, 1, "x", "y")
    now(made.answer(2, 1, Answer("y")))
    now(made.join(0, "another"))
    assert now(made.missing(2)) == [0]


SAVE = Command("save", ("folder",), mutates=False)


@pytest.mark.parametrize("second", [None, Answer(error="Connection closed by peer")])
def test_a_rank_that_does_again_what_it_has_answered_is_waited_for(second: Answer | None) -> None:
    """Rank 0 has written its files when rank 1 dies: the next rank 0 writes them once more."""
    made = inbox(SAVE)
    now(made.answer(1, 0, Answer("written")))
    if second is not None:
        now(made.answer(1, 1, second))
    for rank in (0, 1):
        now(made.join(rank, "another"))
    assert now(made.take(1)) == (SAVE, False)
    now(made.answer(1, 1, Answer("nothing to write")))
    assert now(made.wait(1, 0.01)) is None and now(made.missing(1)) == [0]
    answer(made, 1, "written again", "nothing to write")


def test_what_all_ranks_have_answered_stays_so() -> None:
    made = inbox(SAVE)
    for rank in (0, 1):
        now(made.answer(1, rank, Answer("written")))
    now(made.join(0, "another"))
    assert now(made.take(1)) == (SAVE, True)
    assert now(made.wait(1, 0.01)) == [Answer("written"), Answer("written")]


def test_a_group_that_dies_again_and_again_is_given_up() -> None:
    """Of all its deaths only those count since it has answered something."""
    made = inbox(UPDATE, UPDATE)
    for died in range(1, TRIES + 2):
        assert now(made.wait(1, 0.01)) is None, died
        for rank in (0, 1):
            now(made.join(rank, "another"))
    assert now(made.wait(1, 0.01)) == [Answer(error=f"its ranks died more than {TRIES} times in turn")]


def test_a_group_that_answers_in_between_is_not_given_up() -> None:
    made = inbox(UPDATE, UPDATE, UPDATE)
    for index in (1, 2, 3):
        for rank in (0, 1):
            now(made.join(rank, "another"))
        answer(made, index, "x", "y")


def test_a_command_that_comes_too_late_is_not_taken() -> None:
    """What may only be sent before the next change."""
    made = inbox(ASK)
    assert now(made.post(ASK, since=1)) == 2
    now(made.post(UPDATE))
    assert now(made.post(ASK, since=1)) is None and now(made.post(ASK, since=2)) is None
    assert now(made.post(ASK, since=3)) == 4


@pytest.mark.parametrize("index", [0, 1])
def test_workers_are_those_that_joined_last(index: int) -> None:
    made = inbox()
    now(made.join(index, "another"))
    assert now(made.workers()) == {index: "another", 1 - index: f"worker {1 - index}"}


def test_a_commit_leaves_alone_what_was_sent_after_its_state_was_written() -> None:
    """Another thread may have sent it meanwhile; ranks that are built now begin with it."""
    made = inbox(UPDATE, Command("save", ("step-1",), mutates=False), ASK)
    for index in (1, 2):
        answer(made, index, "x", "y")
    now(made.commit(Path("step-1"), 2))
    assert now(made.join(0, "another")) == Start(Begin(dict, {}, Path("step-1")), 3)
    assert now(made.take(3)) == (ASK, False)


def test_who_begins_takes_back_what_was_sent_before() -> None:
    """A rank that has not done it yet must see that: another one may wait for it in a collective."""
    made = inbox(UPDATE, UPDATE)
    answer(made, 1, "x", "y")
    now(made.answer(2, 0, Answer("x")))
    now(made.post(Command(BEGIN, (BUILT,), mutates=True)))
    before, done = now(made.take(1))
    assert before is not None and before.forgotten and done
    taken_back, done = now(made.take(2))
    assert taken_back is not None and taken_back.forgotten and not taken_back.arguments and not done
    begin, done = now(made.take(3))
    assert begin == Command(BEGIN, (BUILT,), mutates=True) and not done
    assert now(made.join(1, "another")) == Start(None, 3)


def test_an_inbox_that_was_started_again_knows_nothing_of_the_one_before() -> None:
    """Neither its ranks nor whoever waits for them may take one for the other."""
    made = Inbox(2, clock_ns=lambda: 1000)
    with pytest.raises(LostError, match="started again: nobody has begun at it"):
        now(made.post(ASK))
    begin = Command(BEGIN, (BUILT,), mutates=True)
    assert now(made.post(begin)) == 1000 and now(made.take(1000)) == (begin, False) and now(made.incarnation()) == 1000
    for call in (
        lambda: made.take(999),
        lambda: made.answer(999, 0, Answer("x")),
        lambda: made.wait(999, 0.01),
        lambda: made.missing(999),
        lambda: made.commit(Path("step-1"), 999),
        lambda: made.post(ASK, since=999),
    ):
        with pytest.raises(LostError, match="started again"):
            now(call())


def test_a_commit_of_the_controller_before_is_not_taken() -> None:
    """It was under way when another one began."""
    made = inbox(UPDATE, Command("save", ("step-1",), mutates=False))
    for index in (1, 2):
        answer(made, index, "x", "y")
    now(made.post(Command(BEGIN, (BUILT,), mutates=True)))
    now(made.commit(Path("step-1"), 2))
    assert now(made.join(0, "another")) == Start(None, 3)


def test_ranks_that_died_of_what_was_sent_before_are_not_given_up() -> None:
    made = inbox(UPDATE)
    for _ in range(TRIES + 1):
        for rank in (0, 1):
            now(made.join(rank, "another"))
    assert now(made.wait(1, 0.01)) == [Answer(error=f"its ranks died more than {TRIES} times in turn")]
    now(made.post(Command(BEGIN, (BUILT,), mutates=True)))
    answer(made, 2, "built", "built")


def test_it_says_when_all_ranks_have_begun_what_comes_next() -> None:
    made = inbox()
    since = now(made.next_index())
    now(made.post(Command(BEGIN, (BUILT,), mutates=True)))
    now(made.answer(since, 0, Answer()))
    with pytest.raises(TimeoutError):
        RUNNER.run(asyncio.wait_for(made.begun(since), 0.05))
    now(made.answer(since, 1, Answer()))
    now(made.begun(since))


@pytest.mark.parametrize("deaths", [0, 1])
def test_a_group_that_does_not_come_is_lost(monkeypatch: pytest.MonkeyPatch, deaths: int) -> None:
    """The place of one that is made again may be taken, by what Ray has kept of the one before."""
    group = Group(deaths)
    made = keeping(group, monkeypatch)
    assert end(made) == "it stopped"
    monkeypatch.setattr("rlhf_ray.actors.inbox.COMES_S", -1.0)
    with pytest.raises(LostError, match="no rank of the group has come"):
        now(made.ended())
    now(made.join(0, "it has come"))
    assert now(made.ended()) == "it stopped"


CONTEXT = SimpleNamespace(current_actor="me")


class Group:
    """What an inbox keeps in being. Its controller dies `deaths` times; `between` is called before each death."""

    def __init__(self, deaths: int, between: Callable[[], None] = lambda: None) -> None:
        self.deaths, self.between = deaths, between
        self.heard: list[object] = []

    def fit(self, inbox: object) -> None:
        """The whole life of a group of Ray Train."""
        self.heard.append(inbox)
        if len(self.heard) <= self.deaths:
            self.between()
            raise RuntimeError("its controller died")


def keeping(group: Group, monkeypatch: pytest.MonkeyPatch) -> Inbox:
    """An inbox of one rank, in no actor."""
    monkeypatch.setattr("ray.get_runtime_context", lambda: CONTEXT)
    return Inbox(1, group, clock_ns=lambda: 0)  # type: ignore[arg-type]  # a group that dies at will


def end(made: Inbox) -> str | None:
    """Why its group is over, once it is."""
    limit = time.monotonic() + 10
    while (why := now(made.ended())) is None and time.monotonic() < limit:
        time.sleep(0.01)
    return why


@pytest.mark.parametrize(
    ("deaths", "why"), [(0, "it stopped"), (TRIES - 1, "it stopped"), (TRIES, "RuntimeError: its controller died")]
)
def test_a_group_whose_controller_dies_is_made_again(deaths: int, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(deaths)
    assert end(keeping(group, monkeypatch)) == why and group.heard == ["me"] * min(deaths + 1, TRIES)


def test_only_deaths_in_turn_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A group that has answered is as good as new."""
    died, goes_on = threading.Semaphore(0), threading.Semaphore(0)

    def between() -> None:
        died.release()
        assert goes_on.acquire(timeout=10)

    group = Group(2 * TRIES, between)
    made = keeping(group, monkeypatch)
    now(made.post(Command(BEGIN, (BUILT,), mutates=True)))
    for number in range(1, 2 * TRIES + 1):
        assert died.acquire(timeout=10)
        now(made.post(ASK))
        answer(made, number, "x")
        goes_on.release()
    assert end(made) == "it stopped" and len(group.heard) == 2 * TRIES + 1
