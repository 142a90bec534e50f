"""KL estimators, whole methods on policies that can be enumerated, TRPO's step and adaptive coefficients."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rlhf_ray import conformance
from rlhf_ray.actors import accounting, trust_region, update
from rlhf_ray.actors.trust_region import TrustRegion
from rlhf_ray.algorithms import ops
from rlhf_ray.algorithms.adaptive_beta import KLTarget, RewardGap
from rlhf_ray.algorithms.kl import KLController
from rlhf_ray.algorithms.trpo import TRPO, TRPOConfig
from rlhf_ray.conformance import oracles
from rlhf_ray.models.causal_lm import CausalLM
from tests.conformance.methods import method
from tests.conformance.policies import FeatureLM, answers_batch, multi_turn_batch, table_policy, theta_of

Array = Any


def t(x: Array) -> Tensor:
    return torch.as_tensor(np.asarray(x))


@pytest.fixture
def one_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Collectives of a single rank."""
    alone = SimpleNamespace(
        get_world_size=lambda: 1, get_rank=lambda: 0, all_reduce=lambda *_, **__: None,
        ReduceOp=torch.distributed.ReduceOp,
    )  # fmt: skip
    for module in (accounting, trust_region, update):
        monkeypatch.setattr(module, "dist", alone)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_estimators_conform(estimator: str) -> None:
    conformance.check_kl_estimator(lambda p, q: getattr(ops, estimator)(t(p), t(q)), estimator)


def test_the_exact_kl_is_that_of_the_policy_from_the_reference() -> None:
    logits, ref = np.random.default_rng(0).normal(0, 2, (2, 6, 5))
    want = [oracles.kl_divergence(p, q) for p, q in zip(logits.tolist(), ref.tolist(), strict=True)]
    assert ops.full_kl(t(logits), t(ref)).tolist() == pytest.approx(want, rel=1e-5)


def sequence_gradient(name: str, **settings: Any) -> Callable[[Array, Array, Array, Array, float], Tensor]:
    """The production's way from sampled answers to a gradient, each answer weighed with its probability. The critic
    may say anything about what it has seen, and `engine` moves the policy that samples away from the learner's."""
    engine_shift = settings.pop("engine_shift", 0.0)

    def gradient(table: Array, ref: Array, sequences: Array, rewards: Array, coef: float) -> Tensor:
        policy, groups = table_policy(t(table)), _groups(name, len(sequences))
        flat = torch.tensor(list(itertools.chain(*groups)))
        batch = answers_batch(table.shape[1], t(sequences)[flat], t(rewards)[flat])
        new, entropy = policy(batch.token_ids, batch.attention_mask, batch.response_mask)
        shifted = t(table) + engine_shift * torch.arange(table.size).view(table.shape) / table.size
        with torch.no_grad():
            asked = batch.token_ids, batch.attention_mask, batch.response_mask
            engine, reference = table_policy(shifted)(*asked)[0], table_policy(t(ref))(*asked)[0]
            seen = torch.nn.functional.pad(batch.token_ids[:, :-1] * 0.7 - 0.3, (1, 0))
        batch = batch.with_(old_logprobs=new.detach(), ref_logprobs=reference, values=seen, rollout_logprobs=engine)
        algorithm = method(name, kl_coef=coef, kl_placement="reward", clip_range=None, **settings)
        numbers = torch.arange(len(groups)).repeat_interleave(len(groups[0]))
        batch, _ = algorithm.advantages(batch, numbers, adapt=False)
        of_group = engine.sum(dim=1).view(len(groups), -1).sum(dim=1).exp() / len(groups[0])
        weights = of_group.repeat_interleave(len(groups[0]))[:, None] * batch.response_mask
        torch.autograd.backward(algorithm.policy_loss(new, entropy, batch, weights, coef)[0])
        found = theta_of(policy).grad
        assert found is not None
        return found

    return gradient


def _groups(name: str, count: int) -> list[tuple[int, ...]]:
    """Every pair of answers for methods that compare two, or every answer alone."""
    return list(itertools.product(range(count), repeat=2 if name in ("rloo", "dr_grpo") else 1))


UNBIASED: dict[str, dict[str, Any]] = {
    "reinforce": {"baseline": "none"},
    "rloo": {},
    "ppo": {"gamma": 1.0, "gae_lambda": 1.0, "whiten_advantages": False},
}


@pytest.mark.parametrize("name", UNBIASED)
def test_the_mean_gradient_of_a_method_is_that_of_its_objective(name: str) -> None:
    conformance.check_sequence_gradient(sequence_gradient(name, **UNBIASED[name]))


def test_importance_weights_take_the_engines_samples_for_the_learners() -> None:
    settings = {"baseline": "none", "importance": "sequence", "importance_cap": 1e6}
    conformance.check_sequence_gradient(sequence_gradient("reinforce", **settings, engine_shift=1.5))
    with pytest.raises(AssertionError, match="KL coefficient"):
        conformance.check_sequence_gradient(sequence_gradient("reinforce", baseline="none", engine_shift=1.5))


@pytest.mark.parametrize("mistake", ["the group's own mean", "a discount", "the next token's value"])
def test_a_biased_method_fails(mistake: str) -> None:
    gradients = {
        "the group's own mean": sequence_gradient("dr_grpo"),
        "a discount": sequence_gradient("reinforce", baseline="none", gamma=0.8),
        "the next token's value": sequence_gradient("ppo", whiten_advantages=False, gae_lambda=0.5),
    }
    with pytest.raises(AssertionError, match="KL coefficient"):
        conformance.check_sequence_gradient(gradients[mistake])


class _Engine:
    """What `TrustRegion` asks of the engine."""

    def __init__(self, module: CausalLM, microbatch_tokens: int) -> None:
        self.module, self.trainable = module, dict(module.named_parameters())
        self.config = SimpleNamespace(microbatch_tokens=microbatch_tokens)

    def forget_gradients(self) -> None:
        """Nothing is watched."""

    @torch.no_grad()
    def set_weights(self, weights: dict[str, Tensor]) -> None:
        for name, weight in weights.items():
            self.trainable[name].copy_(weight)


def trust_region_step(
    features: Array,
    theta: Array,
    actions: Array,
    advantages: Array,
    max_kl: float,
    damping: float,
    halvings: int,
    fisher_fraction: float = 1.0,
) -> Tensor:
    policy = CausalLM(FeatureLM(t(features), t(theta)), 1.0)
    batch = answers_batch(torch.arange(len(actions)), t(actions)[:, None], torch.zeros(len(actions)))
    with torch.no_grad():
        old, _ = policy(batch.token_ids, batch.attention_mask, batch.response_mask)
    batch = batch.with_(old_logprobs=old, advantages=t(advantages)[:, None] * batch.response_mask)
    config = TRPOConfig(
        max_kl=max_kl, damping=damping, line_search_steps=halvings, cg_iterations=100, fisher_fraction=fisher_fraction
    )
    engine: Any = _Engine(policy, 24)  # three microbatches
    TrustRegion(engine, TRPO(config), batch, 0.0).update()
    return theta_of(policy).detach()


def test_a_trpo_step_is_that_of_the_dense_fisher_matrix(one_rank: None) -> None:
    conformance.check_trust_region_step(trust_region_step)


def test_the_fisher_matrix_of_a_sample_is_a_mean_over_the_sample(one_rank: None) -> None:
    draw = np.random.default_rng(1)
    theta, features = draw.normal(size=(3, 4)), np.repeat(draw.normal(size=(6, 3)), 2, axis=0)
    actions, advantages = np.repeat(draw.integers(0, 4, 6), 2), np.repeat(draw.normal(size=6), 2)
    whole, half, quarter = (
        trust_region_step(features, theta, actions, advantages, 0.01, 0.01, 10, share) for share in (1.0, 0.5, 0.25)
    )
    torch.testing.assert_close(half, whole, rtol=1e-3, atol=1e-4)  # every second row of rows that come twice
    most = trust_region_step(features, theta, actions, advantages, 0.01, 0.01, 10, 0.8)
    assert 0 < (most - whole).abs().max() < (quarter - whole).abs().max(), "ten rows of twelve"
    assert (quarter - whole).abs().max() > 1e-2


@pytest.mark.parametrize("mistake", ["a plain gradient", "no line search", "half the region"])
def test_another_step_fails(one_rank: None, mistake: str) -> None:
    def plain(features: Array, theta: Array, actions: Array, advantages: Array, *rest: Any) -> Array:
        probabilities = oracles.softmax(features @ theta)
        slope = (np.eye(theta.shape[1])[actions] - probabilities) * advantages[:, None] / len(actions)
        return theta + 0.1 * features.T @ slope

    def halved(*arguments: Any) -> Tensor:
        *start, max_kl, damping, halvings = arguments
        return trust_region_step(*start, max_kl / 2, damping, halvings)

    def unsearched(*arguments: Any) -> Tensor:
        start, theta = arguments[:4], t(arguments[1])
        far, (max_kl, damping, _) = arguments[4] * 1e-6, arguments[4:]
        return theta + (trust_region_step(*start, far, damping, 1) - theta) * (max_kl / far) ** 0.5

    steps: dict[str, Callable[..., Any]] = {
        "a plain gradient": plain, "no line search": unsearched, "half the region": halved,
    }  # fmt: skip
    with pytest.raises(AssertionError, match="trust region"):
        conformance.check_trust_region_step(steps[mistake])


def test_the_kl_controller_follows_its_closed_form() -> None:
    def coefs(coef: float, target: float, horizon: int, kls: Array, number: int) -> list[float]:
        controller, found = KLController(coef, target, horizon), []
        for kl in kls.tolist():
            controller.update(kl, number)
            found.append(controller.coef)
        return found

    conformance.check_kl_controller(coefs)
    with pytest.raises(AssertionError, match="horizon 1000"):
        conformance.check_kl_controller(lambda coef, target, horizon, kls, n: coefs(coef, target, horizon, kls / n, n))


def test_the_kl_target_follows_its_closed_form() -> None:
    def betas(
        beta: float, target: float, gain: float, horizon: float, band: float, keep: float, limit: float, kls: Array
    ) -> list[float]:
        controller, found = KLTarget(beta, target, gain, horizon, band, keep, limit, (1e-9, 1e9)), []
        for kl in kls.tolist():
            controller.observe(kl)
            found.append(controller.beta)
        return found

    conformance.check_kl_target(betas)
    with pytest.raises(AssertionError, match="gain"):
        conformance.check_kl_target(lambda b, t, g, h, *rest: betas(b, t, -g, h, *rest))


def test_the_beta_of_a_batch_follows_its_reward_gap() -> None:
    gaps = [3.0, 5.0, -2.0, 40.0, 1.0, 0.0, -60.0]
    controller, found = RewardGap(0.2, 0.6, 0.9, (0.02, 1.0)), []
    for gap in gaps:
        controller.observe(gap)
        found.append(controller.beta)
    want = oracles.gap_betas(0.2, 0.6, 0.9, gaps, (0.02, 1.0))
    assert found == pytest.approx(want) and {0.02, 1.0} < set(found), "both bounds must be met"


def test_the_price_of_cost_follows_its_closed_form() -> None:
    algorithm, found, costs = method("ppo_lagrangian", multiplier_rate=2.0), [], []
    for step in range(6):
        batch = multi_turn_batch(step)
        assert batch.costs is not None
        costs.append(float(batch.costs.double().mean()))
        _, metrics = algorithm.advantages(batch, torch.arange(len(batch)))
        found.append(metrics["constraint/multiplier"])
    assert found == pytest.approx(oracles.prices(1.0, 2.0, 0.4, costs, (1e-3, 100.0)))


def test_the_baseline_is_the_moving_average_of_earlier_rewards() -> None:
    algorithm, means, found = method("reinforce", baseline_momentum=0.8, kl_coef=0.0), [], []
    for step in range(5):
        batch = multi_turn_batch(step)
        found.append(algorithm.advantages(batch, torch.arange(len(batch)))[1]["reward/baseline"])
        means.append(float(batch.rewards[batch.loss_mask.any(dim=1)].double().mean()))
    want = [0.0, means[0]]
    for step in range(2, 5):
        older = sum(0.2 * 0.8 ** (step - 1 - past) * means[past] for past in range(1, step))
        want.append(0.8 ** (step - 1) * means[0] + older)
    assert found == pytest.approx(want, abs=1e-6)


def test_a_coefficient_stays_while_the_policy_is_frozen() -> None:
    algorithm, batch = method("ppo", kl_target=0.01, kl_horizon=100), multi_turn_batch()
    numbers = torch.arange(len(batch))
    seen = [algorithm.advantages(batch, numbers, adapt=adapt)[1]["kl/coef"] for adapt in (False, False, True, False)]
    assert seen[0] == seen[1] == seen[2] != seen[3]
