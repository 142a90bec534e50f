"""The mailbox of a worker group: where ranks begin, what is asked again, and when a group has died too often."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path
from typing import TypeVar

import pytest

from rlhf_ray.actors.inbox import BEGIN, TRIES, Answer, Begin, Command, Inbox, Start

T = TypeVar("T")
_RUNNER = asyncio.Runner()  # one loop: an inbox lives in that of its actor
BUILT = Begin(dict, {}, None)


def now(awaited: Awaitable[T]) -> T:
    """Its value; it must not wait for others."""

    async def soon() -> T:
        return await asyncio.wait_for(awaited, 5)

    return _RUNNER.run(soon())


def inbox(*commands: Command) -> Inbox:
    """Of two ranks that have joined, begun, and been sent `commands`."""
    made = Inbox(2)
    for rank in (0, 1):
        now(made.join(rank, f"worker {rank}"))
    now(made.post(Command(BEGIN, (BUILT,), mutates=True)))
    answer(made, 0, "built", "built")
    for command in commands:
        now(made.post(command))
    return made


def answer(made: Inbox, index: int, *values: object) -> None:
    """Each rank's answer is taken and collected."""
    for rank, value in enumerate(values):
        now(made.answer(index, rank, Answer(value)))
    assert now(made.wait(index, 0.01)) == [Answer(value) for value in values]


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
    now(made.commit(Path("step-1")))
    now(made.post(UPDATE))
    start = now(made.join(1, "another"))
    assert start == Start(Begin(dict, {}, Path("step-1")), 2)
    command, done = now(made.take(1))
    assert command == Command("update", (), mutates=True) and done


def test_errors_of_the_group_before_are_forgotten_and_values_are_not() -> None:
    made = inbox(UPDATE, UPDATE)
    now(made.answer(1, 0, Answer(error="Connection closed by peer")))
    assert now(made.wait(1, 0.01)) == [Answer(error="rank 0: Connection closed by peer")]
    assert now(made.missing(1)) == [1]
    now(made.join(0, "another"))
    assert now(made.wait(1, 0.01)) is None and now(made.missing(1)) == [0, 1]
    answer(made, 1, "x", "y")
    now(made.answer(2, 1, Answer("y")))
    now(made.join(0, "another"))
    assert now(made.missing(2)) == [0]


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
