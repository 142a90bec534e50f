"""Online policy optimization in a few lines of Python, in this process and without Ray: for lessons and small studies.

The loop, algorithms and learners are those of `rlhf-ray train`.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from rlhf_ray.actors.frozen import LearnedReward
from rlhf_ray.actors.local import LocalRoles
from rlhf_ray.config import RunConfig
from rlhf_ray.data.chat import disarm, render
from rlhf_ray.data.messages import as_prompt
from rlhf_ray.data.prompts import ShuffledPrompts
from rlhf_ray.data.rows import PromptRow
from rlhf_ray.errors import UserError
from rlhf_ray.loop import Progress, train
from rlhf_ray.models.folder import check_causal_lm, resolve_model
from rlhf_ray.models.reward_model import load_tokenizer
from rlhf_ray.rewards.rubric import Rubric, Source
from rlhf_ray.types import Prompt, Rollout

PromptLike = str | Sequence[Mapping[str, str]]
"""What the user said, or a conversation as `{"role", "content"}` dictionaries."""


class Scorer(Protocol):
    """What `RewardModelInference` is."""

    def batch_predict(self, pairs: Sequence[tuple[Any, str]]) -> Sequence[float]: ...


RewardLike = str | Path | Scorer | Callable[[str, str], float]
"""A reward model's folder, an object with `batch_predict`, or a function of prompt and answer."""


class PolicyOptimizationPipeline:
    """Trains `model_name` (the embedded model, a folder, or a hub id) against a reward, with any online method.

    pipeline = PolicyOptimizationPipeline("smollm2-135m", "runs/demo-reward/model", method="grpo")
    for step in pipeline.train_epoch(["What is the sun?", "Name a tree."], num_iterations=5):
        print(step["reward/mean"])
    """

    def __init__(
        self,
        model_name: str = "smollm2-135m",
        reward_model: RewardLike = "runs/demo-reward/model",
        method: str = "ppo",
        *,
        learning_rate: float = 1e-5,
        lora_rank: int | None = None,
        samples_per_prompt: int = 4,
        prompts_per_step: int = 8,
        max_new_tokens: int = 48,
        max_prompt_tokens: int = 256,
        temperature: float = 1.0,
        seed: int = 0,
        **algorithm: object,
    ) -> None:
        """`method` is `algorithm.type` of a recipe, and further settings are that algorithm's, such as `kl_coef`.

        Raises `UserError` for a method or setting that does not exist or fit.
        """
        lora = None if lora_rank is None else {"rank": lora_rank, "alpha": 2 * lora_rank}
        learner = {"learning_rate": learning_rate, "lora": lora}
        tree = {
            "name": "pipeline",
            "seed": seed,
            "model": {"path": model_name},
            "prompts": {"path": "in memory", "max_prompt_tokens": max_prompt_tokens},
            "algorithm": {"type": "online_dpo" if method == "dpo" else method, **algorithm},
            "policy": learner,
            "critic": {**learner, "init": "policy"},
            "reward": {"sources": [{"type": "function", "path": "in.memory:reward"}], "truncated": {"mode": "score"}},
            "rollout": {
                "samples_per_prompt": samples_per_prompt,
                "max_new_tokens": max_new_tokens,
                "temperature": temperature,
            },
            "train": {"num_steps": 1, "prompts_per_step": prompts_per_step, "checkpoint_every": 1_000_000},
        }
        try:
            self._config = RunConfig.model_validate(tree)
        except ValidationError as error:
            raise UserError(f"PolicyOptimizationPipeline: {error.errors()[0]['msg']}") from None
        folder = resolve_model(model_name)
        check_causal_lm(folder)
        self._tokenizer = load_tokenizer(folder)
        rubric = Rubric([("reward", 1.0, _source(reward_model))])
        scratch = Path(tempfile.mkdtemp(prefix="rlhf-ray-"))
        self._local = LocalRoles(self._config, folder, self._tokenizer, rubric, scratch)
        self._algorithm = self._config.algorithm.make()
        self._progress = Progress()

    @property
    def model(self) -> Any:
        """The policy as it is now: a transformers model, or peft's around it."""
        module: Any = self._local.learner.engine.module
        return module.model

    def train_epoch(self, prompts: Sequence[PromptLike], num_iterations: int = 1) -> list[dict[str, float]]:
        """Runs `num_iterations` steps on `prompts`, drawn in a seeded order; returns the metrics of each."""
        done = self._progress.step
        sizes = self._config.train.model_copy(update={"num_steps": done + num_iterations})
        config = self._config.model_copy(update={"train": sizes})
        source = ShuffledPrompts(self._prompts(prompts), config.seed + done)
        pad = self._tokenizer.pad_token_id or 0
        train(config, self._local.roles(source), self._algorithm, pad, self._progress)
        return self._local.journal.steps[done:]

    def save(self, folder: str | Path) -> Path:
        """Writes the policy, adapters merged, with its tokenizer; returns the folder."""
        with tempfile.TemporaryDirectory() as holder:
            self._local.learner.save(Path(holder))
            return Path(shutil.copytree(Path(holder) / "policy", folder))

    def _prompts(self, prompts: Sequence[PromptLike]) -> list[Prompt]:
        rows = [
            PromptRow(f"prompt {i}", str(i), as_prompt(prompt if isinstance(prompt, str) else list(prompt), "prompt"))
            for i, prompt in enumerate(prompts, 1)
        ]
        rows, _ = disarm(rows, self._tokenizer)
        ids, limit = render(rows, self._tokenizer), self._config.prompts.max_prompt_tokens
        for row, tokens in zip(rows, ids, strict=True):
            if len(tokens) > limit:
                raise UserError(f"{row.where} has {len(tokens)} tokens; raise max_prompt_tokens = {limit}")
        return [Prompt(row.id, row.messages, tuple(tokens)) for row, tokens in zip(rows, ids, strict=True)]


class _Function:
    """A function of prompt and answer as a reward source."""

    def __init__(self, function: Callable[[str, str], float]) -> None:
        self._function = function

    def score(self, rollouts: Sequence[Rollout]) -> list[float | Exception]:
        """One entry a rollout; what the function raised stands in place of a number."""
        return [self._one(rollout) for rollout in rollouts]

    def _one(self, rollout: Rollout) -> float | Exception:
        asked = [message.content for message in rollout.prompt.messages if message.role == "user"]
        try:
            return self._function(asked[-1] if asked else "", rollout.text)
        except Exception as error:  # a user's function may raise anything; the rollout is quarantined with it
            return error


class _Scorer:
    """A reward model in memory as a reward source."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    def score(self, rollouts: Sequence[Rollout]) -> Sequence[float]:
        """One number a rollout."""
        return self._scorer.batch_predict([(rollout.prompt.messages, rollout.text) for rollout in rollouts])


def _source(reward: RewardLike) -> Source:
    if isinstance(reward, str | Path):
        return LearnedReward(resolve_model(str(reward)))
    if hasattr(reward, "batch_predict"):
        return _Scorer(reward)
    if callable(reward):
        return _Function(reward)
    raise UserError(f"reward_model is a {type(reward).__name__}; give a folder, RewardModelInference, or a function")
