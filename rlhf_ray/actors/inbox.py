"""How a Ray Train worker group becomes a persistent learner: its workers take commands from an inbox.

`train_loop` executes one command after another, on every rank in the same order; the first builds the learner. When
Ray Train rebuilds a group after a death, the new ranks load the last committed state and replay what changed it since
(`Command.mutates`); the caller just sees a slow answer.
"""

from __future__ import annotations

import asyncio
import gc
import time
import traceback
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray


@dataclass(frozen=True, slots=True)
class Command:
    """A method of the learner and its arguments. `mutates`: it must be replayed to rebuild the state after it."""

    name: str
    arguments: tuple[object, ...]
    mutates: bool


TRIES = 3
"""So often what died is started again in vain; then it is the fault of what it was asked."""
BEGIN = "begin"
"""The command whose one argument is a `Begin`."""


@dataclass(frozen=True, slots=True)
class Begin:
    """Which learner a rank is: its class, what it is made with, and the committed state that it starts from."""

    learner: type
    arguments: dict[str, object]
    state: Path | None

    def build(self) -> Any:
        """The learner."""
        return self.learner(**self.arguments, state=self.state)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one rank gave back: a value, or the error that it met."""

    value: object = None
    error: str | None = None
    seconds: float = 0.0
    ended: float = 0.0


@dataclass(frozen=True, slots=True)
class Start:
    """Where a (re)built rank begins: as the learner last committed, if one was, at the first command after that."""

    begin: Begin | None
    index: int


class Inbox:
    """The mailbox of one worker group. An asynchronous actor: every method returns at once or waits unblocking."""

    def __init__(self, world_size: int) -> None:
        self._world_size = world_size
        self._commands: list[Command | None] = []
        self._answers: list[dict[int, Answer]] = []
        self._begin: Begin | None = None
        self._start = Start(None, 0)
        self._changed = asyncio.Condition()
        self._joins = 0
        self._joins_in_vain = 0
        self._workers: dict[int, Any] = {}

    async def join(self, rank: int, worker: Any) -> Start:
        """Registers a rank, an actor, and tells it where to begin. Errors of the group before this one are forgotten: a
        rank whose neighbour dies in a collective reports one."""
        self._joins += 1
        self._joins_in_vain += 1
        self._workers[rank] = worker
        self._answers = [
            {of: answer for of, answer in answers.items() if answer.error is None} for answers in self._answers
        ]
        return self._start

    async def workers(self) -> dict[int, Any]:
        """The ranks' actors."""
        return self._workers

    async def incarnation(self) -> int:
        """How many ranks have ever joined: it grows when Ray Train rebuilds the group."""
        return self._joins

    async def post(self, command: Command | None, since: int | None = None) -> int | None:
        """Appends a command (None: stop) and returns its index; None if a command after number `since` mutates."""
        async with self._changed:
            if since is not None and any(after and after.mutates for after in self._commands[since + 1 :]):
                return None
            if command is not None and command.name == BEGIN:
                self._forget()
                self._begin = command.arguments[0]  # type: ignore[assignment]  # a Begin, as BEGIN says
                self._start = Start(None, len(self._commands))
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
            if self._in_vain():
                faults.append(f"its ranks died more than {TRIES} times in turn")
            if faults:
                return [Answer(error="; ".join(faults))]
            self._joins_in_vain = 0
            # Answered: keep the fact, free the values, and the arguments of what will not be replayed.
            self._answers[index] = {rank: Answer() for rank in answers}
            if command is not None and not command.mutates:
                self._commands[index] = Command(command.name, (), mutates=False)
            return [answers[rank] for rank in range(self._world_size)]

    def _settled(self, index: int) -> bool:
        answers = self._answers[index]
        return len(answers) == self._world_size or any(answer.error for answer in answers.values()) or self._in_vain()

    def _in_vain(self) -> bool:
        return self._joins_in_vain > TRIES * self._world_size

    async def missing(self, index: int) -> list[int]:
        """The ranks that have not answered yet."""
        return [rank for rank in range(self._world_size) if rank not in self._answers[index]]

    async def commit(self, state: Path) -> None:
        """From now on a rebuilt group starts at `state`; earlier commands are forgotten."""
        assert self._begin is not None  # what is committed has begun
        self._start = Start(replace(self._begin, state=state), len(self._commands))
        self._forget()

    def _forget(self) -> None:
        for index, command in enumerate(self._commands):
            if command is not None and command.arguments:
                self._commands[index] = Command(command.name, (), command.mutates)


def train_loop(arguments: dict[str, Any]) -> None:
    """Ray Train's `train_loop_per_worker`: executes commands until told to stop. `arguments` has the `inbox`, a handle
    without a static type, and the CPU `threads` of a rank.
    """
    import torch

    torch.set_num_threads(arguments["threads"])
    _serve(arguments["inbox"])


def _serve(inbox: Any) -> None:
    import ray.train  # takes a second, which an inbox need not

    rank = ray.train.get_context().get_world_rank()
    start: Start = ray.get(inbox.join.remote(rank, ray.get_runtime_context().current_actor))
    learner = start.begin.build() if start.begin is not None else None
    index = start.index
    while True:
        command, answered = ray.get(inbox.take.remote(index))
        if command is None:
            return
        if command.name == BEGIN:
            learner = None
            gc.collect()  # two models at once may not fit
            learner, answer = _begin(command.arguments[0])
            ray.get(inbox.answer.remote(index, rank, answer))
        elif command.mutates or not answered:
            ray.get(inbox.answer.remote(index, rank, _execute(learner, command)))
        index += 1


def _begin(begin: Begin) -> tuple[Any, Answer]:
    try:
        return begin.build(), Answer()
    except Exception as error:  # the caller decides what becomes of a group whose learner cannot be built
        return None, Answer(error=_describe(error))


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
