"""Rollouts of later steps while the learners are busy with this one: one port around another, not a second loop."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rlhf_ray import metrics as names
from rlhf_ray.ports import Metrics, PromptSource, RolloutPort, State
from rlhf_ray.types import Prompt, Rollout


@dataclass
class _Job:
    """The rollouts of one step, from the moment that their prompts are taken."""

    step: int
    prompts: list[Prompt]
    before: State
    """Of the prompt source, before it gave these."""
    rollouts: queue.SimpleQueue[Rollout | BaseException | None] = field(default_factory=queue.SimpleQueue)
    """As they finish; then None, or what went wrong."""


class LaggedRollouts:
    """Prompt source and rollout port in one. At most `max_lag` weight pushes happen between the start of a step's
    generation and its end: while step s is consumed, the engines work on the steps up to s + max_lag, in order.

    A checkpoint holds the prompts' state before the oldest step that was not consumed, so a resumed run asks for the
    answers that were under way again, from the policy that it resumes with.
    """

    def __init__(
        self, prompts: PromptSource, rollout: RolloutPort, max_lag: int, num_samples: int, steps: range
    ) -> None:
        """`steps` are those that the run still has to do."""
        self._source, self._rollout, self._max_lag, self._num_samples = prompts, rollout, max_lag, num_samples
        self._next, self._last = steps.start, steps.stop - 1
        self._jobs: deque[_Job] = deque()
        self._work: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._lags: list[int] = []
        threading.Thread(target=self._generate_ahead, name="rollouts-ahead", daemon=True).start()

    def take(self, count: int) -> list[Prompt]:
        """The prompts of the next step; those of the steps after it are sent to the engines."""
        step = self._jobs[0].step if self._jobs else self._next
        while self._next <= min(step + self._max_lag, self._last):
            job = _Job(self._next, [], self._source.state_dict())
            job.prompts = self._source.take(count)
            self._jobs.append(job)
            self._work.put(job)
            self._next += 1
        return self._jobs[0].prompts

    def generate(self, prompts_P: Sequence[Prompt], num_samples: int, step: int) -> Iterator[Rollout]:
        """The rollouts of the prompts that `take` gave last, as they finish or have finished already."""
        job = self._jobs[0]
        if job.step != step or num_samples != self._num_samples:
            raise ValueError(f"asked for step {step} with {num_samples} samples, but step {job.step} is next")
        while (found := job.rollouts.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            self._lags.append(step - 1 - found.policy_version)
            yield found
        self._jobs.popleft()

    def found(self) -> Metrics:
        """The lag of the rollouts since the last call: weight pushes between a response's first token and its use."""
        lags, self._lags = self._lags, []
        return {names.LAG_MEAN: sum(lags) / len(lags), names.LAG_MAX: float(max(lags))} if lags else {}

    def state_dict(self) -> State:
        """As if nothing had been taken for later steps."""
        return self._jobs[0].before if self._jobs else self._source.state_dict()

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continues from `state_dict()`, before anything is taken."""
        self._source.load_state_dict(state)

    def _generate_ahead(self) -> None:
        while True:
            job = self._work.get()
            try:
                for rollout in self._rollout.generate(job.prompts, self._num_samples, job.step):
                    job.rollouts.put(rollout)
                job.rollouts.put(None)
            except BaseException as error:  # it belongs to whoever waits for these rollouts
                job.rollouts.put(error)
