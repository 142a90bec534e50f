"""Online policy optimization in a few lines of Python, in this process and without Ray: for lessons and small studies.

The loop, algorithms and learners are those of `rlhf-ray train`.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from rlhf_ray.accounting import rollout_metrics
from rlhf_ray.actors.frozen import LearnedReward
from rlhf_ray.actors.local import LocalRoles
from rlhf_ray.config import RunConfig
from rlhf_ray.config_file import explain
from rlhf_ray.data.batching import collate, prompt_numbers
from rlhf_ray.data.chat import disarm, render
from rlhf_ray.data.messages import as_prompt
from rlhf_ray.data.prompts import ShuffledPrompts
from rlhf_ray.data.rows import PromptRow
from rlhf_ray.errors import UserError
from rlhf_ray.loop import Progress, estimated, train
from rlhf_ray.models.folder import check_causal_lm, resolve_model
from rlhf_ray.models.reward_model import load_tokenizer
from rlhf_ray.rewards.functions import FunctionReward
from rlhf_ray.rewards.rubric import Rubric, Source
from rlhf_ray.types import Prompt, Rollout, Score, present
from rlhf_ray.wrappers.wrapped import wrapped

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
        ref_model: str | None = None,
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
        """`method` is `algorithm.type` of a recipe, and further settings are that algorithm's, such as `kl_coef`. The
        reference is `ref_model`, or the model as it is now.

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
            raise UserError(f"PolicyOptimizationPipeline: {'; '.join(explain(error, RunConfig))}") from None
        folder = resolve_model(model_name)
        check_causal_lm(folder)
        self._tokenizer = load_tokenizer(folder)
        rubric = Rubric([("reward", 1.0, _source(reward_model))])
        self._scratch = tempfile.TemporaryDirectory(prefix="rlhf-ray-")  # removed with this object
        reference = folder if ref_model is None else resolve_model(ref_model)
        self._local = LocalRoles(self._config, folder, reference, self._tokenizer, rubric, Path(self._scratch.name))
        self._algorithm = self._config.algorithm.make()
        self._progress = Progress()

    @property
    def model(self) -> Any:
        """The policy as it is now: a transformers model, or peft's around it."""
        module: Any = self._local.learner.engine.module
        return module.model

    def train_epoch(self, prompts: Sequence[PromptLike], num_iterations: int = 1) -> list[dict[str, float]]:
        """Runs `num_iterations` steps on `prompts`, drawn in a seeded order; returns the metrics of each."""
        done, seen = self._progress.step, len(self._local.journal.steps)
        sizes = self._config.train.model_copy(update={"num_steps": done + num_iterations})
        config = self._config.model_copy(update={"train": sizes})
        source = ShuffledPrompts(self._prompts(prompts), config.seed + done)
        pad = self._tokenizer.pad_token_id or 0
        roles = wrapped(config, self._local.roles(source), done + 1)
        train(config, roles, self._algorithm, pad, self._progress)
        return self._local.journal.steps[seen:]

    def train_step(
        self, prompts: Sequence[PromptLike], responses: Sequence[str], rewards: Sequence[float] | None = None
    ) -> dict[str, float]:
        """One update on answers that you bring, as if the policy had just written them; returns its metrics.

        Without `rewards` the reward model judges them. Equal prompts form a group. Raises `UserError` if the lengths
        differ or a reward is not a finite number.
        """
        if len(prompts) != len(responses) or (rewards is not None and len(rewards) != len(prompts)):
            raise UserError("train_step needs as many responses, and rewards, as prompts")
        asked = self._prompts(prompts)
        first = {prompt.messages: prompt.id for prompt in reversed(asked)}
        end = self._tokenizer.eos_token_id
        rollouts = []
        for number, (prompt, text) in enumerate(zip(asked, responses, strict=True)):
            ids = (*self._tokenizer(text, add_special_tokens=False)["input_ids"], end)
            same = replace(prompt, id=first[prompt.messages])
            rollouts.append(Rollout(same, number, ids, (0.0,) * len(ids), text, "stop", self._progress.version))
        return self._update(self._scored(rollouts, rewards))

    def _scored(self, rollouts: list[Rollout], rewards: Sequence[float] | None) -> list[Rollout]:
        if rewards is None:
            scored = self._local.submit(rollouts)()
        else:
            scored = [one.with_score(Score(float(reward))) for one, reward in zip(rollouts, rewards, strict=True)]
        for number, rollout in enumerate(scored, 1):
            if rollout.score is None or rollout.score.error or not math.isfinite(rollout.score.reward):
                why = rollout.score.error or f"it is {rollout.score.reward}" if rollout.score else "there is none"
                raise UserError(f"the reward of response {number} is not a finite number: {why}")
        return scored

    def _update(self, rollouts: list[Rollout]) -> dict[str, float]:
        roles = self._local.roles(ShuffledPrompts([rollout.prompt for rollout in rollouts], 0))
        batch = collate(rollouts, self._tokenizer.pad_token_id or 0, "score", 0.0)
        batch = estimated(roles, batch)
        batch = batch.with_(rollout_logprobs=present(batch.old_logprobs, "old_logprobs"))  # as if it had sampled them
        batch, metrics = self._algorithm.advantages(batch, prompt_numbers(rollouts))
        self._progress.step += 1
        if roles.critic is not None:
            metrics |= roles.critic.update(batch, self._progress.step)
        metrics |= roles.policy.update(batch, self._progress.step, self._algorithm.kl_coef)
        return metrics | rollout_metrics(rollouts, [])

    def save(self, folder: str | Path) -> Path:
        """Writes the policy, adapters merged, with its tokenizer; returns the folder."""
        with tempfile.TemporaryDirectory() as holder:
            self._local.learner.save(Path(holder)).result()
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


class PPOTrainer(PolicyOptimizationPipeline):
    """PPO in the words of many lessons: `PPOTrainer(...).train_step(prompts, responses, rewards)`."""

    def __init__(
        self,
        model: str,
        ref_model: str | None = None,
        reward_model: RewardLike | None = None,
        tokenizer: Any = None,
        learning_rate: float = 1e-5,
        clip_epsilon: float = 0.2,
        **settings: Any,
    ) -> None:
        """`model` and `ref_model` are folders, hub ids or the embedded model's name; their own tokenizer and chat
        template are used, and `tokenizer` must be None or that of `model`. `settings` as the pipeline's.
        """
        reward = _nobody_judges if reward_model is None else reward_model
        settings |= {"ref_model": ref_model, "learning_rate": learning_rate, "clip_range": clip_epsilon}
        super().__init__(model, reward, "ppo", **settings)
        if tokenizer is not None and tokenizer.get_vocab() != self._tokenizer.get_vocab():
            raise UserError("PPOTrainer: `tokenizer` has another vocabulary than that of `model`")


def _nobody_judges(prompt: str, answer: str) -> float:
    raise ValueError("give rewards, or a reward_model")


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
        return FunctionReward(lambda prompt, answer, _: reward(prompt, answer))
    raise UserError(f"reward_model is a {type(reward).__name__}; give a folder, RewardModelInference, or a function")
