"""Every role of the loop in this process, without Ray and vLLM: for lessons, small studies and quick tests.

The learners, algorithms and rewards are those of a run on a cluster. Sampling is transformers' `generate` on the
learner's own weights, so there is nothing to push.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from rlhf_ray.actors.controller import in_turn
from rlhf_ray.actors.frozen import ReferenceActor
from rlhf_ray.actors.learner import CriticLearner, PolicyLearner
from rlhf_ray.actors.request import request_seed
from rlhf_ray.config import RunConfig
from rlhf_ray.data.batching import microbatches, rows_together
from rlhf_ray.models.causal_lm import unwrapped
from rlhf_ray.models.device import backend
from rlhf_ray.ports import Busy, Metrics, PromptSource, Roles, Save, Span, State, Written
from rlhf_ray.rewards.rubric import Rubric
from rlhf_ray.types import Batch, Prompt, Rollout


class LocalRoles:
    """The roles of `config` in this process; `roles(prompts)` gives them to the loop. `reference` is a folder too, and
    `state` the commit that the learners start from, if any."""

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        reference: Path,
        tokenizer: Any,
        rubric: Rubric,
        run_dir: Path,
        state: Path | None = None,
        critic: Path | None = None,
    ) -> None:
        if not dist.is_initialized():
            dist.init_process_group(backend(), store=dist.HashStore(), rank=0, world_size=1)
        with _as_the_only_rank():
            self.learner = PolicyLearner(config, folder, run_dir, state)
            needs = config.algorithm.needs_critic
            self._critic = CriticLearner(config, critic or folder, run_dir, state) if needs else None
        self.journal = MemoryJournal()
        threads = torch.get_num_threads()
        self._reference = ReferenceActor(reference, config.model.dtype, config.rollout.temperature, threads)
        self._budget, self._rubric = config.policy.microbatch_tokens, rubric
        self._rollout = LocalRollout(config, self.learner, tokenizer)

    def roles(self, prompts: PromptSource) -> Roles:
        """What `loop.train` talks to."""
        return Roles(
            prompts=prompts,
            rollout=self._rollout,
            reward=self,
            reference=LocalReference(self._reference, self._budget),
            policy=LocalLearner(self.learner),
            critic=None if self._critic is None else LocalLearner(self._critic),
            weights=self,
            journal=self.journal,
            together=in_turn,
            busy=lambda: {"reward": Busy(0.0, [])},
            should_stop=lambda: False,
        )

    def submit(self, rollouts: Iterable[Rollout]) -> Callable[[], list[Rollout]]:
        """`ports.RewardPort`."""
        waiting = list(rollouts)
        scores = self._rubric.score(waiting)
        scored = [rollout.with_score(score) for rollout, score in zip(waiting, scores, strict=True)]
        return lambda: scored

    def push(self, version: int) -> Metrics:
        """`ports.WeightSync`: the sampler has the learner's own weights."""
        self._rollout.version = version
        return {}


class LocalLearner:
    """The port of a policy or a critic."""

    def __init__(self, learner: Any) -> None:
        self._learner = learner

    def logprobs(self, batch: Batch) -> Tensor:
        """`[B, T]`."""
        return rows_together(batch, [self._learner.logprobs(batch)])

    def values(self, batch: Batch) -> Tensor:
        """`[B, T]`."""
        return rows_together(batch, [self._learner.values(batch)])

    def update(self, batch: Batch, step: int, *kl_coef: float) -> Metrics:
        """All inner epochs."""
        metrics: Metrics = self._learner.update(batch, step, *kl_coef)
        return metrics

    def save(self, folder: Path) -> Written:
        """As the learner does."""
        written: Future[None] = self._learner.save(folder)
        return written.result

    def committed(self, path: Path) -> None:
        """Nothing restarts from it here."""


class LocalReference:
    """The reference's port."""

    def __init__(self, actor: ReferenceActor, budget: int) -> None:
        self._actor, self._budget = actor, budget

    def logprobs(self, batch: Batch, temperature: float | None = None) -> Tensor:
        """`[B, T]`."""
        (rows,) = microbatches(batch.attention_mask.sum(dim=1), 1, self._budget)
        return rows_together(batch, zip(rows, self._actor.logprobs(batch, rows, temperature), strict=True))


class LocalRollout:
    """Samples with transformers."""

    def __init__(self, config: RunConfig, learner: PolicyLearner, tokenizer: Any) -> None:
        self._config, self._learner, self._tokenizer = config, learner, tokenizer
        self.version = 0

    def generate(self, prompts_P: Sequence[Prompt], num_samples: int, step: int) -> Iterator[Rollout]:
        """All samples, `rollout.max_concurrent` at a time. The same seed and step give the same tokens."""
        wanted = [(prompt, sample) for prompt in prompts_P for sample in range(num_samples)]
        size = self._config.rollout.max_concurrent
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(request_seed(self._config.seed, step))
            for start in range(0, len(wanted), size):
                yield from self._sample(wanted[start : start + size])

    def _sample(self, wanted: Sequence[tuple[Prompt, int]]) -> Iterator[Rollout]:
        from transformers import GenerationConfig

        rollout = self._config.rollout
        wrapper: Any = self._learner.engine.module
        model: Any = unwrapped(wrapper.model)
        width = max(len(prompt.token_ids) for prompt, _ in wanted)
        pad = self._tokenizer.pad_token_id or 0
        ids = torch.full((len(wanted), width), pad)
        for row, (prompt, _) in enumerate(wanted):
            ids[row, width - len(prompt.token_ids) :] = torch.tensor(prompt.token_ids)
        lengths = torch.tensor([len(prompt.token_ids) for prompt, _ in wanted])
        attended = torch.arange(width) >= width - lengths[:, None]
        ends = model.generation_config.eos_token_id
        settings = GenerationConfig(  # type: ignore[no-untyped-call]  # transformers is partly untyped
            do_sample=True,
            temperature=rollout.temperature,
            top_k=0,
            top_p=1.0,
            max_new_tokens=rollout.max_new_tokens,
            pad_token_id=pad,
            eos_token_id=ends,
            return_dict_in_generate=True,
            output_logits=True,
        )
        with _nothing_but(settings, model):
            seen = attended.long().to(model.device)
            found = model.generate(ids.to(model.device), attention_mask=seen, generation_config=settings)
        new = found.sequences[:, width:]
        each = (torch.log_softmax(logits.float() / rollout.temperature, dim=1) for logits in found.logits)
        picked = [logprobs.gather(1, new[:, t, None])[:, 0] for t, logprobs in enumerate(each)]
        stops = set(ends if isinstance(ends, list) else [ends])
        for row, (tokens, logprobs) in enumerate(zip(new.tolist(), torch.stack(picked, 1).tolist(), strict=True)):
            end = next((t + 1 for t, token in enumerate(tokens) if token in stops), None)
            answer = tuple(tokens[:end])
            yield Rollout(
                prompt=wanted[row][0],
                sample_index=wanted[row][1],
                response_ids=answer,
                rollout_logprobs=tuple(logprobs[: len(answer)]),
                text=self._tokenizer.decode(answer, skip_special_tokens=True),
                finish_reason="length" if end is None else "stop",
                policy_version=self.version,
            )


class MemoryJournal:
    """Remembers the metrics of a run and warns of its events; commits nothing."""

    def __init__(self) -> None:
        self.steps: list[Metrics] = []

    def metrics(self, step: int, metrics: Metrics) -> None:
        """One line a step."""
        self.steps.append({"step": float(step), **metrics})

    def phase(self, step: int, name: str) -> None:
        """Nobody watches."""

    def rollouts(self, step: int, rollouts: Sequence[Rollout]) -> None:
        """Not kept."""

    def spans(self, step: int, lanes: Mapping[str, Sequence[Span]]) -> None:
        """Not kept."""

    def event(self, kind: str, sentence: str, **details: object) -> None:
        """A warning: a breach of a sentinel, rollouts that could not be scored."""
        warnings.warn(f"{kind}: {sentence}", stacklevel=2)

    def commit_beside(self, step: int, state: State, save: Save, committed: Callable[[Path], None]) -> None:
        """Nothing is written."""

    def settle(self) -> None:
        """Nothing is under way."""


@contextlib.contextmanager
def _nothing_but(settings: Any, model: Any) -> Iterator[None]:
    """`generate` fills what its settings leave open from the model's own, such as a repetition penalty, which would
    sample from another distribution than the log-probs say."""
    own, model.generation_config = model.generation_config, settings
    try:
        yield
    finally:
        model.generation_config = own


@contextlib.contextmanager
def _as_the_only_rank() -> Iterator[None]:
    """What a launcher would have told DeepSpeed; taken back, because a cluster started later would inherit it."""
    asked = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = asked or "0"
    yield
    if asked is None:
        os.environ.pop("LOCAL_RANK", None)
