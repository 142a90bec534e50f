"""What people say about answers, as probabilities given the answers' scores. Losses are their negative logarithms."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlhf_ray.conformance.comparison import Row


def comparison_probabilities(first: float, second: float, margin: float, nu: float) -> tuple[float, float, float]:
    """p(first wins), p(second wins), p(tie) from the strengths of both (Davidson 1970); nu = 0 is Bradley-Terry.

    The `margin` by which the first was said to be better makes its strength count for less (Touvron et al. 2023).
    """
    strengths = math.exp(first - margin), math.exp(second)
    tie = nu * math.sqrt(strengths[0] * strengths[1])
    total = sum(strengths) + tie
    return strengths[0] / total, strengths[1] / total, tie / total


def ranking_probability(scores: Row, ranks: Sequence[int]) -> float:
    """p(ranking): each answer, best first, is drawn from itself and all that are ranked below it, with probability
    proportional to exp(score) (Luce 1959; Plackett 1975). Answers of equal rank do not compete with each other."""
    probability = 1.0
    for i, rank in enumerate(ranks):
        below = [scores[j] for j in range(len(ranks)) if ranks[j] > rank]
        probability *= math.exp(scores[i]) / (math.exp(scores[i]) + sum(map(math.exp, below)))
    return probability


def level_probability(score: float, level: int, thresholds: Row) -> float:
    """p(level) as the difference of p(level <= k) = sigmoid(thresholds[k] - score) (McCullagh 1980)."""
    below = [0.0, *(1 / (1 + math.exp(score - threshold)) for threshold in thresholds), 1.0]
    return below[level + 1] - below[level]


def thumb_probability(score: float, good: bool, bias: float) -> float:
    """p(thumb): sigmoid(score + bias) is the probability of a good one."""
    up = 1 / (1 + math.exp(-score - bias))
    return up if good else 1 - up
