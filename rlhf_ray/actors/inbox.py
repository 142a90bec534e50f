"""How a Ray Train worker group becomes a persistent learner: its workers take commands from an inbox.

`train_loop` builds its learner once and then executes one command after another, on every rank in the same order. When
Ray Train rebuilds a group after a death, the new ranks load the last committed state and replay what changed it since
(`Command.mutates`); the caller just sees a slow answer.
"""

from __future__ import annotations

import asyncio
import os
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
import ray.train


@dataclass(frozen=True, slots=True)
class Command:
    """A method of the learner and its arguments. `mutates`: it must be replayed to rebuild the state after it."""

    name: str
    arguments: tuple[object, ...]
    mutates: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """What one rank gave back: a value, or the error that it met."""

    value: object = None
    error: str | None = None
    seconds: float = 0.0
    ended: float = 0.0


@dataclass(frozen=True, slots=True)
class Start:
    """Where a (re)built rank begins: the committed state folder, and the first command after it."""

    state: Path | None
    index: int


class Inbox:
    """The mailbox of one worker group. An asynchronous actor: every method returns at once or waits unblocking."""

    def __init__(self, world_size: int, state: Path | None) -> None:
        self._world_size = world_size
        self._commands: list[Command | None] = []
        self._answers: list[dict[int, Answer]] = []
        self._start = Start(state, 0)
        self._changed = asyncio.Condition()
        self._failure: str | None = None
        self._joins = 0
        self.workers: dict[int, dict[str, object]] = {}

    async def join(self, rank: int, worker: dict[str, object]) -> Start:
        """Registers a rank and tells it where to begin."""
        self._joins += 1
        self.workers[rank] = worker
        return self._start

    async def incarnation(self) -> int:
        """How many ranks have ever joined: it grows when Ray Train rebuilds the group."""
        return self._joins

    async def post(self, command: Command | None) -> int:
        """Appends a command (None: stop) and returns its index."""
        async with self._changed:
            self._commands.append(command)
            self._answers.append({})
            self._changed.notify_all()
            return len(self._commands) - 1

    async def take(self, index: int) -> tuple[Command | None, bool]:
        """The command at `index` once it is there, and whether all ranks have answered it already."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._commands) > index)
            return self._commands[index], len(self._answers[index]) == self._world_size

    async def answer(self, index: int, rank: int, answer: Answer) -> None:
        """Stores a rank's answer."""
        async with self._changed:
            self._answers[index][rank] = answer
            self._changed.notify_all()

    async def fail(self, rank: int, error: str) -> None:
        """A rank could not even build its learner."""
        async with self._changed:
            self._failure = f"rank {rank}: {error}"
            self._changed.notify_all()

    async def wait(self, index: int, timeout_s: float) -> list[Answer] | None:
        """All ranks' answers in rank order; None if they are not there in time. The first error answers for all ranks:
        the others may wait in a collective for the one that failed."""
        async with self._changed:
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: self._settled(index)), timeout_s)
            except TimeoutError:
                return None
            answers, command = self._answers[index], self._commands[index]
            faults = [f"rank {rank}: {answer.error}" for rank, answer in sorted(answers.items()) if answer.error]
            if self._failure or faults:
                return [Answer(error=self._failure or "; ".join(faults))]
            # Answered: keep the fact, free the values, and the arguments of what will not be replayed.
            self._answers[index] = {rank: Answer() for rank in answers}
            if command is not None and not command.mutates:
                self._commands[index] = Command(command.name, (), mutates=False)
            return [answers[rank] for rank in range(self._world_size)]

    def _settled(self, index: int) -> bool:
        answers = self._answers[index]
        failed = self._failure is not None or any(answer.error for answer in answers.values())
        return failed or len(answers) == self._world_size

    async def missing(self, index: int) -> list[int]:
        """The ranks that have not answered yet."""
        return [rank for rank in range(self._world_size) if rank not in self._answers[index]]

    async def commit(self, state: Path) -> None:
        """From now on a rebuilt group starts at `state`; earlier commands are forgotten."""
        self._start = Start(state, len(self._commands))
        for index, command in enumerate(self._commands):
            if command is not None and command.arguments:
                self._commands[index] = Command(command.name, (), command.mutates)


@dataclass(frozen=True, slots=True)
class LearnerSpec:
    """What a Ray Train worker needs to become a learner."""

    inbox: Any  # a handle to Inbox; ray's handles have no static type
    learner: type
    arguments: dict[str, object] = field(default_factory=dict)
    threads: int = 1


def train_loop(spec: dict[str, LearnerSpec]) -> None:
    """Ray Train's `train_loop_per_worker`: build the learner, then execute commands until told to stop."""
    _serve(spec["spec"])


def _serve(spec: LearnerSpec) -> None:
    import torch

    torch.set_num_threads(spec.threads)
    rank = ray.train.get_context().get_world_rank()
    worker = {"pid": os.getpid(), "node": ray.util.get_node_ip_address()}
    start: Start = ray.get(spec.inbox.join.remote(rank, worker))
    try:
        learner = spec.learner(**spec.arguments, state=start.state)
    except Exception as error:
        ray.get(spec.inbox.fail.remote(rank, _describe(error)))
        raise
    index = start.index
    while True:
        command, answered = ray.get(spec.inbox.take.remote(index))
        if command is None:
            return
        if command.mutates or not answered:
            ray.get(spec.inbox.answer.remote(index, rank, _execute(learner, command)))
        index += 1


def _execute(learner: object, command: Command) -> Answer:
    arguments = [ray.get(a) if isinstance(a, ray.ObjectRef) else a for a in command.arguments]
    began = time.monotonic()
    try:
        value = getattr(learner, command.name)(*arguments)
        return Answer(value=value, seconds=time.monotonic() - began, ended=time.time())
    except Exception as error:  # the fault-tolerance seam: the error travels to the caller, the learner lives on
        return Answer(error=_describe(error))


def _describe(error: Exception) -> str:
    trace = "".join(traceback.format_exception(error)[-3:])
    return f"{type(error).__name__}: {error}\n{trace}"
