"""What a step did and what it cost, as metrics."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from rlhf_ray import metrics as names
from rlhf_ray.ports import Metrics, Roles
from rlhf_ray.types import Prompt, Rollout


class StepClock:
    """Times the phases of a step and tells the journal which one is running."""

    def __init__(self, roles: Roles) -> None:
        self._roles = roles
        self._seconds: dict[str, float] = {}
        self.start(0)

    def start(self, step: int) -> None:
        """A new step begins."""
        self._step, self._began = step, time.monotonic()
        self._roles.busy()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self._roles.journal.phase(self._step, phase)
        began = time.monotonic()
        yield
        self._seconds[phase] = time.monotonic() - began

    def metrics(self) -> Metrics:
        """Seconds of each phase, of the step so far, and the orchestration's own: the step minus the weight push and
        the time that the actors were busy. A commit counts in the line of the next step, which it precedes; scoring
        that ran beside generation is not counted twice."""
        total, busy = time.monotonic() - self._began, self._roles.busy()
        inside = sum(seconds for role, seconds in busy.items() if role != "reward")
        inside += min(self._seconds["score"], busy["reward"]) + self._seconds["push"]
        seconds, self._seconds = self._seconds, {}
        return (
            {names.TIME_PHASE.format(phase=phase): spent for phase, spent in seconds.items()}
            | {names.BUSY.format(role=role): spent for role, spent in busy.items()}
            | {names.TIME_STEP: total, names.TIME_OVERHEAD: total - inside}
        )


def in_order(prompts_P: Sequence[Prompt], rollouts: Iterable[Rollout]) -> tuple[list[Rollout], list[Rollout]]:
    """The scored rollouts and those whose score failed, each in the order of the prompts and their samples.

    `RuntimeError` if every score failed: there is nothing to learn from, and the first reason says why.
    """
    place = {prompt.id: i for i, prompt in enumerate(prompts_P)}
    everything = sorted(rollouts, key=lambda rollout: (place[rollout.prompt.id], rollout.sample_index))
    good = [rollout for rollout in everything if rollout.score is not None and rollout.score.error is None]
    bad = [rollout for rollout in everything if rollout.score is None or rollout.score.error is not None]
    if not good:
        reason = bad[0].score.error if bad and bad[0].score else "no rollout came back"
        raise RuntimeError(f"all {len(bad)} rollouts of the step failed to be scored; the first: {reason}")
    return good, bad


def quarantine_note(step: int, rollouts: Sequence[Rollout], quarantined: Sequence[Rollout]) -> str:
    """What was left out of a step's batch, and the first reason."""
    reason = quarantined[0].score.error if quarantined[0].score else "it came back without a score"
    total = len(rollouts) + len(quarantined)
    return (
        f"Step {step}: {len(quarantined)} of {total} rollouts could not be scored and were left out; the first, "
        f"{quarantined[0].id}: {reason}"
    )


def rollout_metrics(rollouts: Sequence[Rollout], quarantined: Sequence[Rollout]) -> Metrics:
    """Rewards with their breakdown, lengths, truncation, counts."""
    rewards = [rollout.score.reward for rollout in rollouts if rollout.score]
    parts = {name for rollout in rollouts if rollout.score for name in rollout.score.breakdown}
    return {
        names.REWARD_MEAN: statistics.fmean(rewards),
        names.REWARD_STD: statistics.pstdev(rewards),
        names.QUARANTINED: float(len(quarantined)),
        names.LENGTH_MEAN: statistics.fmean(len(rollout.response_ids) for rollout in rollouts),
        names.TRUNCATED: statistics.fmean(rollout.truncated for rollout in rollouts),
        names.TOKENS: float(sum(len(rollout.response_ids) for rollout in rollouts)),
    } | {
        names.REWARD_SOURCE.format(source=part): statistics.fmean(
            rollout.score.breakdown[part] for rollout in rollouts if rollout.score
        )
        for part in parts
    }
