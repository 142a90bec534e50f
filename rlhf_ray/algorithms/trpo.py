"""TRPO: the natural gradient, as far as a trust region allows. The learner does it in `actors/trust_region.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor

from rlhf_ray.algorithms.ppo import PPO, PPOConfig

Product = Callable[[Tensor], Tensor]
"""A symmetric matrix, as its product with a vector."""


class TRPOConfig(PPOConfig):
    """Trust region policy optimization (Schulman et al. 2015, arXiv 1502.05477, section 6 and appendix C), with the
    advantages and the critic of PPO. AdamW and `policy.learning_rate` have no part in it: the policy takes one step on
    the whole batch, and `num_epochs` and `num_minibatches` are those of the critic."""

    needs_whole_weights: ClassVar[bool] = True

    type: Literal["trpo"] = "trpo"  # type: ignore[assignment]  # another member of the union
    clip_range: PositiveFloat | None = None
    max_kl: PositiveFloat = 0.01
    """The trust region: mean over response tokens of the exact KL(old policy || new policy), nats."""
    damping: PositiveFloat = 0.1
    """Added to the Fisher matrix's diagonal, so that a direction in which little is known cannot run away. The fewer
    tokens in a step, the more of it is needed."""
    fisher_fraction: Annotated[float, Field(gt=0, le=1)] = 0.25
    """The share of a step's rollouts from which the Fisher matrix is estimated. A product with it costs three updates,
    and each iteration takes one; the paper uses a tenth of its much larger batches (appendix C)."""
    cg_iterations: PositiveInt = 10
    line_search_steps: PositiveInt = 10
    """Halvings of the step before it is given up."""

    @model_validator(mode="after")
    def _own_logprobs(self) -> TRPOConfig:
        if self.old_logprobs == "engine":
            raise ValueError("trpo measures its step against the learner's own log-probs: set old_logprobs = learner")
        return self

    def make(self) -> TRPO:
        """The algorithm of this config."""
        return TRPO(self)


class TRPO(PPO):
    """PPO's advantages and critic; the surrogate without clipping."""

    config: TRPOConfig


def conjugate_gradient(product: Product, target: Float[Tensor, " N"], iterations: int) -> Float[Tensor, " N"]:
    """x with product(x) = target as nearly as `iterations` steps get, or until the residual is 1e-5 of the target.

    Hestenes and Stiefel 1952; the matrix must be positive definite.
    """
    x, residual = torch.zeros_like(target), target.clone()
    direction, square = residual.clone(), residual.dot(residual)
    goal = 1e-10 * square
    for _ in range(iterations):
        if square <= goal:
            break
        image = product(direction)
        length = square / direction.dot(image)
        x += length * direction
        residual -= length * image
        before, square = square, residual.dot(residual)
        direction = residual + square / before * direction
    return x


def fisher_product(
    logits: Float[Tensor, "N V"],
    weights: Float[Tensor, " N"],
    parameters: Sequence[Tensor],
    vector: Float[Tensor, " P"],
) -> Float[Tensor, " P"]:
    """The Fisher matrix of the next-token distributions, each with its weight, times `vector` (flat, as `parameters`).

    It is the Hessian of the weighted KL from the distributions as they are, where they are (appendix C.1).
    `logits` must carry a graph that can be differentiated twice.
    """
    logp = torch.log_softmax(logits.float(), dim=1)
    fixed = logp.detach()
    kl = (weights * (fixed.exp() * (fixed - logp)).sum(dim=1)).sum()
    slope = flat(torch.autograd.grad(kl, parameters, create_graph=True, materialize_grads=True))
    return flat(torch.autograd.grad(slope.dot(vector), parameters, materialize_grads=True)).detach()


def flat(tensors: Sequence[Tensor]) -> Float[Tensor, " P"]:
    """All entries in one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def full_step(direction: Float[Tensor, " P"], product: Product, max_kl: float) -> Float[Tensor, " P"]:
    """`direction` scaled so that the quadratic model of the KL, half of d'Fd, is `max_kl` (section 6 of the paper)."""
    curvature = direction.dot(product(direction))
    return direction * torch.sqrt(2 * max_kl / curvature.clamp(min=1e-12))
