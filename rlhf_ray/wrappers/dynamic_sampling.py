"""Prompts whose answers all get the same reward teach a group-relative method nothing: others take their place."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from torch import Tensor

from rlhf_ray import metrics as names
from rlhf_ray.algorithms.groups import TIE
from rlhf_ray.data.batching import collate
from rlhf_ray.errors import RunError
from rlhf_ray.ports import Metrics, PromptSource, RewardPort, RolloutPort
from rlhf_ray.rewards.base import TruncatedConfig
from rlhf_ray.rundir.rollout_table import REPEATED
from rlhf_ray.types import Prompt, Rollout, present


class DynamicSampling:
    """Rollout and reward port in one (DAPO, arXiv 2503.14476, section 3.2): each round asks for exactly as many new
    prompts as are missing, so nothing that was accepted is thrown away or waits for a later policy."""

    def __init__(
        self,
        prompts: PromptSource,
        rollout: RolloutPort,
        reward: RewardPort,
        max_rounds: int,
        truncated: TruncatedConfig,
    ) -> None:
        self._prompts, self._rollout, self._reward = prompts, rollout, reward
        self._max_rounds, self._truncated = max_rounds, truncated
        self._asked: list[Prompt] = []
        self._num_samples = self._step = self._replaced = 0

    def generate(self, prompts_P: Sequence[Prompt], num_samples: int, step: int) -> Iterator[Rollout]:
        """The first round; `submit` makes the others like it."""
        self._asked, self._num_samples, self._step = list(prompts_P), num_samples, step
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
        accepted: list[Prompt] = []
        wanted = len(self._asked)
        for number in range(1, self._max_rounds + 1):
            groups: dict[str, list[Rollout]] = {}
            for rollout in scored:
                groups.setdefault(rollout.prompt.id, []).append(rollout)
            for group in groups.values():
                if self._teaches(group):
                    accepted.append(group[0].prompt)
                    kept += group
                else:
                    self._replaced += 1
                    kept += [rollout for rollout in group if _failed(rollout)]  # on record as quarantined
            missing = wanted - len(accepted)
            if not missing:
                return kept
            if scored and all(map(_failed, scored)):
                break  # the reward is broken: other prompts would not help
            if number < self._max_rounds:
                fresh = self._fresh(missing, accepted, number + 1)
                again = self._rollout.generate(fresh, self._num_samples, self._step)
                scored = self._reward.submit(again)() if fresh else []
        raise RunError(_gave_up(missing, wanted, number, [rollout for rollout in kept if _failed(rollout)]))

    def _fresh(self, count: int, accepted: Sequence[Prompt], number: int) -> list[Prompt]:
        """Prompts of another round. One that was asked in this step already gets a name, hence a seed, of its own."""
        have = {_identity(prompt) for prompt in accepted}
        asked = {prompt.id for prompt in self._asked}
        taken = [prompt for prompt in self._prompts.take(count) if _identity(prompt) not in have]
        fresh = [replace(prompt, id=f"{prompt.id}#r{number}") if prompt.id in asked else prompt for prompt in taken]
        self._asked += fresh
        return fresh

    def _teaches(self, group: Sequence[Rollout]) -> bool:
        """Whether rewards or costs differ as the batch will have them: without those of truncated answers that do not
        count, and rewards less their penalty."""
        scored = [rollout for rollout in group if not _failed(rollout)]
        if not scored:
            return False
        batch = collate(scored, 0, self._truncated.mode, self._truncated.penalty)
        counted = batch.loss_mask.any(dim=1)
        return _differ(batch.rewards[counted]) or _differ(present(batch.costs, "costs")[counted])


def _gave_up(missing: int, wanted: int, rounds: int, failed: Sequence[Rollout]) -> str:
    said = f"dynamic sampling: {missing} of {wanted} prompts are still missing after {rounds} rounds, "
    if failed:
        cause = failed[0].score.error if failed[0].score else "no score came back"
        said += f"because {len(failed)} rollouts could not be scored (the first, {failed[0].id}: {cause}) and "
    else:
        said += "because "
    return said + (
        "all answers to one prompt get the same reward. Raise train.dynamic_sampling.max_rounds or "
        "rollout.samples_per_prompt, lower train.prompts_per_step, or take a reward that tells answers apart"
    )


def _identity(prompt: Prompt) -> tuple[str, tuple[int, ...]]:
    """The same for a prompt and its repetitions."""
    return REPEATED.sub("", prompt.id), prompt.token_ids


def _differ(values: Tensor) -> bool:
    return len(values) > 1 and bool(values.max() - values.min() > TIE * values.abs().max())


def _failed(rollout: Rollout) -> bool:
    return rollout.score is None or rollout.score.error is not None
