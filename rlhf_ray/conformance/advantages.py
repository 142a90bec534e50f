"""From rewards to returns and advantages. Rows are T numbers, masks T of 0/1; what lies outside a mask is not read."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rlhf_ray.conformance.comparison import Row


def placed_reward(reward: float, mask: Row) -> list[float]:
    """The reward of one row on its last action token, 0.0 elsewhere."""
    last = max(t for t, acts in enumerate(mask) if acts)
    return [reward if t == last else 0.0 for t in range(len(mask))]


def returns_to_go(rewards: Row, mask: Row, gamma: float) -> list[float]:
    """The discounted sum of rewards of one row from each action token on, counted in actions; 0.0 elsewhere."""
    actions = [t for t, acts in enumerate(mask) if acts]
    result = [0.0] * len(mask)
    for i, t in enumerate(actions):
        result[t] = sum(gamma**k * rewards[later] for k, later in enumerate(actions[i:]))
    return result


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


def group_advantages(rewards: Row, groups: Sequence[int], leave_one_out: bool, scale: bool) -> list[float]:
    """Each reward less its group's mean (or less the mean of the others), over the group's unbiased standard deviation
    with `scale`; 0.0 in a group of one answer or of equal rewards."""
    found = []
    for i, reward in enumerate(rewards):
        group = [rewards[j] for j in range(len(rewards)) if groups[j] == groups[i]]
        if len(group) < 2 or max(group) == min(group):
            found.append(0.0)
            continue
        mean = sum(group) / len(group)
        baseline = (sum(group) - reward) / (len(group) - 1) if leave_one_out else mean
        deviation = math.sqrt(sum((x - mean) ** 2 for x in group) / (len(group) - 1)) if scale else 1.0
        found.append((reward - baseline) / deviation)
    return found


def whitened(rows: Sequence[Row], mask: Sequence[Row]) -> list[list[float]]:
    """All numbers of the mask shifted and scaled to mean 0 and unbiased variance 1; 0.0 outside."""
    picked = [x for xs, keep in zip(rows, mask, strict=True) for x, k in zip(xs, keep, strict=True) if k]
    mean = math.fsum(picked) / len(picked)
    deviation = math.sqrt(math.fsum((x - mean) ** 2 for x in picked) / (len(picked) - 1))
    return [
        [(x - mean) / deviation if k else 0.0 for x, k in zip(xs, keep, strict=True)]
        for xs, keep in zip(rows, mask, strict=True)
    ]
