"""Masks, alignment, truncation, checksums and state of this package pass the public checks; mistakes fail them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rlhf_ray import conformance
from rlhf_ray.actors.local import LocalRollout
from rlhf_ray.algorithms import ops
from rlhf_ray.algorithms.adaptive_beta import KLTarget, RewardGap
from rlhf_ray.algorithms.dpo import OnlineDPO, OnlineDPOConfig
from rlhf_ray.algorithms.groups import returns_to_go
from rlhf_ray.data.batching import collate
from rlhf_ray.models.causal_lm import CausalLM, load_causal_lm
from rlhf_ray.models.tiny import tiny_model
from rlhf_ray.rewards.base import TruncatedConfig
from rlhf_ray.types import Message, Prompt, Rollout, Score
from rlhf_ray.weight_sync.bucket import checksum
from rlhf_ray.wrappers.dynamic_sampling import DynamicSampling
from tests.builders import run_config
from tests.conformance.methods import method
from tests.conformance.policies import PROMPTS, multi_turn_batch

Array = Any
EOS, VOCABULARY = 2, 40


def t(x: Array) -> Tensor:
    return torch.as_tensor(np.asarray(x))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    return load_causal_lm(tiny_model(tmp_path_factory.mktemp("models") / "tiny"), torch.float32)


def placed(rewards: Array, mask: Array) -> Tensor:
    return ops.place_reward(t(rewards), t(mask))


def returns(rewards: Array, mask: Array, gamma: float) -> Tensor:
    return returns_to_go(t(rewards), t(mask), gamma)


def token_logprobs(model: nn.Module) -> Callable[[Array, Array, Array, float], Tensor]:
    def function(ids: Array, attention: Array, actions: Array, temperature: float) -> Tensor:
        with torch.no_grad():
            found: Tensor = CausalLM(model, temperature)(t(ids), t(attention), t(actions))[0]
        return found

    return function


def next_logits(model: nn.Module) -> Callable[[list[int]], list[float]]:
    def function(prefix: list[int]) -> list[float]:
        with torch.no_grad():
            logits: Tensor = model(torch.tensor([prefix])).logits[0, -1]
        return logits.double().tolist()

    return function


def sampled(lengths: Array, ended: Array, limit: int) -> Iterator[Rollout]:
    """What the local sampler makes of answers that a model generated; the rest of a row is padded with its end."""
    ids = torch.full((len(lengths), 1 + limit), EOS)
    ids[:, 0] = 7
    for row, (length, ends) in enumerate(zip(lengths, ended, strict=True)):
        ids[row, 1 : 1 + length] = 5
        if ends:
            ids[row, length] = EOS
    logits = torch.randn(limit, len(lengths), VOCABULARY, generator=torch.Generator().manual_seed(0))
    model = SimpleNamespace(
        generation_config=SimpleNamespace(eos_token_id=[1, EOS]),
        device="cpu",
        generate=lambda *_, **__: SimpleNamespace(sequences=ids, logits=tuple(logits)),
    )
    learner: Any = SimpleNamespace(engine=SimpleNamespace(module=SimpleNamespace(model=model)))
    tokenizer = SimpleNamespace(pad_token_id=EOS, decode=lambda *_, **__: "text")
    config = run_config(Path("unused"), rollout={"max_new_tokens": limit, "max_concurrent": 64})
    prompts = [Prompt(f"p{row}", (Message("user", "hi"),), (7,)) for row in range(len(lengths))]
    return LocalRollout(config, learner, tokenizer).generate(prompts, 1, 1)


def truncated(lengths: Array, ended: Array, limit: int) -> Tensor:
    rollouts = [rollout.with_score(Score(0.0)) for rollout in sampled(lengths, ended, limit)]
    assert [len(rollout.response_ids) for rollout in rollouts] == list(lengths)
    return collate(rollouts, EOS, "mask", 0.0).truncated


def bytes_checksum(payload: bytes) -> object:
    return checksum(torch.frombuffer(bytearray(payload), dtype=torch.uint8))


def dynamic(take: Callable[[int], list[int]], teaches: Callable[[int], bool], wanted: int) -> list[int]:
    def generate(prompts: Sequence[Prompt], samples: int, step: int) -> Iterator[Rollout]:
        for prompt in prompts:
            for sample in range(samples):
                yield Rollout(prompt, sample, (1,), (0.0,), "", "stop", 0)

    def submit(rollouts: Iterable[Rollout]) -> Callable[[], list[Rollout]]:
        each = [(one, float(one.sample_index) if teaches(int(one.prompt.id)) else 0.5) for one in rollouts]
        return lambda: [one.with_score(Score(reward)) for one, reward in each]

    prompts: Any = SimpleNamespace(take=lambda n: [Prompt(str(i), (), (1,)) for i in take(n)])
    ports: Any = SimpleNamespace(generate=generate, submit=submit)
    sampling = DynamicSampling(prompts, ports, ports, 1000, TruncatedConfig())
    found = sampling.submit(sampling.generate(prompts.take(wanted), 2, 1))()
    return [int(one.prompt.id) for one in found if one.sample_index == 0]


def test_the_reward_is_placed_as_it_should() -> None:
    conformance.check_reward_placement(placed)


def test_returns_conform() -> None:
    conformance.check_returns_to_go(returns)


def test_log_probs_of_tokens_conform(model: nn.Module) -> None:
    conformance.check_token_logprobs(token_logprobs(model), next_logits(model), VOCABULARY, EOS)


def test_an_answer_that_ends_at_the_limit_is_whole() -> None:
    conformance.check_truncation(truncated)


def test_the_checksum_of_weights_sees_everything() -> None:
    conformance.check_weight_checksum(bytes_checksum)


def test_no_accepted_prompt_is_lost_or_repeated() -> None:
    conformance.check_dynamic_sampling(dynamic)


def _step(algorithm: Any, number: int) -> list[float]:
    return list(algorithm.advantages(multi_turn_batch(number), PROMPTS)[1].values())


def _observe(controller: Any, number: int) -> list[float]:
    controller.observe(1.0 + 0.7 * number)
    return list(controller.metrics().values())


STATES: dict[str, tuple[Callable[[], Any], Callable[[Any, int], list[float]]]] = {
    "ppo": (lambda: method("ppo", kl_target=0.5, kl_horizon=100), _step),
    "reinforce": (lambda: method("reinforce"), _step),
    "ppo_lagrangian": (lambda: method("ppo_lagrangian"), _step),
    "online_dpo": (lambda: OnlineDPO(OnlineDPOConfig(kl_target=0.5, kl_horizon=100)), _step),
    "kl_target": (lambda: KLTarget(0.1, 2.0, 0.3, 3.0, 0.0, 0.6, 1.2, (1e-3, 10.0)), _observe),
    "reward_gap": (lambda: RewardGap(0.1, 0.5, 0.9, (1e-3, 10.0)), _observe),
}


@pytest.mark.parametrize("name", STATES)
def test_a_resumed_method_goes_on_as_if_nothing_had_happened(name: str) -> None:
    make, step = STATES[name]
    conformance.check_resume(make, step, lambda one: one.state_dict(), lambda one, state: one.load_state_dict(state))


def _with_leftovers(take: Callable[[int], list[int]], teaches: Callable[[int], bool], wanted: int) -> list[int]:
    found: list[int] = []
    while len(found) < wanted:
        found += [prompt for prompt in take(3) if teaches(prompt)]
    return found[:wanted]


MISTAKES: dict[str, Callable[[nn.Module], None]] = {
    "the reward in the last column": lambda _: conformance.check_reward_placement(
        lambda r, m: np.where(np.arange(m.shape[1]) == m.shape[1] - 1, r[:, None], 0.0)
    ),
    "the reward after as many tokens as there are": lambda _: conformance.check_reward_placement(
        lambda r, m: np.where(np.arange(m.shape[1]) == m.sum(1)[:, None], r[:, None], 0.0)
    ),
    "returns that an observation cuts": lambda _: conformance.check_returns_to_go(
        lambda r, m, gamma: returns(np.where(m, r, 0.0), m, gamma) * 0 + t(_cut_returns(r, m, gamma))
    ),
    "discounting by columns": lambda _: conformance.check_returns_to_go(
        lambda r, m, gamma: returns(np.where(m, r, 0.0), np.ones_like(m), gamma) * t(m)
    ),
    "the temperature forgotten": lambda model: conformance.check_token_logprobs(
        lambda ids, a, m, _: token_logprobs(model)(ids, a, m, 1.0), next_logits(model), VOCABULARY, EOS
    ),
    "one token too early": lambda model: conformance.check_token_logprobs(
        lambda ids, a, m, heat: token_logprobs(model)(ids, a, np.roll(m, 1, axis=1), heat).roll(-1, 1),
        next_logits(model), VOCABULARY, EOS,
    ),
    "the end of sequence taken for padding": lambda model: conformance.check_token_logprobs(
        lambda ids, a, m, heat: token_logprobs(model)(ids, a, m & (ids != EOS), heat),
        next_logits(model), VOCABULARY, EOS,
    ),
    "truncated because it is the longest": lambda _: conformance.check_truncation(
        lambda lengths, ended, limit: lengths == lengths.max()
    ),
    "truncated at the limit": lambda _: conformance.check_truncation(lambda lengths, ended, limit: lengths >= limit),
    "a sum as a checksum": lambda _: conformance.check_weight_checksum(
        lambda payload: int(np.frombuffer(payload, dtype=np.uint64).sum())
    ),
    "a checksum of the first bytes": lambda _: conformance.check_weight_checksum(lambda payload: hash(payload[:4096])),
    "leftover prompts thrown away": lambda _: conformance.check_dynamic_sampling(_with_leftovers),
    "accepted prompts forgotten in the next round": lambda _: conformance.check_dynamic_sampling(
        lambda take, teaches, wanted: [prompt for prompt in take(wanted) if teaches(prompt)]
    ),
    "a mean that is not saved": lambda _: conformance.check_resume(
        lambda: RewardGap(0.1, 0.5, 0.9, (1e-3, 10.0)), _observe, lambda one: {"beta": one.beta, "mean": None},
        lambda one, state: one.load_state_dict(state),
    ),
}  # fmt: skip


def _cut_returns(rewards: Array, mask: Array, gamma: float) -> Array:
    found, running = np.zeros_like(rewards), np.zeros(len(rewards))
    for column in range(rewards.shape[1] - 1, -1, -1):
        running = (np.where(mask[:, column], rewards[:, column], 0.0) + gamma * running) * mask[:, column]
        found[:, column] = running
    return found


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_fails(model: nn.Module, mistake: str) -> None:
    with pytest.raises(AssertionError):
        MISTAKES[mistake](model)
