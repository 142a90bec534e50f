"""Every role of the loop in memory: scripted answers, and one list that records who was called in which order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from rlhf_ray import metrics as names
from rlhf_ray.data.prompts import ShuffledPrompts
from rlhf_ray.ports import Busy, Metrics, Roles, Save, Span, State, Written
from rlhf_ray.types import Batch, Message, Prompt, Rollout, Score

T = TypeVar("T")
PAD = 0


def prompts(count: int) -> list[Prompt]:
    """`p0` to `pN`, of different lengths."""
    return [Prompt(f"p{i}", (Message("user", f"question {i}"),), tuple(range(3, 5 + i % 3))) for i in range(count)]


class FakePrompts(ShuffledPrompts):
    """The real order of prompts, remembering what was taken."""

    def __init__(self, all_prompts: Sequence[Prompt], seed: int = 0) -> None:
        super().__init__(all_prompts, seed)
        self.taken: list[list[str]] = []

    def take(self, count: int) -> list[Prompt]:
        found = super().take(count)
        self.taken.append([prompt.id for prompt in found])
        return found


@dataclass
class FakeEngines:
    """The sampling engines and the weight push into them. Rollouts come back in the reverse order."""

    events: list[str]
    truncated: frozenset[str] = frozenset()
    version: int = 0

    def generate(self, prompts_P: Sequence[Prompt], num_samples: int, step: int) -> Iterator[Rollout]:
        self.events.append(f"generate {step} with version {self.version}")
        for prompt, sample in reversed(list(itertools.product(prompts_P, range(num_samples)))):
            ids = tuple(range(3, 5 + sample))
            rollout = Rollout(prompt, sample, ids, (-1.0,) * len(ids), "text", "stop", self.version)
            yield replace(rollout, finish_reason="length") if rollout.id in self.truncated else rollout
        self.events.append(f"generated {step}")

    def push(self, version: int) -> Metrics:
        self.events.append(f"push {version}")
        self.version = version
        return {names.CHECKSUM_BUCKETS: 1.0}


@dataclass
class FakeReward:
    """Every rollout is worth its sample index plus one, unless `errors` has its id."""

    events: list[str]
    errors: Mapping[str, str] = field(default_factory=dict)

    def submit(self, rollouts: Iterable[Rollout]) -> Callable[[], list[Rollout]]:
        self.events.append("submit")
        scored = [rollout.with_score(self._score(rollout)) for rollout in rollouts]

        def collect() -> list[Rollout]:
            self.events.append("scores")
            return scored

        return collect

    def _score(self, rollout: Rollout) -> Score:
        reward = float(rollout.sample_index + 1)
        error = self.errors.get(rollout.id)
        return Score(float("nan"), {}, error) if error else Score(reward, {"fake": reward})


@dataclass
class FakeReference:
    """Agrees with the engines."""

    events: list[str]

    def logprobs(self, batch: Batch, temperature: float | None = None) -> Tensor:
        self.events.append("reference.logprobs")
        return batch.rollout_logprobs.clone()


@dataclass
class FakePolicy:
    """Agrees with the engines; keeps the batches of its updates."""

    events: list[str]
    batches: list[Batch] = field(default_factory=list)
    kl_coefs: list[float] = field(default_factory=list)

    def logprobs(self, batch: Batch) -> Tensor:
        self.events.append("policy.logprobs")
        return batch.rollout_logprobs.clone()

    def update(self, batch: Batch, step: int, kl_coef: float) -> Metrics:
        self.events.append(f"policy.update {step}")
        self.batches.append(batch)
        self.kl_coefs.append(kl_coef)
        return {names.POLICY_LOSS: 0.5, names.FIRST_RATIO: 0.0}

    def save(self, folder: Path) -> Written:
        self.events.append("policy.save")
        return lambda: self.events.append("policy.saved")

    def committed(self, path: Path) -> None:
        self.events.append(f"policy.committed {path.name}")


@dataclass
class FakeCritic:
    """Values everything at zero; keeps the batches of its updates."""

    events: list[str]
    batches: list[Batch] = field(default_factory=list)

    def values(self, batch: Batch) -> Tensor:
        self.events.append("critic.values")
        return torch.zeros(batch.token_ids.shape)

    def update(self, batch: Batch, step: int) -> Metrics:
        self.events.append(f"critic.update {step}")
        self.batches.append(batch)
        return {names.CRITIC_LOSS: 0.25}

    def save(self, folder: Path) -> Written:
        self.events.append("critic.save")
        return lambda: self.events.append("critic.saved")

    def committed(self, path: Path) -> None:
        self.events.append(f"critic.committed {path.name}")


@dataclass
class FakeJournal:
    """The run directory as lists. `said` holds (kind, sentence) of every event, `states` each commit by its step."""

    events: list[str]
    lines: dict[int, Metrics] = field(default_factory=dict)
    tables: dict[int, list[Rollout]] = field(default_factory=dict)
    said: list[tuple[str, str]] = field(default_factory=list)
    phases: list[tuple[int, str]] = field(default_factory=list)
    states: dict[int, State] = field(default_factory=dict)
    lanes: dict[int, Mapping[str, Sequence[Span]]] = field(default_factory=dict)
    late: bool = False
    """A commit is there as late as can be: when the next one begins, or at the end. Else at once."""
    unsettled: Callable[[], None] | None = None

    def metrics(self, step: int, metrics: Metrics) -> None:
        self.events.append(f"metrics {step}")
        self.lines[step] = dict(metrics)

    def phase(self, step: int, name: str) -> None:
        self.phases.append((step, name))

    def rollouts(self, step: int, rollouts: Sequence[Rollout]) -> None:
        self.tables[step] = list(rollouts)

    def spans(self, step: int, lanes: Mapping[str, Sequence[Span]]) -> None:
        self.lanes[step] = lanes

    def event(self, kind: str, sentence: str, **details: object) -> None:
        self.said.append((kind, sentence))

    def commit_beside(self, step: int, state: State, save: Save, committed: Callable[[Path], None]) -> None:
        self.settle()
        self.events.append(f"commit {step}")
        written = save(Path("unused"))
        self.states[step] = state

        def finish() -> None:
            written()
            committed(Path(f"step-{step}"))

        self.unsettled = finish
        if not self.late:
            self.settle()

    def settle(self) -> None:
        finish, self.unsettled = self.unsettled, None
        if finish is not None:
            finish()


@dataclass
class World:
    """All fakes of one run. `stop_after`: somebody asks the run to end during that step."""

    events: list[str]
    prompts: FakePrompts
    engines: FakeEngines
    reward: FakeReward
    policy: FakePolicy
    critic: FakeCritic | None
    journal: FakeJournal
    stop_after: int | None = None

    @property
    def roles(self) -> Roles:
        """What the loop gets."""
        return Roles(
            prompts=self.prompts,
            rollout=self.engines,
            reward=self.reward,
            reference=FakeReference(self.events),
            policy=self.policy,
            critic=self.critic,
            weights=self.engines,
            journal=self.journal,
            together=in_turn,
            busy=lambda: dict.fromkeys(
                ("policy", *(["critic"] if self.critic else []), "rollout", "reference", "reward"), Busy(0.0, [])
            ),
            should_stop=lambda: self.stop_after is not None and f"generate {self.stop_after} " in " ".join(self.events),
        )


def world(
    num_prompts: int = 7, errors: Mapping[str, str] | None = None, stop_after: int | None = None, critic: bool = True
) -> World:
    """A fresh one."""
    events: list[str] = []
    return World(
        events,
        FakePrompts(prompts(num_prompts)),
        FakeEngines(events),
        FakeReward(events, errors or {}),
        FakePolicy(events),
        FakeCritic(events) if critic else None,
        FakeJournal(events),
        stop_after,
    )


def in_turn(*calls: Callable[[], T]) -> list[T]:
    """One after another."""
    return [call() for call in calls]


def fails_on_the_moon(prompt: str, response: str, reference: str | None) -> float:
    """A reward function with a fault: it raises for one prompt."""
    if "moon" in prompt:
        raise LookupError("nothing is known about the moon")
    return len(response) / 100
