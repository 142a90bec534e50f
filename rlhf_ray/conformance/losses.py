"""Losses of tokens, answers and pairs, and how losses of tokens become one number."""

from __future__ import annotations

import math

from rlhf_ray.conformance.comparison import Row, Rows


def policy_token_loss(logprob: float, old: float, advantage: float, clip: float, dual_clip: float | None) -> float:
    """Minus the clipped surrogate objective of one token, case by case."""
    ratio = math.exp(logprob - old)
    if advantage >= 0:
        return -min(ratio, 1 + clip) * advantage
    capped = max(ratio, 1 - clip)
    if dual_clip is not None:
        capped = min(capped, dual_clip)
    return -capped * advantage


def policy_token_gradient(logprob: float, old: float, advantage: float, clip: float, dual_clip: float | None) -> float:
    """Its derivative with respect to the log-probability: 0 where a clip holds the loss constant."""
    ratio = math.exp(logprob - old)
    held = ratio > 1 + clip if advantage >= 0 else ratio < 1 - clip or (dual_clip is not None and ratio > dual_clip)
    return 0.0 if held else -ratio * advantage


def sequence_policy_loss(logprobs: Row, old: Row, advantage: float, low: float, high: float) -> float:
    """GSPO's loss of one answer from its action tokens (Zheng et al. 2025, arXiv 2507.18071, eq. 5 and 7)."""
    ratio = math.exp(sum(p - q for p, q in zip(logprobs, old, strict=True)) / len(logprobs))
    return -min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)


def clipped_weight_gradient(logprob: float, old: float, advantage: float, low: float, high: float) -> float:
    """CISPO's derivative with respect to one log-probability: no token loses it (arXiv 2506.13585, eq. 4 and 5)."""
    return -min(max(math.exp(logprob - old), 1 - low), 1 + high) * advantage


def value_token_loss(value: float, old: float, target: float, clip: float | None) -> float:
    """Half the larger squared error of the value and of the value held near the old one."""
    errors = [(value - target) ** 2]
    if clip is not None:
        errors.append((min(max(value, old - clip), old + clip) - target) ** 2)
    return 0.5 * max(errors)


def pair_loss(chosen: float, rejected: float, beta: float, loss: str) -> float:
    """Of one pair, from log(policy / reference) of its answers: `sigmoid` (DPO, eq. 7), `hinge` (SLiC) or `ipo`."""
    delta = chosen - rejected
    if loss == "ipo":
        return (delta - 1 / (2 * beta)) ** 2
    if loss == "hinge":
        return max(0.0, 1 - beta * delta)
    return math.log1p(math.exp(-beta * delta)) if beta * delta > -700 else -beta * delta


def smoothed_pair_loss(chosen: float, rejected: float, beta: float, smoothing: float) -> float:
    """Conservative DPO: the label is wrong with probability `smoothing` (Mitchell 2023, eq. 3)."""
    right, wrong = pair_loss(chosen, rejected, beta, "sigmoid"), pair_loss(rejected, chosen, beta, "sigmoid")
    return (1 - smoothing) * right + smoothing * wrong


def answer_log_ratio(logprobs: Row, ref_logprobs: Row, mask: Row, loss: str) -> float:
    """log(policy / reference) of one answer: the sum over its tokens, for `ipo` the mean."""
    picked = [p - q for p, q, keep in zip(logprobs, ref_logprobs, mask, strict=True) if keep]
    return math.fsum(picked) / (len(picked) if loss == "ipo" else 1)


def token_mean(losses: Rows, mask: Rows) -> float:
    """The mean over the masked tokens of all rows; 0.0 if there are none."""
    picked = [x for xs, keep in zip(losses, mask, strict=True) for x, k in zip(xs, keep, strict=True) if k]
    return sum(picked) / len(picked) if picked else 0.0


def aggregated(losses: Rows, mask: Rows, how: str, length: int) -> float:
    """`token_mean` (DAPO), or the mean over answers with a token of the sum (`sequence_mean`), the mean
    (`length_normalised`, GRPO) or the sum over `length` (`constant`, Dr. GRPO) of their tokens' losses."""
    if how == "token_mean":
        return token_mean(losses, mask)
    answers = [[x for x, k in zip(xs, keep, strict=True) if k] for xs, keep in zip(losses, mask, strict=True)]
    answers = [answer for answer in answers if answer]
    sizes = {"sequence_mean": [1] * len(answers), "length_normalised": list(map(len, answers))}
    each = [math.fsum(x) / size for x, size in zip(answers, sizes.get(how, [length] * len(answers)), strict=True)]
    return math.fsum(each) / len(each) if each else 0.0


def importance_weights(old: Row, engine: Row, level: str, cap: float) -> list[float]:
    """min(p_old / p_engine, cap) of each action token of one answer, or of the answer as a whole (Ionides 2008)."""
    ratios = [math.exp(p - q) for p, q in zip(old, engine, strict=True)]
    if level == "sequence":
        ratios = [math.prod(ratios)] * len(ratios)
    return [min(ratio, cap) for ratio in ratios]
