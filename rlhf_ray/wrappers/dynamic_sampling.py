"""Prompts whose answers all get the same reward teach a group-relative method nothing: others take their place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from rlhf_ray import metrics as names
from rlhf_ray.algorithms.groups import TIE
from rlhf_ray.errors import RunError
from rlhf_ray.ports import Metrics, PromptSource, RewardPort, RolloutPort
from rlhf_ray.types import Prompt, Rollout


class DynamicSampling:
    """Rollout and reward port in one (DAPO, arXiv 2503.14476, section 3.2): each round asks for exactly as many new
    prompts as are missing, so nothing that was accepted is thrown away or waits for a later policy."""

    def __init__(self, prompts: PromptSource, rollout: RolloutPort, reward: RewardPort, max_rounds: int) -> None:
        self._prompts, self._rollout, self._reward, self._max_rounds = prompts, rollout, reward, max_rounds
        self._wanted = self._num_samples = self._step = self._replaced = 0

    def generate(self, prompts_P: Sequence[Prompt], num_samples: int, step: int) -> Iterator[Rollout]:
        """The first round; `submit` makes the others like it."""
        self._wanted, self._num_samples, self._step = len(prompts_P), num_samples, step
        yield from self._rollout.generate(prompts_P, num_samples, step)

    def submit(self, rollouts: Iterable[Rollout]) -> Callable[[], list[Rollout]]:
        """Of the answer: as many prompts as `generate` was given, with answers of different rewards each, and every
        rollout that could not be scored. `RunError` if `max_rounds` rounds did not find them."""
        first = self._reward.submit(rollouts)
        return lambda: self._filled(first())

    def found(self) -> Metrics:
        """How many prompts were replaced since the last call."""
        replaced, self._replaced = self._replaced, 0
        return {names.REPLACED_PROMPTS: float(replaced)}

    def _filled(self, scored: Sequence[Rollout]) -> list[Rollout]:
        kept: list[Rollout] = []
        accepted: set[str] = set()
        for number in range(1, self._max_rounds + 1):
            groups: dict[str, list[Rollout]] = {}
            for rollout in scored:
                groups.setdefault(rollout.prompt.id, []).append(rollout)
            for prompt, group in groups.items():
                if _teaches(group):
                    accepted.add(prompt)
                    kept += group
                else:
                    self._replaced += 1
                    kept += [rollout for rollout in group if _failed(rollout)]  # on record as quarantined
            missing = self._wanted - len(accepted)
            if not missing:
                return kept
            if number < self._max_rounds:
                fresh = [prompt for prompt in self._prompts.take(missing) if prompt.id not in accepted]
                again = self._rollout.generate(fresh, self._num_samples, self._step)
                scored = self._reward.submit(again)() if fresh else []
        raise RunError(
            f"dynamic sampling: {missing} of {self._wanted} prompts are still missing after {self._max_rounds} rounds, "
            "because all answers to one prompt get the same reward. Raise train.dynamic_sampling.max_rounds or "
            "rollout.samples_per_prompt, lower train.prompts_per_step, or take a reward that tells answers apart"
        )


def _failed(rollout: Rollout) -> bool:
    return rollout.score is None or rollout.score.error is not None


def _teaches(group: Sequence[Rollout]) -> bool:
    rewards = [rollout.score.reward for rollout in group if rollout.score is not None and not _failed(rollout)]
    return len(rewards) > 1 and max(rewards) - min(rewards) > TIE * max(map(abs, rewards))
