"""The public checks: this package's functions pass, and each well-known mistake fails."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from rlhf_ray import conformance
from rlhf_ray.algorithms import ops
from rlhf_ray.algorithms.groups import relative_to_group
from rlhf_ray.algorithms.pairs import pair_losses
from rlhf_ray.algorithms.trpo import conjugate_gradient
from tests.conformance.planted_bugs import planted

Array = Any


def _t(x: Array) -> Tensor:
    return torch.as_tensor(np.asarray(x))


def _logprobs(logits: Array, targets: Array, temperature: float) -> Tensor:
    return ops.selected_logprobs_and_entropy(_t(logits), _t(targets), temperature)[0]


def _gae(rewards: Array, values: Array, mask: Array, gamma: float, lam: float) -> Tensor:
    return ops.gae(_t(rewards), _t(values), _t(mask).bool(), gamma, lam)[0]


def _surrogate(new: Array, old: Array, advantages: Array, clip: float, dual: float | None) -> Tensor:
    return ops.clipped_policy_loss(_t(new), _t(old), _t(advantages), clip, dual)[0]


def _grpo(rewards: Array, groups: Array) -> Tensor:
    return relative_to_group(_t(rewards), _t(groups), torch.ones(len(rewards), dtype=torch.bool), "mean", True)


def _rloo(rewards: Array, groups: Array) -> Tensor:
    return relative_to_group(_t(rewards), _t(groups), torch.ones(len(rewards), dtype=torch.bool), "leave_one_out")


def _penalty_gradient(estimator: str) -> Callable[[Array, Array], Tensor]:
    """By enumeration of the tokens, each with its probability as a constant weight."""

    def gradient(logits: Array, ref: Array) -> Tensor:
        leaf = _t(logits).clone().requires_grad_()
        logp, fixed = leaf.log_softmax(0), _t(ref).log_softmax(0)
        penalty = getattr(ops, estimator) if estimator != "kl_loss" else lambda p, q: ops.kl_loss(p, q, "k3")
        (logp.detach().exp() * penalty(logp, fixed)).sum().backward()
        assert leaf.grad is not None
        return leaf.grad

    return gradient


def _top_p(logits: Array, temperature: float, top_p: float) -> Array:
    probs = np.exp(logits / temperature) / np.exp(logits / temperature).sum(1, keepdims=True)
    order = np.argsort(-probs, axis=1)
    ordered = np.take_along_axis(probs, order, 1)
    before = np.cumsum(ordered, 1) - ordered
    kept = np.zeros_like(probs, dtype=bool)
    np.put_along_axis(kept, order, before < top_p, 1)
    with np.errstate(divide="ignore"):
        return np.log(np.where(kept, probs, 0.0) / (probs * kept).sum(1, keepdims=True))


CONFORMS: dict[str, Callable[[], None]] = {
    "log-probs": lambda: conformance.check_selected_logprobs(_logprobs),
    "advantages": lambda: conformance.check_advantages(_gae),
    "clipped surrogate": lambda: conformance.check_policy_loss(_surrogate),
    "GRPO": lambda: conformance.check_group_advantages(_grpo),
    "RLOO": lambda: conformance.check_group_advantages(_rloo, leave_one_out=True),
    "whitening": lambda: conformance.check_whitening(lambda x, mask: ops.whiten(_t(x), _t(mask))),
    "k2 as a loss": lambda: conformance.check_kl_penalty_gradient(_penalty_gradient("k2")),
    "k3 as a loss": lambda: conformance.check_kl_penalty_gradient(_penalty_gradient("kl_loss")),
    "pairs": lambda: conformance.check_pair_loss(lambda c, r, beta, loss: pair_losses(_t(c) - _t(r), loss, beta)),
    "conjugate gradient": lambda: conformance.check_conjugate_gradient(
        lambda product, target, iterations: conjugate_gradient(lambda x: _t(product(x.numpy())), _t(target), iterations)
    ),
    "top-p": lambda: conformance.check_top_p_logprobs(_top_p),  # NumPy's: this package samples without
}


@pytest.mark.parametrize("name", CONFORMS)
def test_this_package_conforms(name: str) -> None:
    CONFORMS[name]()


MISTAKES: dict[str, Callable[[], None]] = {
    "temperature forgotten": lambda: conformance.check_selected_logprobs(lambda z, t, _: _logprobs(z, t, 1.0)),
    "an unstable softmax": lambda: conformance.check_selected_logprobs(
        lambda z, t, heat: np.log(np.exp(z / heat)[range(len(t)), t] / np.exp(z / heat).sum(1))
    ),
    "top-p without renormalization": lambda: conformance.check_top_p_logprobs(
        lambda z, heat, _: torch.log_softmax(_t(z) / heat, 1)
    ),
    "padding read": lambda: conformance.check_advantages(
        lambda r, v, m, gamma, lam: _gae(r, v, m, gamma, lam) + 0.0 * _t(r)
    ),
    "turns discounted": lambda: conformance.check_advantages(
        lambda r, v, m, gamma, lam: _gae(np.where(m, r, 0.0), np.where(m, v, 0.0), np.ones_like(m), gamma, lam) * _t(m)
    ),
    "no dual clip": lambda: conformance.check_policy_loss(lambda p, q, a, clip, _: _surrogate(p, q, a, clip, None)),
    "a mean over the ratio's log": lambda: conformance.check_policy_loss(
        lambda p, q, a, clip, dual: -_t(a) * (_t(p) - _t(q)).exp()
    ),
    "a group's own mean as leave-one-out": lambda: conformance.check_group_advantages(
        _grpo, leave_one_out=True, scale=False
    ),
    "an epsilon beside the deviation": lambda: conformance.check_group_advantages(
        lambda r, g: np.array([(x - r[g == k].mean()) / (r[g == k].std() + 1e-8) for x, k in zip(r, g, strict=True)])
    ),
    "biased variance": lambda: conformance.check_whitening(
        lambda x, m: np.where(m, (x - x[m].mean()) / x[m].std(), 0.0)
    ),
    "k1 as a loss": lambda: conformance.check_kl_penalty_gradient(_penalty_gradient("k1")),
    "k3 as a loss": lambda: conformance.check_kl_penalty_gradient(_penalty_gradient("k3")),
    "chosen and rejected exchanged": lambda: conformance.check_pair_loss(
        lambda c, r, beta, loss: pair_losses(_t(r) - _t(c), loss, beta)
    ),
    "one step of the solver": lambda: conformance.check_conjugate_gradient(
        lambda product, target, _: conjugate_gradient(lambda x: _t(product(x.numpy())), _t(target), 1)
    ),
    "another shape": lambda: conformance.check_whitening(lambda x, m: x[0]),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the mistakes overflow
@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_fails_with_the_case_that_shows_it(mistake: str) -> None:
    with pytest.raises(AssertionError, match=r"^[^:]+: "):
        MISTAKES[mistake]()


def test_the_guide_runs_as_it_stands_and_names_every_check() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    with pytest.raises(subprocess.CalledProcessError):
        subprocess.run([sys.executable, "-c", code.replace("+ gamma * lam * after", "")], check=True, timeout=60)
    assert [name for name in conformance.__all__ if f"`{name}`" not in guide] == []
    assert f"plants {len(planted())} bugs" in guide
