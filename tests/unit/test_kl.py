"""KL estimators by exact enumeration of a tiny vocabulary, and the controller against its closed form."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rlhf_ray.algorithms import ops
from rlhf_ray.algorithms.kl import KLController
from rlhf_ray.conformance import oracles

LOGITS = [0.3, -1.2, 0.8, 0.0, 1.9]
REF_LOGITS = [-0.4, 0.6, 0.1, 1.0, 0.2]
Estimator = Callable[[Tensor, Tensor], Tensor]


def expectation_and_gradient(estimator: Estimator) -> tuple[float, list[float]]:
    """E_p of the estimator and of its gradient: every token once, weighted by its (detached) probability."""
    logits = torch.tensor(LOGITS, requires_grad=True)
    logp = torch.log_softmax(logits, 0)
    ref = torch.log_softmax(torch.tensor(REF_LOGITS), 0)
    expected = (logp.detach().exp() * estimator(logp[None], ref[None])[0]).sum()
    torch.autograd.backward(expected)
    assert logits.grad is not None
    return expected.item(), logits.grad.tolist()


@pytest.mark.parametrize("estimator", [ops.k1, ops.k3])
def test_k1_and_k3_are_unbiased(estimator: Estimator) -> None:
    value, _ = expectation_and_gradient(estimator)
    assert value == pytest.approx(oracles.kl_divergence(LOGITS, REF_LOGITS), rel=1e-5)


def test_the_gradient_of_the_k2_loss_is_the_gradient_of_the_kl() -> None:
    _, gradient = expectation_and_gradient(ops.k2)
    assert gradient == pytest.approx(oracles.kl_gradient(LOGITS, REF_LOGITS), abs=1e-6)


@pytest.mark.parametrize("estimator", [ops.k1, ops.k3])
def test_the_gradients_of_k1_and_k3_as_losses_are_not(estimator: Estimator) -> None:
    _, gradient = expectation_and_gradient(estimator)
    assert gradient != pytest.approx(oracles.kl_gradient(LOGITS, REF_LOGITS), abs=0.05)


def test_k3_is_never_negative_and_exact_near_zero() -> None:
    logprobs = torch.linspace(-8, 0, 101)[None]
    assert (ops.k3(logprobs, logprobs.flip(1)) >= 0).all()
    assert ops.k3(torch.tensor([[-1.0]]), torch.tensor([[-1.001]])).item() == pytest.approx(5e-7, rel=0.05)


def test_estimators_compute_in_float32() -> None:
    half = torch.tensor([[-1.0]], dtype=torch.bfloat16)
    assert {f(half, half).dtype for f in (ops.k1, ops.k2, ops.k3)} == {torch.float32}


def test_adaptive_coefficient_follows_its_closed_form() -> None:
    controller = KLController(0.1, target=6.0, horizon=1000)
    kls = [6.0, 6.6, 30.0, 0.0, 5.4, 100.0, -2.0]
    seen = []
    for kl in kls:
        controller.update(kl, num_sequences=64)
        seen.append(controller.coef)
    assert seen == pytest.approx(oracles.adaptive_coefs(0.1, 6.0, 1000, kls, 64))
    assert seen[0] == 0.1
    assert seen[1] == pytest.approx(0.1 * (1 + 0.1 * 0.064))
    assert seen[2] == pytest.approx(seen[1] * (1 + 0.2 * 0.064))


def test_without_a_target_the_coefficient_is_fixed() -> None:
    controller = KLController(0.1, target=None, horizon=10)
    controller.update(1e6, num_sequences=1000)
    assert controller.coef == 0.1


def test_a_coefficient_that_could_reach_zero_is_refused() -> None:
    controller = KLController(0.1, target=6.0, horizon=100)
    controller.update(0.0, num_sequences=499)
    assert controller.coef > 0
    with pytest.raises(ValueError, match="kl_horizon"):
        controller.update(0.0, num_sequences=500)


def test_a_kl_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        KLController(0.1, target=6.0, horizon=1000).update(math.nan, 8)


def test_the_controller_continues_from_its_state() -> None:
    one, other = KLController(0.1, 6.0, 1000), KLController(0.1, 6.0, 1000)
    one.update(20.0, 64)
    other.load_state_dict(json.loads(json.dumps(one.state_dict())))
    one.update(3.0, 64)
    other.update(3.0, 64)
    assert one.coef == other.coef != 0.1
    fixed = KLController(0.2, None, 1000)
    fixed.load_state_dict(one.state_dict())
    assert fixed.coef == 0.2, "that of the config, which a fork may change"


@pytest.mark.parametrize("state", [{}, {"coef": "0.1"}, {"coef": math.nan}, {"coef": -1.0}, {"coef": True}])
def test_a_broken_state_is_refused(state: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="KL coefficient"):
        KLController(0.1, 6.0, 1000).load_state_dict(state)
