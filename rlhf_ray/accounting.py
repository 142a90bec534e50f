"""What a step did and what it cost, as metrics."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from rlhf_ray import metrics as names
from rlhf_ray.ports import Metrics, Roles, Span
from rlhf_ray.types import Prompt, Rollout


class StepClock:
    """Times the phases of a step and tells the journal which one is running."""

    def __init__(self, roles: Roles) -> None:
        self._roles = roles
        self._seconds: dict[str, float] = {}
        self._spans: dict[str, list[Span]] = {}
        self.start(0)

    def start(self, step: int) -> None:
        """A new step begins."""
        self._step, self._began = step, time.monotonic()
        self._roles.busy()

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        self._roles.journal.phase(self._step, phase)
        began = time.time()
        yield
        ended = time.time()
        self._seconds[phase] = ended - began
        self._spans.setdefault(f"loop: {phase}", []).append((began, ended))

    def metrics(self) -> Metrics:
        """Seconds of each phase, of the step so far, and the orchestration's own: the step minus the weight push and
        the time that the actors were busy. A commit counts in the line of the next step, which it precedes; scoring
        that ran beside generation, and generation that ran ahead, are counted as long as the loop waited."""
        total, report = time.monotonic() - self._began, self._roles.busy()
        self._roles.journal.spans(self._step, self._spans | {role: one.spans for role, one in report.items()})
        busy = {role: one.seconds for role, one in report.items()}
        waited = {"reward": self._seconds["score"], "rollout": self._seconds["generate"] + self._seconds["score"]}
        inside = sum(min(seconds, waited.get(role, seconds)) for role, seconds in busy.items()) + self._seconds["push"]
        seconds, self._seconds, self._spans = self._seconds, {}, {}
        return (
            self._roles.found()
            | {names.TIME_PHASE.format(phase=phase): spent for phase, spent in seconds.items()}
            | {names.BUSY.format(role=role): spent for role, spent in busy.items()}
            | {names.TIME_STEP: total, names.TIME_OVERHEAD: total - inside}
        )


def in_order(prompts_P: Sequence[Prompt], rollouts: Iterable[Rollout]) -> tuple[list[Rollout], list[Rollout]]:
    """The scored rollouts and those whose score failed, each in the order of the prompts and their samples.

    `RuntimeError` if every score failed: there is nothing to learn from, and the first reason says why.
    """
    place = {prompt.id: i for i, prompt in enumerate(prompts_P)}

    def order(rollout: Rollout) -> tuple[int, str, int]:
        prompt = rollout.prompt.id
        return place.get(prompt, len(place)), prompt, rollout.sample_index  # replacements of prompts come last

    everything = sorted(rollouts, key=order)
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
