"""KL(policy || reference) and its gradient: exactly, by enumeration of a small vocabulary, and the estimators of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rlhf_ray.conformance.comparison import Row
from rlhf_ray.conformance.logprobs import log_softmax

Table = NDArray[np.float64]
"""`[V + 1, V]` logits of a policy whose next token depends on the last one only; row V is that of the first token."""


def kl_divergence(logits: Row, ref_logits: Row) -> float:
    """KL(softmax(logits) || softmax(ref_logits)) by enumeration, nats."""
    pairs = zip(log_softmax(logits), log_softmax(ref_logits), strict=True)
    return sum(math.exp(p) * (p - q) for p, q in pairs)


def kl_gradient(logits: Row, ref_logits: Row) -> list[float]:
    """d KL(p || q) / d logits of p, in closed form: p_j (log p_j/q_j - KL)."""
    kl = kl_divergence(logits, ref_logits)
    pairs = zip(log_softmax(logits), log_softmax(ref_logits), strict=True)
    return [math.exp(p) * (p - q - kl) for p, q in pairs]


def kl_estimate(logprob: float, ref_logprob: float, estimator: str) -> float:
    """`k1`, `k2` or `k3` of one sampled token (Schulman 2020, "Approximating KL divergence")."""
    ratio = math.exp(ref_logprob - logprob)
    known = {"k1": -math.log(ratio), "k2": math.log(ratio) ** 2 / 2, "k3": ratio - 1 - math.log(ratio)}
    return known[estimator]


def sequences(vocabulary: int, length: int) -> list[tuple[int, ...]]:
    """Every sequence of `length` tokens."""
    return list(itertools.product(range(vocabulary), repeat=length))


def sequence_logprobs(table: Table, sequence: Sequence[int]) -> list[float]:
    """log p of each token of `sequence` after those before it."""
    first = table.shape[1]
    return [log_softmax(table[last].tolist())[token] for last, token in itertools.pairwise([first, *sequence])]


def expected_return(table: Table, ref_table: Table, rewards: Row, length: int, coef: float) -> float:
    """E[reward - coef * log(p / q)] over all sequences; `rewards` in the order of `sequences`. With rewards 0 and
    coef 1 it is minus the KL of whole sequences."""
    total = 0.0
    for sequence, reward in zip(sequences(table.shape[1], length), rewards, strict=True):
        logp, ref = (math.fsum(sequence_logprobs(t, sequence)) for t in (table, ref_table))
        total += math.exp(logp) * (reward - coef * (logp - ref))
    return total


def expected_return_gradient(table: Table, ref_table: Table, rewards: Row, length: int, coef: float) -> Table:
    """Its gradient with respect to `table`, by central differences."""
    gradient, step = np.zeros_like(table), 1e-5
    for place in np.ndindex(*table.shape):
        ends = []
        for sign in (1, -1):
            moved = table.copy()
            moved[place] += sign * step
            ends.append(expected_return(moved, ref_table, rewards, length, coef))
        gradient[place] = (ends[0] - ends[1]) / (2 * step)
    return gradient
