"""The controller's side of the replicated roles: shard the requests, stream the answers, ask again after a death.

What is asked of these roles depends on the arguments alone, and on the weights that an engine has. So a call whose
actor died is made again of the one that Ray starts in its place; only a call that nobody survives ends the try.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorDiedError, GetTimeoutError, RayTaskError
from torch import Tensor

from rlhf_ray.actors.inbox import TRIES
from rlhf_ray.actors.living import DEATHS
from rlhf_ray.data.batching import microbatches, rows_together
from rlhf_ray.errors import LostError, RunError, StallError
from rlhf_ray.ports import Busy
from rlhf_ray.types import Batch, Prompt, Rollout
from rlhf_ray.weight_sync.bucket import WeightPushError

HEALTH = "health"
"""The threads of an actor that say that it lives while others compute."""
_SCORE_CHUNK = 8
_BACK_S = 300.0
_POLL_S = 0.2
_NAMED = 5
"""Ids in the message about answers that do not come."""


class ActorLost(LostError):
    """An actor died with a call of ours. Ray starts it again."""


@dataclass
class Call:
    """A method of one replica that was called, and what it takes to call it again."""

    replica: int
    method: str
    arguments: tuple[object, ...]
    reference: Any


class Pool:
    """N actors of one role, `role-0` to `role-N`."""

    def __init__(self, role: str, actors: Sequence[Any], deadline_s: float) -> None:
        self.role, self.actors, self.deadline_s = role, list(actors), deadline_s
        self.tell: Callable[[str], None] = lambda sentence: None
        """Hears of deaths."""

    def get(self, reference: Any, replica: int, doing: str) -> Any:
        """The value behind `reference`; a late answer is a `StallError` with the actor's name. `ActorLost` after a
        death, or of an engine that died unnoticed and has no weights."""
        name = f"{self.role}-{replica}"
        try:
            return ray.get(reference, timeout=self.deadline_s)
        except GetTimeoutError:
            raise StallError(f"{name} did not finish '{doing}' within {self.deadline_s:.0f} s") from None
        except RayTaskError as error:
            kind = ActorLost if isinstance(error.cause, WeightPushError) else RunError
            raise kind(f"{name} failed at '{doing}': {error.cause}\n{error}") from error
        except DEATHS as error:
            raise ActorLost(f"{name} died during '{doing}': {error}") from error

    def call(self, replica: int, method: str, *arguments: object) -> Call:
        """Calls a method of one replica without waiting; `answer` awaits it."""
        return Call(replica, method, arguments, getattr(self.actors[replica], method).remote(*arguments))

    def answer(self, call: Call) -> Any:
        """What the call gave back. After a death it is made again, `TRIES` times in all."""
        for left in reversed(range(TRIES)):
            try:
                return self.get(call.reference, call.replica, call.method)
            except ActorLost as lost:
                if not left:
                    raise
                self.revive(call.replica, lost)
                call.reference = getattr(self.actors[call.replica], call.method).remote(*call.arguments)
        raise AssertionError  # the last try returned or raised

    def all(self, method: str, *arguments: object) -> list[Any]:
        """Calls a method of every actor at once; their answers in order."""
        calls = [self.call(i, method, *arguments) for i in range(len(self.actors))]
        return [self.answer(call) for call in calls]

    def busy(self) -> Busy:
        """The seconds of the busiest replica since the last call, and the spans of all."""
        found: list[Busy] = self.all("busy")
        return Busy(max(one.seconds for one in found), sorted(span for one in found for span in one.spans))

    def revive(self, replica: int, lost: ActorLost) -> None:
        """Waits until the actor that Ray starts in place of a dead one has loaded its model."""
        name, began, waited = f"{self.role}-{replica}", time.monotonic(), False
        while True:
            try:
                ray.get(self.actors[replica].ping.remote(), timeout=_BACK_S)
                break
            except (ActorDiedError, GetTimeoutError):
                raise lost from None
            except RayTaskError as error:
                raise RunError(f"{name} could not be started again: {error.cause}") from error
            except DEATHS:  # it is being started
                waited = True
                if time.monotonic() - began > _BACK_S:
                    raise lost from None
                time.sleep(_POLL_S)
        if waited:  # else another call has done so for the same death
            self.tell(f"{name} died and was started again within {time.monotonic() - began:.1f} s: nothing was lost.")


class RolloutPool(Pool):
    """The sampling engines as one port."""

    def __init__(self, actors: Sequence[Any], deadline_s: float, seed: int, owner: str = "") -> None:
        """`owner` is who has claimed the engines, if runs share them."""
        super().__init__("rollout", actors, deadline_s)
        self._seed, self.owner = seed, owner
        self.rearm: Callable[[], None] = lambda: None
        """Gives an engine that was started again its weights."""

    def generate(self, prompts_P: Sequence[Prompt], num_samples: int, step: int) -> Iterator[Rollout]:
        """Rollouts as they finish. All samples of a prompt go to one engine, which reuses its prefix."""
        engines = range(len(self.actors))
        missing = [
            {(prompt.id, sample): prompt for prompt in prompts_P[i :: len(engines)] for sample in range(num_samples)}
            for i in engines
        ]
        deaths = [0 for _ in engines]
        streams = {self._stream(i, missing[i], step): i for i in engines}
        while streams:
            ready, _ = ray.wait(list(streams), num_returns=1, timeout=self.deadline_s)
            if not ready:
                late = ", ".join(f"rollout-{i}" for i in streams.values())
                ids = [f"{prompt}/{sample}" for one in missing for prompt, sample in one]
                some = ", ".join(ids[:_NAMED])
                raise StallError(
                    f"{late}: none of {len(ids)} answers finished within {self.deadline_s:.0f} s, the first: {some}"
                )
            stream: Any = ready[0]
            i = streams[stream]
            try:
                rollouts: list[Rollout] = self.get(next(stream), i, "generate")
            except StopIteration:
                del streams[stream]
                if missing[i]:
                    raise RunError(f"rollout-{i} ended without {len(missing[i])} of its rollouts") from None
                continue
            except ActorLost as lost:
                deaths[i] += 1
                if deaths[i] == TRIES:
                    raise
                del streams[stream]
                self.revive(i, lost)
                self.rearm()
                streams[self._stream(i, missing[i], step)] = i
                continue
            for rollout in rollouts:
                del missing[i][rollout.prompt.id, rollout.sample_index]
            yield from rollouts

    def _stream(self, replica: int, wanted: dict[tuple[str, int], Prompt], step: int) -> Any:
        asked = [(prompt, sample) for (_, sample), prompt in wanted.items()]
        actor = self.actors[replica]
        return actor.generate.options(num_returns="streaming").remote(asked, (self._seed, step), self.owner)


class RewardPool(Pool):
    """The reward replicas as one port. Chunks are scored while later rollouts are still being generated."""

    def __init__(self, actors: Sequence[Any], deadline_s: float) -> None:
        super().__init__("reward", actors, deadline_s)

    def submit(self, rollouts: Iterable[Rollout]) -> Callable[[], list[Rollout]]:
        """Hands on chunks as they fill; call the result for all rollouts with their scores."""
        waiting: list[Call] = []
        chunk: list[Rollout] = []
        for rollout in rollouts:
            chunk.append(rollout)
            if len(chunk) == _SCORE_CHUNK:
                waiting.append(self.call(len(waiting) % len(self.actors), "score", chunk))
                chunk = []
        if chunk:
            waiting.append(self.call(len(waiting) % len(self.actors), "score", chunk))
        return lambda: [rollout for call in waiting for rollout in self.answer(call)]


class ReferencePool(Pool):
    """The frozen reference replicas as one port."""

    def __init__(self, actors: Sequence[Any], deadline_s: float, microbatch_tokens: int) -> None:
        super().__init__("reference", actors, deadline_s)
        self._budget = microbatch_tokens

    def logprobs(self, batch: Batch, temperature: float | None = None) -> Tensor:
        """`log p(token | tokens before)` under the reference, `[B, T]`, at the sampling temperature if none is given;
        rows are sharded over the replicas."""
        lengths = batch.attention_mask.sum(dim=1)
        split = microbatches(lengths, len(self.actors), self._budget)
        shards = [[rows for rows in shard if len(rows)] for shard in split]
        shared = ray.put(batch)
        calls = [self.call(i, "logprobs", shared, rows, temperature) for i, rows in enumerate(shards)]
        found = (self.answer(call) for call in calls)
        answers = (pair for shard, given in zip(shards, found, strict=True) for pair in zip(shard, given, strict=True))
        return rows_together(batch, answers)
