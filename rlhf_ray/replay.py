"""One step of a run again, from its books: the same answers and rewards, in this process, for a debugger to look into.

The loop, the learners and the algorithm are those of a run; what was sampled and scored is read from `rollouts/`. The
learners start at the newest commit before the step and do the steps between again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlhf_ray.actors.controller import in_turn
from rlhf_ray.actors.local import LocalRoles
from rlhf_ray.cluster import folders_of
from rlhf_ray.config import RunConfig
from rlhf_ray.config_file import load_config
from rlhf_ray.errors import UserError
from rlhf_ray.loop import Progress, restore, train
from rlhf_ray.models.reward_model import load_tokenizer
from rlhf_ray.ports import Metrics, State
from rlhf_ray.rewards.rubric import Rubric
from rlhf_ray.rundir.commit import newest_good
from rlhf_ray.rundir.lines import read_lines
from rlhf_ray.rundir.rollout_table import read_rollouts
from rlhf_ray.types import Message, Prompt, Rollout, Score

_NOT_LEARNED = ("time/", "busy/", "throughput/", "step")


@dataclass(frozen=True, slots=True)
class Figure:
    """A metric of the step, as the run wrote it and as it came out now."""

    name: str
    written: float | None
    replayed: float


def replay(run_dir: Path, step: int, at_step: Callable[[], None] = lambda: None) -> list[Figure]:
    """Does step `step` of the run at `run_dir` again and returns its metrics; also of one that failed after its answers
    had their scores. `at_step` is called before it.

    One process plays all ranks, so sums are rounded in another order: figures agree to some 1e-5 where the run had
    several. `UserError` if the books do not have the step.
    """
    config = load_config(run_dir / "config.yaml", [])
    if not isinstance(config, RunConfig):
        raise UserError(f"{run_dir} is a run of kind {config.kind}: only steps of online runs can be done again")
    lines = {int(str(record["step"])): record for record in read_lines(run_dir / "metrics.jsonl")}
    if step not in lines and not _table(run_dir, step).is_file():
        known = f"{min(lines)} to {max(lines)}" if lines else "none"
        raise UserError(f"{run_dir} has no answers of step {step}, and figures of {known}")
    start, _ = newest_good(run_dir / "checkpoints", below=f"step-{step:06d}")  # None: the untrained model
    config = _alone(config, step)
    folders = folders_of(config)
    critic = folders.reward_model if config.critic.init == "reward" else None
    tokenizer = load_tokenizer(folders.policy)
    local = LocalRoles(
        config, folders.policy, folders.policy, tokenizer, Rubric([]), run_dir, start.path if start else None, critic
    )
    books = Books(run_dir, int(str(start.meta["step"])) if start else 0, step, at_step)
    roles = replace(local.roles(books), rollout=books, reward=books, together=in_turn)
    algorithm = config.algorithm.make()
    progress = restore(roles, algorithm, start.meta) if start else Progress()
    train(config, roles, algorithm, tokenizer.pad_token_id or 0, progress)
    return _compared(lines.get(step, {}), local.journal.steps[-1])


class Books:
    """The answers of steps that are over, in place of prompts, engines and rewards."""

    def __init__(self, run_dir: Path, done: int, last: int, at_last: Callable[[], None]) -> None:
        self._run_dir, self._step, self._last, self._at_last = run_dir, done, last, at_last

    def take(self, count: int) -> list[Prompt]:
        """`ports.PromptSource`: the prompts of the next step, in the order in which it learned from them."""
        self._step += 1
        if self._step == self._last:
            self._at_last()
        return list({rollout.prompt.id: rollout.prompt for rollout in self._rollouts()}.values())

    def generate(self, prompts_P: Sequence[Prompt], num_samples: int, step: int) -> Iterator[Rollout]:
        """`ports.RolloutPort`."""
        yield from self._rollouts()

    def submit(self, rollouts: Iterable[Rollout]) -> Callable[[], list[Rollout]]:
        """`ports.RewardPort`: they have their scores."""
        scored = list(rollouts)
        return lambda: scored

    def state_dict(self) -> State:
        """Nothing to resume from."""
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """The books know where they are."""

    def _rollouts(self) -> list[Rollout]:
        table = _table(self._run_dir, self._step)
        rows: list[dict[str, Any]] = read_rollouts(table)
        if rows and "response_ids" not in rows[0]:
            raise UserError(f"{table} was written by an older version, without the token ids that were learned from")
        return [_rollout(row) for row in rows]


def _table(run_dir: Path, step: int) -> Path:
    return run_dir / "rollouts" / f"step-{step:06d}.parquet"


def _rollout(row: Mapping[str, Any]) -> Rollout:
    messages = tuple(Message(one["role"], one["content"]) for one in json.loads(row["messages"]))
    reward = float("nan") if row["reward"] is None else row["reward"]
    return Rollout(
        prompt=Prompt(row["prompt_id"], messages, tuple(row["prompt_ids"])),
        sample_index=row["sample_index"],
        response_ids=tuple(row["response_ids"]),
        rollout_logprobs=tuple(row["rollout_logprobs"]),
        text=row["response"],
        finish_reason=row["finish_reason"],
        policy_version=row["policy_version"],
        score=Score(reward, json.loads(row["breakdown"]), row["error"], row["cost"] or 0.0),
        versions=tuple((version, count) for version, count in json.loads(row["versions"])),
    )


def _alone(config: RunConfig, step: int) -> RunConfig:
    """The same, on one rank, up to `step`."""
    one = {"num_workers": 1, "gpus_per_worker": 0.0}
    return config.model_copy(
        update={
            "policy": config.policy.model_copy(update=one),
            "critic": config.critic.model_copy(update=one),
            "train": config.train.model_copy(update={"num_steps": step, "max_lag": 0, "dynamic_sampling": None}),
        }
    )


def _compared(written: Mapping[str, object], replayed: Metrics) -> list[Figure]:
    found = []
    for name, value in sorted(replayed.items()):
        before = written.get(name)
        if not name.startswith(_NOT_LEARNED):
            found.append(Figure(name, float(before) if isinstance(before, int | float) else None, float(value)))
    return found
