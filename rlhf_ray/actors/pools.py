"""The controller's side of the replicated roles: shard the requests, stream the answers, name the culprit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from torch import Tensor

from rlhf_ray.data.batching import microbatches, rows_together
from rlhf_ray.errors import RunError
from rlhf_ray.ports import Busy
from rlhf_ray.types import Batch, Prompt, Rollout

_SCORE_CHUNK = 8


class Pool:
    """N actors of one role, `role-0` to `role-N`."""

    def __init__(self, role: str, actors: Sequence[Any], deadline_s: float) -> None:
        self.role, self.actors, self.deadline_s = role, list(actors), deadline_s

    def get(self, reference: Any, replica: int, doing: str) -> Any:
        """The value behind `reference`; a late answer or a death is a `RunError` with the actor's name."""
        name = f"{self.role}-{replica}"
        try:
            return ray.get(reference, timeout=self.deadline_s)
        except GetTimeoutError:
            raise RunError(f"{name} did not finish '{doing}' within {self.deadline_s:.0f} s") from None
        except RayTaskError as error:
            raise RunError(f"{name} failed at '{doing}': {error.cause}\n{error}") from error
        except RayActorError as error:
            raise RunError(f"{name} died during '{doing}': {error}") from error

    def all(self, doing: str, *arguments: object) -> list[Any]:
        """Calls the method `doing` of every actor at once; their answers in order."""
        references = [getattr(actor, doing).remote(*arguments) for actor in self.actors]
        return [self.get(reference, i, doing) for i, reference in enumerate(references)]

    def busy(self) -> Busy:
        """The seconds of the busiest replica since the last call, and the spans of all."""
        found: list[Busy] = self.all("busy")
        return Busy(max(one.seconds for one in found), sorted(span for one in found for span in one.spans))


class RolloutPool(Pool):
    """The sampling engines as one port."""

    def __init__(self, actors: Sequence[Any], deadline_s: float, seed: int, owner: str = "") -> None:
        """`owner` is who has claimed the engines, if runs share them."""
        super().__init__("rollout", actors, deadline_s)
        self._seed, self.owner = seed, owner

    def generate(self, prompts_P: Sequence[Prompt], num_samples: int, step: int) -> Iterator[Rollout]:
        """Rollouts as they finish. All samples of a prompt go to one engine, which reuses its prefix."""
        streams = {
            actor.generate.options(num_returns="streaming").remote(
                prompts_P[i :: len(self.actors)], num_samples, (self._seed, step), self.owner
            ): i
            for i, actor in enumerate(self.actors)
        }
        while streams:
            ready, _ = ray.wait(list(streams), num_returns=1, timeout=self.deadline_s)
            if not ready:
                late = ", ".join(f"rollout-{i}" for i in streams.values())
                raise RunError(f"{late}: no rollout finished within {self.deadline_s:.0f} s")
            stream: Any = ready[0]
            try:
                chunk = next(stream)
            except StopIteration:
                del streams[stream]
                continue
            yield from self.get(chunk, streams[stream], "generate")


class RewardPool(Pool):
    """The reward replicas as one port. Chunks are scored while later rollouts are still being generated."""

    def __init__(self, actors: Sequence[Any], deadline_s: float) -> None:
        super().__init__("reward", actors, deadline_s)

    def submit(self, rollouts: Iterable[Rollout]) -> Callable[[], list[Rollout]]:
        """Hands on chunks as they fill; call the result for all rollouts with their scores."""
        waiting: list[tuple[Any, int]] = []
        chunk: list[Rollout] = []
        for rollout in rollouts:
            chunk.append(rollout)
            if len(chunk) == _SCORE_CHUNK:
                waiting.append(self._submit(chunk, len(waiting)))
                chunk = []
        if chunk:
            waiting.append(self._submit(chunk, len(waiting)))
        return lambda: [rollout for reference, i in waiting for rollout in self.get(reference, i, "score")]

    def _submit(self, chunk: list[Rollout], number: int) -> tuple[Any, int]:
        replica = number % len(self.actors)
        return self.actors[replica].score.remote(chunk), replica


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
        pairs = zip(self.actors, shards, strict=True)
        references = [actor.logprobs.remote(shared, rows, temperature) for actor, rows in pairs]
        found = (self.get(reference, i, "logprobs") for i, reference in enumerate(references))
        answers = (pair for shard, given in zip(shards, found, strict=True) for pair in zip(shard, given, strict=True))
        return rows_together(batch, answers)
