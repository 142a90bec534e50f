"""The arithmetic of policy-gradient RLHF on `[B, T]` tensors, aligned as `types.py` says.

Padding may hold anything, NaN included: every function selects with `torch.where` before it computes, because
`NaN * 0` is NaN in the forward pass and in the gradient.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

CHUNK_ELEMENTS = 2**24
"""Logits handled at a time by `selected_logprobs_and_entropy`: 64 MiB in float32."""
MAX_LOG_RATIO = 20.0
"""exp(20) = 5e8 is far outside every clip range, and an overflow to inf would turn zero gradients into NaN."""
VARIANCE_EPS = 1e-8


def masked_sum(x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, ""]:
    """The sum of `x` over the true entries of `mask`."""
    return torch.where(mask, x, 0.0).sum()


def masked_mean(x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, ""]:
    """The mean of `x` over the true entries of `mask`; 0 (with a zero gradient) if there are none."""
    return masked_sum(x, mask) / mask.sum().clamp(min=1)


def whiten(x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """`x` shifted and scaled to mean 0 and unbiased variance 1 over all true entries of `mask`; 0 outside the mask.

    The statistics are those of the whole `[B, T]` tensor, in float64, so call it before any split into minibatches or
    ranks. A single true entry has no variance: it becomes 0, its deviation from the mean, as do all-equal entries.
    """
    count = int(mask.sum())
    if count < 2:
        return torch.zeros_like(x)
    wide = torch.where(mask, x, 0.0).double()
    centred = torch.where(mask, wide - wide.sum() / count, 0.0)
    variance = centred.square().sum() / (count - 1)
    return (centred * torch.rsqrt(variance + VARIANCE_EPS)).to(x.dtype)


class _SelectedLogprobs(torch.autograd.Function):
    """Keeps only the logits for the backward pass and works in row chunks: no second `[N, V]` tensor but the gradient.

    Autograd through log_softmax and an entropy would hold four. First derivatives only.
    """

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx, logits: Tensor, targets: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        selected = torch.empty(logits.shape[0], dtype=dtype, device=logits.device)
        entropy = torch.empty_like(selected)
        for rows in _row_chunks(logits):
            logp = _log_softmax(logits[rows], temperature)
            selected[rows] = logp.gather(1, targets[rows, None]).squeeze(1)
            entropy[rows] = -logp.exp().mul_(logp).sum(1)
        ctx.save_for_backward(logits, targets, entropy)
        ctx.set_materialize_grads(False)
        ctx.temperature = temperature  # type: ignore[attr-defined]  # torch types the context without its free slots
        return selected, entropy

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad_selected: Tensor | None, grad_entropy: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        if grad_selected is None and grad_entropy is None:
            return None, None, None
        logits, targets, entropy = ctx.saved_tensors  # type: ignore[attr-defined]  # set by torch at run time
        temperature: float = ctx.temperature  # type: ignore[attr-defined]  # set in forward
        grad = torch.empty_like(logits)
        for rows in _row_chunks(logits):
            logp = _log_softmax(logits[rows], temperature)
            p = logp.exp()
            # d log p_i / dz_j = [i = j] - p_j  and  dH / dz_j = -p_j (log p_j + H), with z = logits / temperature.
            dz = torch.zeros_like(p)
            if grad_entropy is not None:
                dz = logp.add_(entropy[rows, None]).mul_(p).mul_(-grad_entropy[rows, None])
            if grad_selected is not None:
                dz.addcmul_(p, grad_selected[rows, None], value=-1.0)
                dz.scatter_add_(1, targets[rows, None], grad_selected[rows, None])
            grad[rows] = dz.div_(temperature)
        return grad, None, None


def _row_chunks(logits: Tensor) -> list[slice]:
    step = max(1, CHUNK_ELEMENTS // max(1, logits.shape[1]))
    return [slice(start, start + step) for start in range(0, logits.shape[0], step)]


def _log_softmax(logits: Tensor, temperature: float) -> Tensor:
    logp = torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature, 1)
    # A forbidden token has logit -inf; 0 * -inf would make the entropy NaN where 0 * finite is 0.
    return logp.clamp_(min=torch.finfo(logp.dtype).min)


def selected_logprobs_and_entropy(
    logits: Float[Tensor, "N V"], targets: Int[Tensor, " N"], temperature: float
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """The log-probability of each target and the entropy of each row (nats), under softmax(logits / temperature).

    Both are computed in float32 whatever the dtype of `logits` is, and both carry gradients (first derivatives only).
    Besides `logits` the forward pass needs one chunk of rows, the backward pass one chunk and the gradient; an entropy
    that the loss does not use costs nothing in the backward pass. A temperature of 0 or less is a `ValueError`.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    selected, entropy = _SelectedLogprobs.apply(logits, targets, temperature)  # type: ignore[no-untyped-call]  # torch
    return selected, entropy


def k1(logprobs: Float[Tensor, "B T"], ref_logprobs: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """log p - log q per token (nats): unbiased for KL(p || q), may be negative (Schulman 2020, "Approximating KL").

    Fit for a reward. As a loss its expected gradient is zero.
    """
    return logprobs.float() - ref_logprobs.float()


def k2(logprobs: Float[Tensor, "B T"], ref_logprobs: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """(log p - log q)^2 / 2 per token (nats): biased as a value, but its expected gradient is that of KL(p || q)."""
    return 0.5 * k1(logprobs, ref_logprobs).square()


def k3(logprobs: Float[Tensor, "B T"], ref_logprobs: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """q/p - 1 - log(q/p) per token (nats): unbiased for KL(p || q) and never negative. Fit for monitoring."""
    log_ratio = -k1(logprobs, ref_logprobs)
    return torch.expm1(log_ratio) - log_ratio


def kl_loss(
    logprobs: Float[Tensor, "B T"], ref_logprobs: Float[Tensor, "B T"], estimator: Literal["k1", "k2", "k3"]
) -> Float[Tensor, "B T"]:
    """The KL penalty per token of a loss (nats): its gradient is that of k2, whose mean is the gradient of the KL.

    `k3` shows the value of k3, which is never negative and unbiased, with that gradient: its own is that of the
    reverse divergence, KL(q || p). `k1` is a `ValueError`: the mean of its gradient is 0.
    """
    if estimator == "k1":
        raise ValueError("k1 cannot be a loss: the mean of its gradient is 0")
    penalty = k2(logprobs, ref_logprobs)
    if estimator == "k3":
        penalty = k3(logprobs, ref_logprobs).detach() + penalty - penalty.detach()
    return penalty


@torch.no_grad()
def full_kl(logits: Float[Tensor, "N V"], ref_logits: Float[Tensor, "N V"]) -> Float[Tensor, " N"]:
    """The exact KL(policy || reference) of two next-token distributions, nats, float32; no sampling noise."""
    logp = torch.log_softmax(logits.float(), dim=-1)
    return (logp.exp() * (logp - torch.log_softmax(ref_logits.float(), dim=-1))).sum(dim=-1)


def gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    mask: Bool[Tensor, "B T"],
    gamma: float,
    lam: float,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Advantages and lambda-returns over the action tokens `mask` (Schulman et al. 2016, arXiv 1506.02438, eq. 16).

    The action tokens of a row form one episode, whatever lies between them: at the other tokens (padding, a user's
    turn, a tool's output) the next value and the running sum are carried on unchanged, neither discounted nor read.
    The value after the last action token is 0. Both results are 0 outside the mask, and carry no gradient.
    """
    rewards, values = torch.where(mask, rewards, 0.0), torch.where(mask, values, 0.0)
    advantages = torch.zeros_like(values)
    next_value = torch.zeros_like(values[:, 0])
    running = torch.zeros_like(next_value)
    for t in range(values.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        running = torch.where(mask[:, t], delta + gamma * lam * running, running)
        next_value = torch.where(mask[:, t], values[:, t], next_value)
        advantages[:, t] = torch.where(mask[:, t], running, 0.0)
    return advantages, torch.where(mask, advantages + values, 0.0)


def place_reward(rewards: Float[Tensor, " B"], response_mask: Bool[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """Each row's reward on its last action token, 0 elsewhere; a `ValueError` names the rows without one."""
    empty = (~response_mask.any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"the reward has nowhere to go: row(s) {empty} of the batch have no response token")
    last = response_mask.shape[1] - 1 - response_mask.flip(1).int().argmax(1)
    placed = torch.zeros(response_mask.shape, dtype=rewards.dtype, device=rewards.device)
    return placed.scatter_(1, last[:, None], rewards[:, None])


def log_ratio(logprobs: Float[Tensor, "B T"], old_logprobs: Float[Tensor, "B T"]) -> Float[Tensor, "B T"]:
    """log(p / p_old) per token in float32, bounded to +-20."""
    return (logprobs.float() - old_logprobs.float()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def clipped_policy_loss(
    logprobs: Float[Tensor, "B T"],
    old_logprobs: Float[Tensor, "B T"],
    advantages: Float[Tensor, "B T"],
    clip_range: float | None,
    dual_clip: float | None,
    clip_range_high: float | None = None,
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """The per-token clipped surrogate, negated, and where a clip cut the gradient (Schulman et al. 2017, eq. 7).

    Without a `clip_range` nothing is clipped; `clip_range_high` replaces it upwards (clip-higher; Yu et al. 2025, arXiv
    2503.14476, eq. 10). `dual_clip` c > 1 bounds the loss of a token with a negative advantage A to c * |A| (Ye et al.
    2020, arXiv 1912.09729, eq. 5); None leaves it unbounded.
    """
    ratio = torch.exp(log_ratio(logprobs, old_logprobs))
    unclipped = -advantages * ratio
    if clip_range is None:
        return unclipped, torch.zeros_like(unclipped, dtype=torch.bool)
    bounded = -advantages * ratio.clamp(1 - clip_range, 1 + (clip_range_high or clip_range))
    loss, clipped = torch.maximum(unclipped, bounded), bounded > unclipped
    if dual_clip is not None:
        ceiling = -dual_clip * advantages
        over = (advantages < 0) & (loss > ceiling)
        loss, clipped = torch.where(over, ceiling, loss), clipped | over
    return loss, clipped


def clipped_value_loss(
    values: Float[Tensor, "B T"],
    old_values: Float[Tensor, "B T"],
    returns: Float[Tensor, "B T"],
    clip_range: float | None,
) -> tuple[Float[Tensor, "B T"], Bool[Tensor, "B T"]]:
    """Half the squared error per token, and where the clip is active.

    With a `clip_range` the larger of the errors of `values` and of `values` held within `clip_range` of `old_values`
    (the value clipping of OpenAI's PPO; Engstrom et al. 2020, arXiv 2005.12729, section 3); None: the plain error.
    """
    error = (values.float() - returns).square()
    if clip_range is None:
        return 0.5 * error, torch.zeros_like(error, dtype=torch.bool)
    moved = values.float() - old_values
    # Inside the range `held` differs from `values` by rounding alone, which must not count as clipping.
    held = torch.where(moved.abs() > clip_range, old_values + moved.clamp(-clip_range, clip_range), values.float())
    held_error = (held - returns).square()
    return 0.5 * torch.maximum(error, held_error), held_error > error


@torch.no_grad()
def explained_variance(
    values: Float[Tensor, "B T"], returns: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """1 - Var(returns - values) / Var(returns) over the mask: 1 is a perfect critic, 0 one that knows only the mean.

    NaN where it is undefined: fewer than two entries, or returns that are all equal.
    """
    picked, errors = returns[mask].double(), (returns - values)[mask].double()
    if picked.numel() < 2 or bool((picked == picked[0]).all()):
        return torch.tensor(float("nan"), device=returns.device)
    return (1 - errors.var() / picked.var()).float()
