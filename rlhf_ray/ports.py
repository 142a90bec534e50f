"""What the loop needs from the outside: one Protocol a role. Actors implement them; tests implement them in memory.

Every call blocks until its answer is there, has a deadline inside the implementation, and raises an error that names
the actor at fault.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

from torch import Tensor

from rlhf_ray.types import Batch, Prompt, Rollout

Metrics = dict[str, float]
State = dict[str, object]
Written = Callable[[], None]
"""Waits until all is on disk that was to be written."""
Save = Callable[[Path], Written]
T = TypeVar("T")
Span = tuple[float, float]
"""Begin and end, in seconds since the epoch."""


class Busy(NamedTuple):
    """How long a role computed, and when: spans that are close to each other may be one."""

    seconds: float
    spans: list[Span]


class PromptSource(Protocol):
    """An endless, seeded, resumable order of prompts; each prompt is used once an epoch."""

    def take(self, count: int) -> list[Prompt]: ...
    def state_dict(self) -> State: ...
    def load_state_dict(self, state: Mapping[str, object]) -> None: ...


class RolloutPort(Protocol):
    """The sampling engines."""

    def generate(self, prompts_P: Sequence[Prompt], num_samples: int, step: int) -> Iterator[Rollout]:
        """`num_samples` rollouts a prompt, each as soon as it is finished, in any order."""


class RewardPort(Protocol):
    """The reward sources."""

    def submit(self, rollouts: Iterable[Rollout]) -> Callable[[], list[Rollout]]:
        """Takes rollouts as they come and scores them meanwhile; returns at the last one. Call the result for all of
        them with their `score`, in any order."""


class ReferencePort(Protocol):
    """The frozen reference policy."""

    def logprobs(self, batch: Batch, temperature: float | None = None) -> Tensor:
        """`[B, T]`, at the sampling temperature if none is given."""


class LearnerPort(Protocol):
    """What policy and critic share: they write themselves into a checkpoint, and start from it once it is committed."""

    def save(self, folder: Path) -> Written:
        """Writes the state as it is now, beside what is asked next."""

    def committed(self, path: Path) -> None: ...


class PolicyPort(LearnerPort, Protocol):
    """The learner of the policy."""

    def logprobs(self, batch: Batch) -> Tensor: ...
    def update(self, batch: Batch, step: int, kl_coef: float) -> Metrics: ...


class CriticPort(LearnerPort, Protocol):
    """The learner of the value function."""

    def values(self, batch: Batch) -> Tensor: ...
    def update(self, batch: Batch, step: int) -> Metrics: ...


class WeightSync(Protocol):
    """Moves the policy's weights into the sampling engines."""

    def push(self, version: int) -> Metrics:
        """Every engine now holds the policy's weights as `version`; verified, or an error names the actor."""


class Algorithm(Protocol):
    """An online algorithm: what the learners train on from a scored batch, and controllers with state."""

    @property
    def kl_coef(self) -> float:
        """The price of KL to the reference in this step: PPO's coefficient, beta of DPO."""

    def advantages(self, batch: Batch, prompts: Tensor, adapt: bool = True) -> tuple[Batch, Metrics]:
        """The batch that the learners train on, and what was found. `prompts` numbers the prompt of each row; unless
        `adapt`, controllers stay as they are."""

    def state_dict(self) -> State: ...
    def load_state_dict(self, state: Mapping[str, object]) -> None: ...


class Journal(Protocol):
    """The run directory, as the loop sees it."""

    def metrics(self, step: int, metrics: Metrics) -> None: ...
    def phase(self, step: int, name: str) -> None: ...
    def rollouts(self, step: int, rollouts: Sequence[Rollout]) -> None: ...
    def spans(self, step: int, lanes: Mapping[str, Sequence[Span]]) -> None: ...
    def event(self, kind: str, sentence: str, **details: object) -> None: ...
    def commit_beside(self, step: int, state: State, save: Save, committed: Callable[[Path], None]) -> None:
        """Makes `checkpoints/step-N` durable in one atomic move, beside the steps that follow. `save(folder)` begins to
        write the models' files and gives a call that waits for them; `committed(path)` is called at the end."""

    def settle(self) -> None:
        """Waits for the commit that is under way, if one is; an error if it failed."""


class Together(Protocol):
    """Runs independent calls and returns their answers in order: side by side, or in turn on shared cores."""

    def __call__(self, *calls: Callable[[], T]) -> list[T]: ...


@dataclass(frozen=True, slots=True)
class Roles:
    """Everything the loop talks to."""

    prompts: PromptSource
    rollout: RolloutPort
    reward: RewardPort
    reference: ReferencePort
    policy: PolicyPort
    critic: CriticPort | None
    """None if the algorithm needs no values."""
    weights: WeightSync
    journal: Journal
    together: Together
    busy: Callable[[], dict[str, Busy]]
    """What each role computed since the last call."""
    should_stop: Callable[[], bool]
    """True once somebody asked the run to end at the next step."""
    found: Callable[[], Metrics] = dict
    """What ports around other ports measured since the last call."""

    @property
    def learners(self) -> list[LearnerPort]:
        """The roles with state to keep."""
        return [self.policy] if self.critic is None else [self.policy, self.critic]

    def save(self, folder: Path) -> Written:
        """All learners write themselves."""
        waits = [learner.save(folder) for learner in self.learners]

        def written() -> None:
            for wait in waits:
                wait()

        return written

    def committed(self, path: Path) -> None:
        """All learners start from it."""
        for learner in self.learners:
            learner.committed(path)
