"""TRPO's step against dense linear algebra: the Fisher matrix is written out by enumeration."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from rlhf_ray.algorithms.trpo import TRPOConfig, conjugate_gradient, fisher_product, flat, full_step
from tests.builders import run_config

STATES, WORDS = 7, 5


class Policy(torch.nn.Module):
    """A small network with a nonlinearity, in float64: 55 parameters."""

    def __init__(self) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(STATES, 4, generator=draw, dtype=torch.float64)
        self.first = torch.nn.Parameter(torch.randn(4, 6, generator=draw, dtype=torch.float64))
        self.second = torch.nn.Parameter(torch.randn(6, WORDS, generator=draw, dtype=torch.float64))
        self.unused = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self) -> Tensor:
        """Logits `[STATES, WORDS]`."""
        return torch.tanh(self.inputs @ self.first) @ self.second


def dense_fisher(policy: Policy, weights: Tensor) -> Tensor:
    """Sum over states of weight times the expectation, over words, of the outer product of the score with itself."""
    logp = torch.log_softmax(policy(), dim=1)
    parameters = list(policy.parameters())
    found = torch.zeros(sum(p.numel() for p in parameters), sum(p.numel() for p in parameters), dtype=torch.float64)
    for state in range(STATES):
        for word in range(WORDS):
            score = flat(torch.autograd.grad(logp[state, word], parameters, retain_graph=True, materialize_grads=True))
            found += weights[state] * logp[state, word].exp().detach() * torch.outer(score, score)
    return found


def test_conjugate_gradient_solves_what_a_dense_solver_does() -> None:
    draw = torch.Generator().manual_seed(0)
    root = torch.randn(20, 20, generator=draw, dtype=torch.float64)
    matrix, target = root @ root.T + torch.eye(20, dtype=torch.float64), torch.randn(20, generator=draw).double()
    found = conjugate_gradient(lambda v: matrix @ v, target, 60)
    torch.testing.assert_close(found, torch.linalg.solve(matrix, target), rtol=1e-4, atol=1e-5)
    assert not conjugate_gradient(lambda v: matrix @ v, torch.zeros(20, dtype=torch.float64), 5).any()


def test_the_fisher_product_is_that_of_the_dense_matrix() -> None:
    policy, draw = Policy(), torch.Generator().manual_seed(2)
    weights = torch.rand(STATES, generator=draw, dtype=torch.float64)
    dense = dense_fisher(policy, weights)
    parameters = list(policy.parameters())
    for _ in range(3):
        vector = torch.randn(len(dense), generator=draw, dtype=torch.float64)
        found = fisher_product(policy(), weights, parameters, vector)
        torch.testing.assert_close(found, dense @ vector, rtol=1e-5, atol=1e-6)


def test_a_full_step_is_the_dense_one_and_reaches_the_trust_region() -> None:
    policy, weights = Policy(), torch.full((STATES,), 1 / STATES, dtype=torch.float64)
    parameters = list(policy.parameters())
    damped = dense_fisher(policy, weights) + 1e-3 * torch.eye(55, dtype=torch.float64)
    before = torch.log_softmax(policy(), dim=1)
    advantages = torch.randn(STATES, WORDS, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    surrogate = (weights[:, None] * before.exp() * advantages).sum()
    gradient = flat(torch.autograd.grad(surrogate, parameters, materialize_grads=True))

    def product(vector: Tensor) -> Tensor:
        return fisher_product(policy(), weights, parameters, vector) + 1e-3 * vector

    max_kl = 1e-5  # small, so that the KL is its quadratic model
    step = full_step(conjugate_gradient(product, gradient, 200), product, max_kl)
    natural = torch.linalg.solve(damped, gradient)
    expected = natural * torch.sqrt(2 * max_kl / (natural @ damped @ natural))
    torch.testing.assert_close(step, expected, rtol=1e-3, atol=1e-6)
    with torch.no_grad():
        for parameter, move in zip(parameters, step.split([p.numel() for p in parameters]), strict=True):
            parameter += move.view_as(parameter)
        after = torch.log_softmax(policy(), dim=1)
        kl = float((weights[:, None] * before.exp() * (before - after)).sum())
    assert kl == pytest.approx(max_kl, rel=0.05)
    assert float((weights[:, None] * after.exp() * advantages).sum()) > float(surrogate.detach())


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValidationError, match="set old_logprobs = learner"):
        TRPOConfig(old_logprobs="engine")
    for policy, said in (
        ({"deepspeed": {"zero_stage": 3}}, "needs policy.deepspeed.zero_stage 0, 1 or 2"),
        ({"gradient_checkpointing": True}, "needs policy.gradient_checkpointing: false"),
    ):
        with pytest.raises(ValidationError, match=said):
            run_config("unused", algorithm={"type": "trpo"}, policy=policy)  # type: ignore[arg-type]  # never opened
