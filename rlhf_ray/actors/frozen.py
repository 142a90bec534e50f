"""The frozen roles: one reference replica, one reward replica."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rlhf_ray.actors.living import Living
from rlhf_ray.actors.stopwatch import Stopwatch
from rlhf_ray.config import RewardConfig
from rlhf_ray.models.causal_lm import CausalLM, load_causal_lm
from rlhf_ray.models.device import compute_dtype, device
from rlhf_ray.models.reward.scorer import RewardScorer
from rlhf_ray.ports import Busy
from rlhf_ray.rewards.base import ModelRewardConfig, OverlongRewardConfig, RewardSourceConfig
from rlhf_ray.rewards.isolated import IsolatedFunction
from rlhf_ray.rewards.overlong import Overlong
from rlhf_ray.rewards.rubric import Rubric, Source
from rlhf_ray.types import Batch, Rollout


class ReferenceActor(Living):
    """The policy as it was before training."""

    def __init__(self, folder: Path, dtype: str, temperature: float, threads: int) -> None:
        self._watch = Stopwatch()
        torch.set_num_threads(threads)
        self._model = CausalLM(load_causal_lm(folder, compute_dtype(dtype)), temperature).to(device())

    def ping(self) -> None:
        """Answers once the model is loaded."""

    def busy(self) -> Busy:
        """What was computed since the last call."""
        return self._watch.take()

    def logprobs(self, batch: Batch, microbatches: Sequence[Tensor], temperature: float | None) -> list[Tensor]:
        """For each microbatch (row numbers) its `[n, t]` log-probabilities, t being its longest row."""
        lengths = batch.attention_mask.sum(dim=1)
        out = []
        with self._watch, torch.inference_mode():
            for rows in microbatches:
                part = batch.rows(rows, int(lengths[rows].max())).to(device())
                answer = self._model(part.token_ids, part.attention_mask, part.response_mask, temperature)
                out.append(answer[0].cpu())
        return out


class RewardActor(Living):
    """All reward sources of a run."""

    def __init__(self, config: RewardConfig, folders: Sequence[Path | None], threads: int) -> None:
        torch.set_num_threads(threads)
        self._watch = Stopwatch()
        pairs = zip(config.sources, folders, strict=True)
        sources = [(source.name, source.weight, make_source(source, folder)) for source, folder in pairs]
        self._rubric = Rubric(sources, [source.name for source in config.sources if source.cost])

    def ping(self) -> None:
        """Answers once the models are loaded."""

    def busy(self) -> Busy:
        """What was computed since the last call."""
        return self._watch.take()

    def score(self, rollouts: Sequence[Rollout]) -> list[Rollout]:
        """The rollouts with their scores."""
        with self._watch:
            scores = self._rubric.score(rollouts)
        return [rollout.with_score(score) for rollout, score in zip(rollouts, scores, strict=True)]


class LearnedReward:
    """A reward model as a source."""

    def __init__(self, folder: Path) -> None:
        self._model = RewardScorer.load(folder)

    def score(self, rollouts: Sequence[Rollout]) -> list[float]:
        """One number a rollout, in units of the standard deviation over the answers that trained the model."""
        return self._model.score([(rollout.prompt.messages, rollout.text) for rollout in rollouts])


def make_source(config: RewardSourceConfig, folder: Path | None) -> Source:
    """The source that a config describes; `folder` is where a model's files are."""
    if isinstance(config, ModelRewardConfig):
        if folder is None:
            raise ValueError(f"reward source {config.name}: its model folder has not been resolved")
        return LearnedReward(folder)
    if isinstance(config, OverlongRewardConfig):
        return Overlong(config.max_tokens, config.buffer)
    return IsolatedFunction(config.path, config.timeout_s, config.memory_gib)
