"""What must be equal in runs that are compared: prompts, held-out prompts, reward, base model, number of rollouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from rlhf_ray.errors import UserError
from rlhf_ray.report.facts import flatten
from rlhf_ray.report.finished import FinishedRun, reward_of

_EQUAL = (
    "model.path", "prompts", "train.eval_prompts", "reward.sources", "reward.truncated", "rollout.max_new_tokens",
    "rollout.temperature",
)  # fmt: skip
_CHANGED_REWARD = 0.1  # of the rewards' standard deviation: well above what another batch or bfloat16 changes


def check_comparable(runs: Sequence[FinishedRun]) -> None:
    """A `UserError` for the first run that differs from the first one in more than its method, with what differs."""
    seen: dict[object, FinishedRun] = {}
    for run in runs:
        twin = seen.setdefault(run.files.path.resolve(), run)
        if twin is not run:
            raise UserError(f"{run.name} is given twice")
    first = runs[0]
    for run in runs[1:]:
        checks = (_settings, _budget, _training_prompts, _heldout_prompts, _rewards)
        found = next((words for check in checks if (words := check(first, run))), None)
        if found:
            raise UserError(f"{first.name} and {run.name} cannot be compared: {found}")


def _settings(one: FinishedRun, other: FinishedRun) -> str:
    mine, theirs = _equal_settings(one.files.config), _equal_settings(other.files.config)
    changed = [key for key in mine | theirs if mine.get(key) != theirs.get(key)]
    return "; ".join(f"{key} is {mine.get(key, 'not set')} and {theirs.get(key, 'not set')}" for key in changed)


def _equal_settings(config: Mapping[str, object]) -> dict[str, str]:
    return {key: text for key, text in flatten(config) if f"{key}.".startswith(tuple(f"{name}." for name in _EQUAL))}


def _budget(one: FinishedRun, other: FinishedRun) -> str:
    if one.rollouts == other.rollouts:
        return ""
    return f"they sampled {one.rollouts:,} and {other.rollouts:,} rollouts; give both the same budget"


def _training_prompts(one: FinishedRun, other: FinishedRun) -> str:
    """An id names a row of the prompts' file, so another text under it means that the file has changed. The first step
    has to do, which is the same in runs of one seed: a long run has thousands of tables."""
    mine, theirs = (run.prompts_of_step(1) for run in (one, other))
    changed = [key for key in mine.keys() & theirs.keys() if mine[key] != theirs[key]]
    return f"{len(changed)} of their training prompts have another text under the same id" if changed else ""


def _heldout_prompts(one: FinishedRun, other: FinishedRun) -> str:
    """The tables leave out what could not be scored, so a prompt that only one run has is none of the other's only if
    there are more prompts than were held out."""
    mine, theirs = _asked(one), _asked(other)
    held_out = int(str(one.setting("train", "eval_prompts")))
    changed = [key for key in mine.keys() & theirs.keys() if mine[key] != theirs[key]]
    if not changed and len(mine.keys() | theirs.keys()) <= held_out:
        return ""
    alone = len(mine.keys() ^ theirs.keys())
    return (
        f"their held-out prompts differ: {alone} are in one of them only, and {len(changed)} have another text under "
        "the same id"
    )


def _asked(run: FinishedRun) -> dict[str, object]:
    return {key: row["messages"] for rows in (run.before, run.after) for key, row in rows.items()}


def _rewards(one: FinishedRun, other: FinishedRun) -> str:
    """The reward of one answer in both runs tells whether a reward model or function was replaced under its name."""
    mine, theirs = _scored(one), _scored(other)
    both = sorted(mine.keys() & theirs.keys())
    if not both:
        return ""
    first, second = (np.array([rewards[key] for key in both]) for rewards in (mine, theirs))
    gap = float(np.abs(first - second).mean())
    spread = float(np.std([*mine.values(), *theirs.values()]))
    if gap <= _CHANGED_REWARD * spread + 1e-6 * float(np.abs(first).max()):
        return ""
    return (
        f"their rewards differ: {len(both)} answers that are the same in both got {first.mean():.3f} and "
        f"{second.mean():.3f} on average, {gap:.3f} apart; the reward model or function has changed between them"
    )


def _scored(run: FinishedRun) -> dict[tuple[str, str], float]:
    """Rewards by prompt id and answer."""
    return {
        (prompt, str(row["response"])): reward
        for rows in (run.before, run.after)
        for prompt, row in rows.items()
        if (reward := reward_of(row)) is not None
    }
