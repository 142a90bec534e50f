"""How a Ray Train worker group becomes a persistent learner: its workers take commands from an inbox (`rank.py`).

When Ray Train rebuilds a group after a death, the new ranks load the last committed state and replay what changed it
since (`Command.mutates`); the caller just sees a slow answer. The inbox keeps its group in being, whoever calls.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray

from rlhf_ray.actors.worker_group import WorkerGroup
from rlhf_ray.errors import LostError


@dataclass(frozen=True, slots=True)
class Command:
    """A method of the learner and its arguments. `mutates`: it must be replayed to rebuild the state after it.
    `forgotten`: its arguments are gone, because nobody has to execute it any more."""

    name: str
    arguments: tuple[object, ...]
    mutates: bool
    forgotten: bool = False


COMES_S = 180.0
"""So long the first rank of a group may take to come to its inbox. What the run asks for, the cluster has."""
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
    """The mailbox of one worker group. An asynchronous actor: every method returns at once or waits unblocking.

    Ray starts one that dies again, empty, with another group. Indexes count from the time at which it was started, so
    those of the one before are unknown, and refused with `LostError`: to its ranks and to whoever waits for them.
    """

    def __init__(
        self, world_size: int, group: WorkerGroup | None = None, clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        """`group` is what it keeps in being."""
        self._world_size = world_size
        self._first = clock_ns()
        self._commands: list[Command | None] = []
        self._answers: list[dict[int, Answer]] = []
        self._begin: Begin | None = None
        self._begun_at = 0
        self._start = Start(None, self._first)
        self._changed = asyncio.Condition()
        self._joins = 0
        self._joins_in_vain = self._ends_in_vain = 0
        self._workers: dict[int, Any] = {}
        self._train_controller: Any = None
        self._ended: str | None = None
        self._taken = time.monotonic()
        self._awaited: float | None = None
        if group is not None:
            context = ray.get_runtime_context()
            self._awaited = time.monotonic()
            threading.Thread(target=self._fit, args=(group, context.current_actor), name="fit", daemon=True).start()

    def _fit(self, group: WorkerGroup, myself: Any) -> None:
        """Ray Train's group again and again: those whose controller dies take their ranks with them."""
        while self._ends_in_vain < TRIES:
            try:
                group.fit(myself)
                self._ended = "it stopped"
                return
            except Exception as error:  # the fault-tolerance seam: a thread has no caller to raise to
                self._ends_in_vain += 1
                self._awaited = time.monotonic()
                reason = f"{type(error).__name__}: {error}"
        self._ended = reason

    async def ended(self) -> str | None:
        """Why Ray Train's group is over for good, once it is. `LostError` if it does not come: its controller may hang,
        or Ray keeps the place of one whose controller died while it took it, until the driver ends."""
        if self._awaited is not None and time.monotonic() - self._awaited > COMES_S:
            raise LostError(f"no rank of the group has come within {COMES_S:.0f} s")
        return self._ended

    async def next_index(self) -> int:
        """That of the command which is posted next."""
        return self._first + len(self._commands)

    async def begun(self, since: int) -> None:
        """Waits until every rank is the learner of a BEGIN at index `since` or later, of this inbox or of one that was
        started again."""
        async with self._changed:
            await self._changed.wait_for(
                lambda: self._begun_at >= since and self._is_answered(self._begun_at - self._first)
            )

    async def join(self, rank: int, worker: Any) -> Start:
        """Registers a rank, an actor, and tells it where to begin.

        Errors of the group before this one are forgotten: a rank whose neighbour dies in a collective reports one. So
        are the rank's own answers to what others have not answered: it will do that again, and who waits for it, for
        example to seal files, must wait for that.
        """
        self._joins += 1
        self._joins_in_vain += 1
        self._workers[rank] = worker
        self._awaited = None
        for number, answers in enumerate(self._answers):
            values = {of: answer for of, answer in answers.items() if answer.error is None}
            if len(values) < self._world_size:
                values.pop(rank, None)
            self._answers[number] = values
        return self._start

    async def workers(self) -> dict[int, Any]:
        """The ranks' actors."""
        return self._workers

    async def controlled_by(self, train_controller: Any) -> None:
        """Ray Train's controller, an actor, introduces itself."""
        self._train_controller = train_controller

    async def train_controller(self) -> Any:
        """The one that controls the group, if it has introduced itself."""
        return self._train_controller

    async def incarnation(self) -> int:
        """Grows when Ray Train rebuilds the group: how many ranks have ever joined, on top of when the first could."""
        return self._first + self._joins

    async def post(self, command: Command | None, since: int | None = None) -> int | None:
        """Appends a command (None: stop) and returns its index; None if a command after number `since` mutates."""
        if self._begin is None and command is not None and command.name != BEGIN:
            raise LostError("the inbox was started again: nobody has begun at it")
        async with self._changed:
            after = [] if since is None else self._commands[self._known(since) + 1 :]
            if any(later and later.mutates for later in after):
                return None
            if command is not None and command.name == BEGIN:
                self._forget(len(self._commands))
                self._begin = command.arguments[0]  # type: ignore[assignment]  # a Begin, as BEGIN says
                self._begun_at = self._first + len(self._commands)
                self._start = Start(None, self._begun_at)
                self._joins_in_vain = self._ends_in_vain = 0  # ranks may have died of what its predecessor had sent
            self._commands.append(command)
            self._answers.append({})
            self._changed.notify_all()
            return self._first + len(self._commands) - 1

    async def take(self, index: int) -> tuple[Command | None, bool]:
        """The command at `index` once it is there, and whether all ranks have answered it already."""
        async with self._changed:
            number = self._known(index)
            await self._changed.wait_for(lambda: len(self._commands) > number)
            self._taken = time.monotonic()
            return self._commands[number], self._is_answered(number)

    async def answer(self, index: int, rank: int, answer: Answer) -> None:
        """Stores a rank's answer."""
        async with self._changed:
            self._answers[self._known(index)][rank] = answer
            self._changed.notify_all()

    async def wait(self, index: int, timeout_s: float) -> list[Answer] | None:
        """All ranks' answers in rank order; None if they are not there in time. The first error answers for all ranks:
        the others may wait in a collective for the one that failed."""
        async with self._changed:
            number = self._known(index)
            try:
                await asyncio.wait_for(self._changed.wait_for(lambda: self._settled(number)), timeout_s)
            except TimeoutError:
                return None
            answers, command = self._answers[number], self._commands[number]
            faults = [f"rank {rank}: {answer.error}" for rank, answer in sorted(answers.items()) if answer.error]
            if self._in_vain():
                faults.append(f"its ranks died more than {TRIES} times in turn")
            if faults:
                return [Answer(error="; ".join(faults))]
            self._joins_in_vain = self._ends_in_vain = 0
            # Answered: keep the fact, free the values, and the arguments of what will not be replayed.
            self._answers[number] = {rank: Answer() for rank in answers}
            if command is not None and not command.mutates:
                self._commands[number] = replace(command, arguments=(), forgotten=True)
            return [answers[rank] for rank in range(self._world_size)]

    def _known(self, index: int) -> int:
        """Its place in the list."""
        if index < self._first:
            raise LostError("the inbox was started again: what was sent to it before is lost")
        return index - self._first

    def _is_answered(self, number: int) -> bool:
        return len(self._answers[number]) == self._world_size

    def _settled(self, number: int) -> bool:
        answers = self._answers[number].values()
        return self._is_answered(number) or any(answer.error for answer in answers) or self._in_vain()

    def _in_vain(self) -> bool:
        return self._joins_in_vain > TRIES * self._world_size

    async def failed(self, index: int) -> bool:
        """Whether a rank has answered with an error, and none has joined since; or the ranks have died too often."""
        return self._in_vain() or any(answer.error for answer in self._answers[self._known(index)].values())

    async def idle_s(self) -> float:
        """Since a rank has taken a command: one that was built again takes those of the past first."""
        return time.monotonic() - self._taken

    async def missing(self, index: int) -> list[int]:
        """The ranks that have not answered yet."""
        answers = self._answers[self._known(index)]
        return [rank for rank in range(self._world_size) if rank not in answers]

    async def commit(self, state: Path, index: int) -> None:
        """From now on a rebuilt group starts at `state`, which the command at `index` has written; what was sent until
        then is forgotten. Nothing happens if another controller has begun since."""
        after = self._known(index) + 1
        if self._begin is None or index < self._begun_at:
            return
        self._start = Start(replace(self._begin, state=state), self._first + after)
        self._forget(after)

    def _forget(self, before: int) -> None:
        for number, command in enumerate(self._commands[:before]):
            if command is not None and not command.forgotten:
                self._commands[number] = replace(command, arguments=(), forgotten=True)
