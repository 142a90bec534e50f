"""Slow reference implementations from the definitions: plain Python loops over floats, nothing shared with the package.

Rows are lists of floats and masks lists of 0/1. Entries outside a mask are never read, so they may be NaN; results are
0.0 there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Row = Sequence[float]
Rows = Sequence[Row]


def lambda_returns(rewards: Row, values: Row, mask: Row, gamma: float, lam: float) -> list[float]:
    """The lambda-return of each action token of one row: the geometric mixture of its n-step returns, O(n^3).

    (Sutton & Barto 2018, eq. 12.3.) An n-step return adds n discounted rewards and the discounted value n actions
    later; the one that reaches the end of the row has no such value and takes all the remaining weight.
    """
    actions = [t for t, acts in enumerate(mask) if acts]
    result = [0.0] * len(mask)
    for i, t in enumerate(actions):
        left = len(actions) - i
        for n in range(1, left + 1):
            n_step = sum(gamma**k * rewards[actions[i + k]] for k in range(n))
            if n < left:
                n_step += gamma**n * values[actions[i + n]]
                result[t] += (1 - lam) * lam ** (n - 1) * n_step
            else:
                result[t] += lam ** (n - 1) * n_step
    return result


def advantages(rewards: Row, values: Row, mask: Row, gamma: float, lam: float) -> list[float]:
    """Generalized advantages of one row: lambda-return minus value."""
    returns = lambda_returns(rewards, values, mask, gamma, lam)
    return [ret - value if acts else 0.0 for ret, value, acts in zip(returns, values, mask, strict=True)]


def log_softmax(logits: Row, temperature: float = 1.0) -> list[float]:
    """log softmax(logits / temperature)."""
    top = max(logits) / temperature
    norm = math.log(sum(math.exp(z / temperature - top) for z in logits)) + top
    return [z / temperature - norm for z in logits]


def entropy(logits: Row, temperature: float = 1.0) -> float:
    """The entropy of softmax(logits / temperature), nats."""
    return -sum(math.exp(logp) * logp for logp in log_softmax(logits, temperature))


def kl_divergence(logits: Row, ref_logits: Row) -> float:
    """KL(softmax(logits) || softmax(ref_logits)) by enumeration, nats."""
    pairs = zip(log_softmax(logits), log_softmax(ref_logits), strict=True)
    return sum(math.exp(p) * (p - q) for p, q in pairs)


def kl_gradient(logits: Row, ref_logits: Row) -> list[float]:
    """d KL(p || q) / d logits of p, in closed form: p_j (log p_j/q_j - KL)."""
    kl = kl_divergence(logits, ref_logits)
    pairs = zip(log_softmax(logits), log_softmax(ref_logits), strict=True)
    return [math.exp(p) * (p - q - kl) for p, q in pairs]


def policy_token_loss(logprob: float, old: float, advantage: float, clip: float, dual_clip: float | None) -> float:
    """Minus the clipped surrogate objective of one token, case by case."""
    ratio = math.exp(logprob - old)
    if advantage >= 0:
        return -min(ratio, 1 + clip) * advantage
    capped = max(ratio, 1 - clip)
    if dual_clip is not None:
        capped = min(capped, dual_clip)
    return -capped * advantage


def value_token_loss(value: float, old: float, target: float, clip: float | None) -> float:
    """Half the larger squared error of the value and of the value held near the old one."""
    errors = [(value - target) ** 2]
    if clip is not None:
        errors.append((min(max(value, old - clip), old + clip) - target) ** 2)
    return 0.5 * max(errors)


def token_mean(losses: Rows, mask: Rows) -> float:
    """The mean over the masked tokens of all rows; 0.0 if there are none."""
    picked = [x for xs, keep in zip(losses, mask, strict=True) for x, k in zip(xs, keep, strict=True) if k]
    return sum(picked) / len(picked) if picked else 0.0


def adaptive_coefs(coef: float, target: float, horizon: int, kls: Row, num_sequences: int) -> list[float]:
    """The coefficient after each update, each from the start: coef * prod(1 + clip(kl/target - 1) n/horizon)."""
    factors = [1 + max(-0.2, min(0.2, kl / target - 1)) * num_sequences / horizon for kl in kls]
    return [coef * math.prod(factors[: i + 1]) for i in range(len(kls))]
