"""Numbers about generated text: diversity, perplexity, and the interval of a paired gain."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def distinct_n(token_ids: Sequence[Sequence[int]], n: int = 2) -> float:
    """Unique n-grams divided by all n-grams, pooled over the texts (Li et al. 2016, arXiv:1510.03055, section 5).

    1 means that no n-gram occurs twice; 0 means that there is no n-gram at all. n-grams do not cross texts.
    """
    if n < 1:
        raise ValueError(f"n = {n}: an n-gram has at least one token")
    ngrams = [tuple(text[start : start + n]) for text in token_ids for start in range(len(text) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def perplexity(logprobs: Sequence[Sequence[float]]) -> float:
    """`exp(-sum of log-probs / number of tokens)`, natural logarithms, pooled over the texts.

    Raises `ValueError` if there is no token. Infinite if the model is beyond what a float can hold.
    """
    count = sum(len(text) for text in logprobs)
    if count == 0:
        raise ValueError("the perplexity of no tokens is not defined")
    mean = -math.fsum(value for text in logprobs for value in text) / count
    return math.exp(mean) if mean < 700 else math.inf


def paired_bootstrap(
    before: Sequence[float], after: Sequence[float], seed: int, samples: int = 10_000
) -> tuple[float, tuple[float, float]]:
    """The mean gain `after - before`, and its 95 % percentile bootstrap interval (Efron & Tibshirani 1993, ch. 13).

    `before[i]` and `after[i]` belong to the same prompt; prompts are resampled. Average several samples of one prompt
    first. Raises `ValueError` if the lengths differ, if there is nothing, or if a value is not finite.
    """
    if len(before) != len(after) or not before:
        raise ValueError(f"{len(before)} values before and {len(after)} after cannot be paired")
    gains = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    if not np.isfinite(gains).all():
        raise ValueError("a reward is not a finite number; leave quarantined prompts out on both sides")
    random = np.random.default_rng(seed)
    means = np.array([gains[random.integers(0, len(gains), len(gains))].mean() for _ in range(samples)])
    low, high = np.percentile(means, [2.5, 97.5])
    return float(gains.mean()), (float(low), float(high))
