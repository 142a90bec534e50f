"""The coefficient of the KL penalty, fixed or steered to a target."""

from __future__ import annotations

import math
from collections.abc import Mapping

MAX_ERROR = 0.2


class KLController:
    """The KL coefficient; proportional control towards `target` (Ziegler et al. 2019, arXiv 1909.08593, section 2.2).

    `target` is in nats per sequence: k1 summed over a response's tokens, averaged over responses. None keeps the
    coefficient fixed. `horizon` counts sequences. The coefficient is the only state.
    """

    def __init__(self, coef: float, target: float | None, horizon: int) -> None:
        self.coef = coef
        self._target = target
        self._horizon = horizon

    def update(self, kl_per_sequence: float, num_sequences: int) -> None:
        """Multiplies the coefficient by 1 + clip(kl / target - 1, -0.2, 0.2) * num_sequences / horizon.

        A KL that is not finite is a `ValueError`, and so are five horizons of sequences in one update: the
        coefficient could then reach 0 or below and never come back.
        """
        if self._target is None:
            return
        if not math.isfinite(kl_per_sequence):
            raise ValueError(f"the KL to the reference is {kl_per_sequence}: a log-probability is not finite")
        if MAX_ERROR * num_sequences >= self._horizon:
            raise ValueError(
                f"algorithm.kl_horizon = {self._horizon} is too short for {num_sequences} rollouts a step: "
                f"it must be larger than {MAX_ERROR * num_sequences:g}"
            )
        error = min(max(kl_per_sequence / self._target - 1.0, -MAX_ERROR), MAX_ERROR)
        self.coef *= 1.0 + error * num_sequences / self._horizon

    def state_dict(self) -> dict[str, object]:
        """`{"coef": float}`, ready for JSON."""
        return {"coef": self.coef}

    def load_state_dict(self, state: object) -> None:
        """Takes the coefficient over from `state_dict()`, if it is steered: a fixed one is that of the config, which a
        fork may change. A `ValueError` if there is no non-negative number."""
        coef = state.get("coef") if isinstance(state, Mapping) else None
        if not isinstance(coef, int | float) or isinstance(coef, bool) or not 0 <= coef < math.inf:
            raise ValueError(f"the saved KL coefficient is {coef!r}, not a non-negative number")
        if self._target is not None:
            self.coef = float(coef)
