"""The rollout actor: a vLLM engine in the actor's own process, stepped by hand.

One thread owns the engine. `generate` hands it requests and yields responses as they finish; `load_weights` swaps the
weights between two engine steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from rlhf_ray.actors.living import Living
from rlhf_ray.actors.request import Request, request_seed
from rlhf_ray.actors.stopwatch import Stopwatch
from rlhf_ray.actors.vllm_engine import EngineSpec, make_engine, sampling_params
from rlhf_ray.ports import Busy
from rlhf_ray.types import Prompt, Rollout
from rlhf_ray.weight_sync.broadcast import Rendezvous
from rlhf_ray.weight_sync.bucket import Bucket, WeightPushError

T = TypeVar("T")


class RolloutActor(Living):
    """One vLLM engine. It refuses to generate unless a verified push gave it a version."""

    def __init__(self, spec: EngineSpec, *after: None) -> None:
        """Ray waits with it for what `after` are the values of."""
        self._spec = spec
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="vllm")
        self._version: int | None = None
        self._reason = "no weights have been pushed yet"
        self._owner = ""
        self._waiting: dict[str, Request] = {}
        self._numbers = itertools.count()
        self._watch = Stopwatch()
        self._engine = self._on_engine(lambda: make_engine(spec))

    def ping(self) -> int:
        """The number of tensor-parallel workers, once the engine is ready."""
        return self._spec.rollout.tensor_parallel

    def busy(self) -> Busy:
        """When the engine stepped since the last call."""
        return self._watch.take()

    def join(self, meeting: Rendezvous, first_rank: int, buckets: Sequence[Bucket]) -> None:
        """Makes this engine's workers members of the weight group."""
        self._on_engine(lambda: self._engine.collective_rpc("join_weight_group", args=(meeting, first_rank, buckets)))

    def claim(self, owner: str) -> None:
        """From now on the engine works for `owner` only, without weights or requests of others. A push of others that
        has not come this far fails."""

        def drop() -> None:
            self._engine.abort_request(list(self._waiting))
            self._waiting.clear()
            self._engine.collective_rpc("leave_weight_group")
            self._owner, self._version, self._reason = owner, None, f"{owner} has pushed none yet"

        if owner != self._owner:
            self._on_engine(drop)

    def load_weights(self, version: int) -> int:
        """Receives one push; returns the number of tensors. After a failure the engine refuses to generate."""

        def load() -> int:
            before = self._version
            self._version, self._reason = None, f"the push of version {version} has not finished"
            counts = self._engine.collective_rpc("receive_weights", args=(version,))
            if faults := [count for count in counts if isinstance(count, str)]:
                self._reason = f"the push of version {version} failed: {faults[0]}"
                raise WeightPushError(self._reason)
            if before != version:  # else it is for another engine, and what has been computed is of the same weights
                # Requests that are under way keep their tokens; what they attend to is computed again.
                self._engine.reset_prefix_cache(reset_running_requests=True)
            self._version = version
            return int(counts[0])

        return self._on_engine(load)

    def generate(
        self, wanted: Sequence[tuple[Prompt, int]], seed: tuple[object, ...], owner: str = ""
    ) -> Iterator[list[Rollout]]:
        """Lists of rollouts as they finish, of (prompt, number of the sample). Each sample has its own seed."""
        waiting = self._waiting = {}
        try:
            for prompt, sample in wanted:
                request = str(next(self._numbers))
                waiting[request] = Request(prompt, sample)
                self._on_engine(lambda r=request, p=prompt, s=sample: self._add(r, p, request_seed(*seed, p.id, s)))  # type: ignore[misc]  # defaults bind the loop variables
            while waiting:
                version, outputs = self._on_engine(lambda: self._step(owner))
                for output in outputs:
                    waiting[output.request_id].note(version, output)
                if done := [output for output in outputs if output.finished]:
                    yield [waiting.pop(output.request_id).rollout(output) for output in done]
        finally:  # after a refusal, or when nobody wants the rest, the engine must not go on with it
            self._on_engine(lambda: self._engine.abort_request(list(waiting)))

    def _add(self, request: str, prompt: Prompt, seed: int) -> None:
        # n samples of one seeded request would all be the same, hence one request a sample.
        ids = {"prompt_token_ids": list(prompt.token_ids)}
        self._engine.add_request(request, ids, sampling_params(self._spec, seed))

    def _step(self, owner: str) -> tuple[int, list[Any]]:
        if owner != self._owner and self._owner:
            raise RuntimeError(f"{owner} asks, but this engine works for {self._owner}")
        if self._version is None or owner != self._owner:
            raise WeightPushError(f"this engine has no valid weights: {self._reason}")
        with self._watch:
            return self._version, self._engine.step()

    def _on_engine(self, work: Callable[[], T]) -> T:
        return self._thread.submit(work).result()
