"""Beta of DPO as a controlled quantity: from the measured KL, or from the reward gap of the batch."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rlhf_ray import metrics as names
from rlhf_ray.ports import Metrics, State


class KLTarget:
    """Beta is multiplied by `exp(gain * error)`, by at most `max_change` either way in a step, where `error` is the KL
    predicted `horizon` steps ahead over its target, less 1; not at all within `band` of the target, and never out of
    `beta_range`.

    The prediction is Holt's: level and trend, each averaged exponentially over steps (Holt 1957). Ziegler et al. 2019
    (arXiv 1909.08593, section 2.2) multiply by the error of today alone; the KL of DPO goes on growing for as long as
    the optimizer's momentum does, so a controller that waits until the target is passed ends far above it.
    `tests/unit/test_adaptive_beta.py` shows both.
    """

    def __init__(
        self,
        beta: float,
        target_kl: float,
        gain: float,
        horizon: float,
        band: float,
        smoothing: float,
        max_change: float,
        beta_range: tuple[float, float],
    ) -> None:
        self.beta = beta
        self._target, self._gain, self._horizon, self._band = target_kl, gain, horizon, band
        self._smoothing, self._limit, self._range = smoothing, math.log(max_change), beta_range
        self._level: float | None = None
        self._trend = 0.0

    @property
    def kl(self) -> float | None:
        """The smoothed KL, nats per sequence; None before the first measurement."""
        return self._level

    def observe(self, kl: float) -> None:
        """One step's measured KL, nats per sequence."""
        if self._level is None:
            self._level = kl
        else:
            old, keep = self._level, self._smoothing
            self._level = keep * (old + self._trend) + (1 - keep) * kl
            self._trend = keep * self._trend + (1 - keep) * (self._level - old)
        error = (self._level + self._horizon * self._trend) / self._target - 1
        if abs(error) > self._band:
            self.beta *= math.exp(max(-self._limit, min(self._limit, self._gain * error)))
            self.beta = min(max(self.beta, self._range[0]), self._range[1])

    def metrics(self) -> Metrics:
        """Beta, and what it follows."""
        found = {names.BETA: self.beta, names.BETA_TARGET_KL: self._target}
        return found if self._level is None else {**found, names.BETA_KL: self._level}

    def state_dict(self) -> State:
        """JSON-able."""
        return {"beta": self.beta, "level": self._level, "trend": self._trend}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continues from `state_dict()`."""
        self.beta, self._trend = float(str(state["beta"])), float(str(state["trend"]))
        self._level = None if state["level"] is None else float(str(state["level"]))


class RewardGap:
    """Beta of a batch is `beta * (1 + alpha * (gap - running mean of gaps))`, within `beta_range`: pairs that are easy
    to tell apart pull less (Wu et al. 2024, beta-DPO, arXiv 2407.08639, equations 6 and 8)."""

    def __init__(self, beta: float, alpha: float, momentum: float, beta_range: tuple[float, float]) -> None:
        self._base, self._alpha, self._momentum, self._range = beta, alpha, momentum, beta_range
        self.beta = beta
        self._mean: float | None = None
        self._gap: float | None = None

    def observe(self, log_ratio_gap: float) -> None:
        """The batch's mean of `log(policy/reference)` of chosen minus that of rejected answers. Sets the batch's beta,
        then moves the running mean."""
        self._gap = gap = self._base * log_ratio_gap
        mean = gap if self._mean is None else self._mean
        low, high = self._range
        self.beta = min(max(self._base * (1 + self._alpha * (gap - mean)), low), high)
        self._mean = self._momentum * mean + (1 - self._momentum) * gap

    def metrics(self) -> Metrics:
        """Beta, and the gap that it follows."""
        return {names.BETA: self.beta} if self._gap is None else {names.BETA: self.beta, names.REWARD_GAP: self._gap}

    def state_dict(self) -> State:
        """JSON-able."""
        return {"beta": self.beta, "mean": self._mean}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continues from `state_dict()`."""
        self.beta = float(str(state["beta"]))
        self._mean = None if state["mean"] is None else float(str(state["mean"]))
