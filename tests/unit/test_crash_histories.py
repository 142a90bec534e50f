"""Runs that are killed again and again, at any call that reaches the disk or a role: every answer is trained
on once or quarantined once, whatever the history.

The loop, the order of prompts and the run directory are the real ones; the learner's weights are the list of what it
has learned from, saved and restored as weights are.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlhf_ray.config import RunConfig
from rlhf_ray.loop import Progress, restore, train
from rlhf_ray.ports import Journal, Metrics, Roles, Written
from rlhf_ray.rundir import journal
from rlhf_ray.rundir.commit import verify
from rlhf_ray.rundir.journal import RunDirectory
from rlhf_ray.rundir.rollout_table import read_rollouts
from rlhf_ray.types import Batch, Prompt
from tests.builders import run_config
from tests.fakes import PAD, FakeEngines, FakePolicy, World, world

HISTORIES = int(os.environ.get("HISTORIES", "100"))
"""A thousand take two minutes."""
STEPS, A_STEP, SAMPLES = 6, 2, 2
FAILED = {"p1/0": "no answer from the scorer", "p4/1": "not a number"}
DURABLE = ("fsync", "rename", "replace", "unlink")
NUMBERS = {f"p{i}{again}": 100 + i + j for i in range(7) for j, again in ((0, ""), (50, "#2"))}
NAMES = {number: name for name, number in NUMBERS.items()}
"""Of prompts; the second time within a step, at the border of two epochs, has a name of its own."""
OF_ROLES = ("generate", "push", "submit", "logprobs", "update", "save", "committed")
OF_THE_JOURNAL = ("metrics", "rollouts", "commit_beside", "settle", "event")
Trained = list[tuple[int, list[str]]]
"""What each update learned from: its step and the ids of the rollouts."""


class Killed(BaseException):
    """Stands for the process dying: no `except Exception` may tidy up after it."""


@dataclass
class Fuse:
    """Dies at the call that uses it up; never if `left` is None."""

    left: int | None = None
    calls: int = 0

    def burn(self) -> None:
        """One call."""
        self.calls += 1
        if self.left is not None:
            self.left -= 1
            if self.left <= 0:
                raise Killed


class Fused:
    """A role whose every call burns the fuse, before it does anything or after it has done all."""

    def __init__(self, role: Any, fuse: Fuse) -> None:
        self._role, self._fuse = role, fuse

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._role, name)
        if name not in OF_ROLES + OF_THE_JOURNAL:
            return found

        def call(*arguments: Any, **named: Any) -> Any:
            self._fuse.burn()
            value = found(*arguments, **named)
            self._fuse.burn()
            return value

        return call


@dataclass
class Numbered(FakeEngines):
    """Each answer's tokens say which one it is: the number of its prompt, and of the sample."""

    def generate(self, prompts_P: Sequence[Prompt], num_samples: int, step: int) -> Any:
        for rollout in super().generate(prompts_P, num_samples, step):
            ids = NUMBERS[rollout.prompt.id], 200 + rollout.sample_index
            yield replace(rollout, response_ids=ids, rollout_logprobs=(-1.0, -1.0))


@dataclass
class Learner(FakePolicy):
    """Its weights are the list of what it has learned from."""

    trained: Trained = field(default_factory=list)

    def update(self, batch: Batch, step: int, kl_coef: float) -> Metrics:
        rows = [tokens[mask].tolist() for tokens, mask in zip(batch.token_ids, batch.response_mask, strict=True)]
        self.trained.append((step, sorted(f"{NAMES[number]}/{sample - 200}" for number, sample in rows)))
        return super().update(batch, step, kl_coef)

    def save(self, folder: Path) -> Written:
        weights = json.dumps(self.trained)

        def write() -> None:
            (folder / "weights.json").write_text(weights)

        return write

    def load(self, folder: Path) -> None:
        self.trained = [(step, ids) for step, ids in json.loads((folder / "weights.json").read_text())]


def _config() -> RunConfig:
    return run_config(
        Path("unused"),
        algorithm={"type": "reinforce"},
        train={"num_steps": STEPS, "prompts_per_step": A_STEP, "checkpoint_every": 2},
        rollout={"samples_per_prompt": SAMPLES},
    )


def _life(run: Path, config: RunConfig, fuse: Fuse) -> Trained:
    """One process of the run, from its start to its end or its death; what it learned, as of its last commit."""
    fakes = _world()
    policy = fakes.policy
    assert isinstance(policy, Learner)
    if not (run / "config.yaml").exists():
        RunDirectory.create(run, "", {})
    books, algorithm, progress = RunDirectory.open(run), config.algorithm.make(), Progress()
    books._beside = _Late()  # type: ignore[assignment]  # a thread would die of another call in each try
    books._board = lambda: _NoBoard()  # type: ignore[method-assign,assignment,return-value]  # nothing resumes from it
    if books.committed is not None:
        policy.load(books.committed.path)
        progress = restore(fakes.roles, algorithm, books.committed.meta)
        books.event("resume", f"Continuing after step {progress.step}.")
    train(config, _fused(fakes, books, fuse), algorithm, PAD, _pushed(fakes, progress, fuse))
    books.summary({"finished": True})
    assert books.committed is not None
    policy.load(books.committed.path)
    return policy.trained


def _world() -> World:
    found = world(errors=FAILED, critic=False)
    return replace(found, engines=Numbered(found.events), policy=Learner(found.events))


def _pushed(fakes: World, progress: Progress, fuse: Fuse) -> Progress:
    Fused(fakes.engines, fuse).push(progress.version)
    return progress


def _fused(fakes: World, books: Journal, fuse: Fuse) -> Roles:
    roles = replace(fakes.roles, journal=books)
    parts = ("rollout", "reward", "reference", "policy", "weights", "journal")
    return replace(roles, **{part: Fused(getattr(roles, part), fuse) for part in parts})


class _Late:
    """What a thread is given to do is done when somebody waits for it: as late as can be."""

    def submit(self, work: Callable[[], None]) -> Any:
        return SimpleNamespace(result=lambda timeout_s: work())


class _NoBoard:
    def add_scalar(self, *arguments: object) -> None: ...
    def flush(self) -> None: ...


@pytest.fixture
def durable(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fuse], None]:
    """Makes each call that changes the disk burn a fuse. Nothing is flushed, which takes a thousand runs to minutes."""
    fuses: list[Fuse] = []

    def shim(name: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(*arguments: Any, **named: Any) -> None:
            if fuses:
                fuses[-1].burn()
            if name != "fsync":
                real(*arguments, **named)

        return call

    monkeypatch.setattr(journal, "describe_environment", dict)
    for name in DURABLE:
        monkeypatch.setattr(os, name, shim(name, getattr(os, name)))
    return fuses.append


def _plan() -> dict[int, list[str]]:
    """The ids of the rollouts of each step."""
    source = world().prompts
    taken = [source.take(A_STEP) for _ in range(STEPS)]
    return {
        step: sorted(f"{prompt.id}/{sample}" for prompt in found for sample in range(SAMPLES))
        for step, found in enumerate(taken, start=1)
    }


def _check(run: Path, trained: Trained) -> None:
    """The books and the weights say the same, and it is the plan."""
    plan = _plan()
    assert [step for step, _ in trained] == list(plan)
    for step, ids in trained:
        rows = read_rollouts(run / "rollouts" / f"step-{step:06d}.parquet")
        found = {f"{row['prompt_id']}/{row['sample_index']}": row["error"] for row in rows}
        assert len(found) == len(rows) and sorted(found) == plan[step], "every answer once"
        assert ids == sorted(id_ for id_, error in found.items() if error is None)
        assert {id_ for id_, error in found.items() if error} == set(plan[step]) & set(FAILED)
        assert {row["policy_version"] for row in rows} == {step - 1}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(plan)
    assert all(not verify(path) for path in (run / "checkpoints").glob("step-*"))


def _history(run: Path, config: RunConfig, light: Callable[[Fuse], None], draw: random.Random, calls: int) -> int:
    """Kills lives at random until one comes through; how many were killed."""
    deaths = 0
    while True:
        fuse = Fuse(draw.randint(1, calls) if deaths < 12 else None)
        light(fuse)
        try:
            trained = _life(run, config, fuse)
        except Killed:
            deaths += 1
            continue
        finally:
            light(Fuse())
        _check(run, trained)
        return deaths


def test_no_history_of_crashes_loses_an_answer_or_uses_one_twice(
    tmp_path: Path, durable: Callable[[Fuse], None]
) -> None:
    config, whole = _config(), Fuse()
    durable(whole)
    _check(tmp_path / "whole", _life(tmp_path / "whole", config, whole))
    assert whole.calls > 150
    deaths = 0
    for seed in range(HISTORIES):
        run = tmp_path / str(seed)
        deaths += _history(run, config, durable, random.Random(seed), whole.calls)
        shutil.rmtree(run)
    assert deaths > HISTORIES
