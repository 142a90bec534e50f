"""The gradient of a minibatch on the parameters of a model, however it is cut into microbatches and ranks, padded,
packed or ordered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlhf_ray import conformance
from rlhf_ray.actors import accounting, update
from rlhf_ray.algorithms.base import OnlineAlgorithm
from rlhf_ray.algorithms.dpo import OnlineDPO, OnlineDPOConfig
from rlhf_ray.algorithms.ppo import PPO, PPOConfig
from rlhf_ray.algorithms.report import LossReport
from rlhf_ray.data.batching import share
from rlhf_ray.models.causal_lm import CausalLM, load_causal_lm
from rlhf_ray.models.tiny import tiny_model
from rlhf_ray.models.value import ValueHead, ValueModel
from rlhf_ray.types import Batch, present
from tests.conformance.methods import METHODS, method
from tests.conformance.policies import NAN, PROMPTS, multi_turn_batch, table_policy, theta_of

VOCABULARY, COEF = 6, 0.3
ALGORITHMS: dict[str, Callable[[], Any]] = {
    **{name: lambda name=name: method(name, entropy_coef=0.01) for name in METHODS},  # type: ignore[misc]  # binds it
    "online_dpo": lambda: OnlineDPO(OnlineDPOConfig()),
    "ipo": lambda: OnlineDPO(OnlineDPOConfig(loss="ipo")),
}


def policy() -> CausalLM:
    draw = torch.Generator().manual_seed(9)
    return table_policy(torch.randn(VOCABULARY, VOCABULARY, generator=draw), 0.8)


def step_batch(algorithm: Any) -> Batch:
    """With old log-probs near those of the policy, and what the algorithm makes of it."""
    batch = multi_turn_batch(vocabulary=VOCABULARY)
    with torch.no_grad():
        now, _ = policy()(batch.token_ids, batch.attention_mask, batch.response_mask)
    noise = 0.2 * torch.randn(now.shape, generator=torch.Generator().manual_seed(2))
    old = torch.where(batch.response_mask, now + noise, NAN)
    found: Batch = algorithm.advantages(batch.with_(old_logprobs=old, ref_logprobs=old - 0.1), PROMPTS)[0]
    return found


def parts_of(batch: Batch, ranks: list[list[list[int]]], unit: int) -> Iterator[tuple[Tensor, Batch]]:
    """Microbatches cut to their longest row. One without rows is computed with another's, masked, as ranks do."""
    lengths = batch.attention_mask.sum(dim=1)
    for units in (microbatch for rank in ranks for microbatch in rank):
        rows = torch.tensor([unit * one + i for one in units for i in range(unit)], dtype=torch.long)
        picked = rows if len(rows) else torch.arange(unit)
        part = batch.rows(picked, int(lengths[picked].max()))
        if not len(rows):
            part = part.with_(loss_mask=torch.zeros_like(part.loss_mask))
        yield rows, part


@pytest.mark.parametrize("name", ALGORITHMS)
def test_no_split_changes_the_gradient_of_the_policy(name: str) -> None:
    algorithm = ALGORITHMS[name]()
    batch = step_batch(algorithm)
    unit = algorithm.config.unit

    def gradient(split: list[list[list[int]]]) -> Tensor:
        model, weights = policy(), algorithm.weights(batch)
        for rows, part in parts_of(batch, split, unit):
            outputs = model(part.token_ids, part.attention_mask, part.response_mask)
            loss, _ = algorithm.policy_loss(*outputs, part, share(weights, rows, part), COEF)
            torch.autograd.backward(loss)
        return present(theta_of(model).grad, "gradient")

    conformance.check_split_invariance(gradient, len(batch) // unit, 1e-4)


def test_no_split_changes_the_gradient_of_the_critic() -> None:
    algorithm = PPO(PPOConfig())
    batch = step_batch(algorithm)

    def gradient(split: list[list[list[int]]]) -> Tensor:
        critic, weights = _critic(), algorithm.weights(batch)
        for rows, part in parts_of(batch, split, 1):
            loss, _ = algorithm.value_loss(
                critic(part.token_ids, part.attention_mask), part, share(weights, rows, part)
            )
            torch.autograd.backward(loss)
        return present(critic.head.weight.grad, "gradient")

    conformance.check_split_invariance(gradient, len(batch), 1e-4)


def _critic() -> ValueModel:
    class Backbone(nn.Module):
        def forward(self, input_ids: Tensor, attention_mask: Tensor, use_cache: bool) -> Any:
            return SimpleNamespace(last_hidden_state=torch.eye(VOCABULARY)[input_ids])

    return ValueModel(Backbone(), ValueHead(VOCABULARY))


class _Engine:
    """Adds up gradients, and remembers those of each optimizer step."""

    def __init__(self, model: CausalLM, microbatch_tokens: int) -> None:
        self.model, self.config = model, SimpleNamespace(microbatch_tokens=microbatch_tokens)
        self.steps: list[Tensor] = []

    def backward(self, loss: Tensor) -> None:
        torch.autograd.backward(loss)

    def step(self) -> Any:
        theta = theta_of(self.model)
        self.steps.append(present(theta.grad, "gradient").clone())
        theta.grad = None
        return SimpleNamespace(applied=True, grad_norm=0.0, missing=())


@pytest.mark.parametrize("name", ["ppo", "grpo", "gspo", "online_dpo"])
@pytest.mark.parametrize("ranks", [2, 3])
def test_an_update_on_more_ranks_has_the_same_gradients(name: str, ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    algorithm = ALGORITHMS[name]()
    algorithm.config = algorithm.config.model_copy(update={"num_minibatches": 2})
    batch = step_batch(algorithm)

    def steps(world: int, tokens: int) -> list[Tensor]:
        found = [_steps_of_rank(algorithm, batch, rank, world, tokens, monkeypatch) for rank in range(world)]
        return [torch.stack(step).sum(dim=0) for step in zip(*found, strict=True)]

    alone = steps(1, 10_000)
    assert alone and all(bool(step.any()) for step in alone)
    for tokens in (1, 25, 10_000):
        torch.testing.assert_close(steps(ranks, tokens), alone, atol=1e-6, rtol=1e-4)


def _steps_of_rank(
    algorithm: OnlineAlgorithm, batch: Batch, rank: int, world: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> list[Tensor]:
    """The production's own loop over minibatches and microbatches, on one of `world` ranks."""
    group = SimpleNamespace(
        get_world_size=lambda: world, get_rank=lambda: rank, all_reduce=lambda *_, **__: None,
        ReduceOp=torch.distributed.ReduceOp,
    )  # fmt: skip
    monkeypatch.setattr(update, "dist", group)
    monkeypatch.setattr(accounting, "dist", group)
    model = policy()
    engine: Any = _Engine(model, tokens)

    def loss(part: Batch, weights: Tensor) -> tuple[Tensor, LossReport]:
        outputs = model(part.token_ids, part.attention_mask, part.response_mask)
        return algorithm.policy_loss(*outputs, part, weights, COEF)

    update.run_epochs(engine, algorithm, batch, torch.Generator().manual_seed(4), loss, lambda *_: None)
    steps: list[Tensor] = engine.steps
    return steps


TOKEN_METHODS = [name for name in METHODS if name != "gspo"]  # GSPO's ratio is that of an answer


@pytest.mark.parametrize("name", TOKEN_METHODS)
def test_packed_rows_have_the_loss_of_padded_ones(name: str) -> None:
    """All answers behind each other in one row, as a packed forward pass would give them."""
    algorithm = method(name)
    batch = step_batch(algorithm)
    new, entropy = (x.detach() for x in policy()(batch.token_ids, batch.attention_mask, batch.response_mask))
    weights, inside = algorithm.weights(batch), batch.response_mask
    padded, _ = algorithm.policy_loss(new, entropy, batch, weights, COEF)
    fields = {key: value[inside][None] for key, value in batch.tensors().items() if value.dim() == 2}
    packed = Batch(**fields, rewards=torch.zeros(1), truncated=torch.zeros(1, dtype=torch.bool))
    one_row, _ = algorithm.policy_loss(new[inside][None], entropy[inside][None], packed, weights[inside][None], COEF)
    assert one_row.item() == pytest.approx(padded.item(), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("name", METHODS)
def test_order_of_rows_names_of_prompts_and_width_mean_nothing(name: str) -> None:
    batch = multi_turn_batch()
    straight = present(method(name).advantages(batch, PROMPTS)[0].advantages, "advantages")
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(5))
    renamed = torch.tensor([7, 3, 5])[PROMPTS]
    mixed = present(method(name).advantages(batch.rows(order), renamed[order])[0].advantages, "advantages")
    torch.testing.assert_close(mixed, straight[order], atol=1e-5, rtol=1e-4)
    wider = {key: _widened(value) for key, value in batch.tensors().items()}
    wide = present(method(name).advantages(Batch(**wider), PROMPTS)[0].advantages, "advantages")
    torch.testing.assert_close(wide[:, : straight.shape[1]], straight, atol=1e-6, rtol=1e-5)
    assert not wide[:, straight.shape[1] :].any()


def _widened(x: Tensor) -> Tensor:
    if x.dim() == 1:
        return x
    fill = NAN if x.dtype.is_floating_point else 0
    return torch.nn.functional.pad(x, (0, 4), value=fill)


def test_every_parameter_of_policy_and_critic_gets_a_gradient(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tiny_model(tmp_path_factory.mktemp("models") / "tiny")
    batch = multi_turn_batch(vocabulary=50)
    model = CausalLM(load_causal_lm(folder, torch.float32), 1.0)
    logprobs, entropy = model(batch.token_ids, batch.attention_mask, batch.response_mask)
    algorithm = method("ppo", kl_placement="loss", entropy_coef=0.01)
    batch, _ = algorithm.advantages(batch, PROMPTS)
    torch.autograd.backward(algorithm.policy_loss(logprobs, entropy, batch, algorithm.weights(batch), COEF)[0])
    critic = ValueModel(load_causal_lm(folder, torch.float32).get_decoder(), ValueHead(128))  # type: ignore[operator]  # transformers' method
    nn.init.normal_(critic.head.weight, std=0.1)
    assert isinstance(algorithm, PPO)
    values = critic(batch.token_ids, batch.attention_mask)
    torch.autograd.backward(algorithm.value_loss(values, batch, algorithm.weights(batch))[0])
    for module in (model, critic):
        missing = [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()]
        assert not missing
