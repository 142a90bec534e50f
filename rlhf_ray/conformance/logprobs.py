"""Log-probabilities of next tokens. Logits are a row of V numbers, results are nats."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from rlhf_ray.conformance.comparison import Row

NextLogits = Callable[[list[int]], Row]
"""The V logits of the token that follows a list of token ids."""


def log_softmax(logits: Row, temperature: float = 1.0) -> list[float]:
    """log softmax(logits / temperature)."""
    top = max(logits) / temperature
    norm = math.log(sum(math.exp(z / temperature - top) for z in logits)) + top
    return [z / temperature - norm for z in logits]


def entropy(logits: Row, temperature: float = 1.0) -> float:
    """The entropy of softmax(logits / temperature), nats."""
    return -sum(math.exp(logp) * logp for logp in log_softmax(logits, temperature))


def top_p_log_softmax(logits: Row, temperature: float, top_p: float) -> list[float]:
    """The log-probabilities that top-p sampling draws from: the most likely tokens up to and including the one that
    brings their sum to `top_p`, renormalized; -inf for the others (Holtzman et al. 2020, arXiv 1904.09751).
    """
    logp = log_softmax(logits, temperature)
    order = sorted(range(len(logp)), key=lambda i: -logp[i])
    kept, total = [], 0.0
    for i in order:
        kept.append(i)
        total += math.exp(logp[i])
        if total >= top_p:
            break
    return [logp[i] - math.log(total) if i in kept else -math.inf for i in range(len(logp))]


def token_logprobs(
    tokens: Sequence[int], actions: Sequence[int], next_logits: NextLogits, temperature: float
) -> list[float]:
    """log p(token t | tokens before t) of each action token of one row, 0.0 elsewhere: one prefix at a time."""
    return [
        log_softmax(next_logits(list(tokens[:t])), temperature)[token] if acts else 0.0
        for t, (token, acts) in enumerate(zip(tokens, actions, strict=True))
    ]
