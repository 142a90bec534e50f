"""Beta of DPO as a controlled quantity: from the measured KL, or from the reward gap of the batch."""

from __future__ import annotations

from collections.abc import Mapping

from rlhf_ray import metrics as names
from rlhf_ray.ports import Metrics, State


class KLTarget:
    """Beta is multiplied up while the smoothed KL is above its target and down while it is below, by at most `gain` a
    step, not at all within `band` of the target, and never out of `beta_range`.

    The rule is that of Ziegler et al. 2019 (arXiv 1909.08593, section 2.2), applied to DPO's beta.
    """

    def __init__(
        self,
        beta: float,
        target_kl: float,
        gain: float,
        band: float,
        smoothing: float,
        beta_range: tuple[float, float],
    ) -> None:
        self.beta = beta
        self._target, self._gain, self._band = target_kl, gain, band
        self._smoothing, self._range = smoothing, beta_range
        self._kl: float | None = None

    @property
    def kl(self) -> float | None:
        """The smoothed KL, nats per sequence; None before the first measurement."""
        return self._kl

    def observe(self, kl: float) -> None:
        """One step's measured KL, nats per sequence."""
        before = kl if self._kl is None else self._kl
        self._kl = self._smoothing * before + (1 - self._smoothing) * kl
        error = self._kl / self._target - 1
        if abs(error) > self._band:
            self.beta *= 1 + self._gain * max(-1.0, min(1.0, error))
            self.beta = min(max(self.beta, self._range[0]), self._range[1])

    def metrics(self) -> Metrics:
        """Beta, and what it follows."""
        found = {names.BETA: self.beta, names.BETA_TARGET_KL: self._target}
        return found if self._kl is None else {**found, names.BETA_KL: self._kl}

    def state_dict(self) -> State:
        """JSON-able."""
        return {"beta": self.beta, "kl": self._kl}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Continues from `state_dict()`."""
        self.beta = float(str(state["beta"]))
        self._kl = None if state["kl"] is None else float(str(state["kl"]))


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
