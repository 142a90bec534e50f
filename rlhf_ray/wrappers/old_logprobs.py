"""Old log-probs without a pass of their own: the engine's, while the learner agrees with them."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from rlhf_ray import metrics as names
from rlhf_ray.ports import Journal, Metrics, PolicyPort, Written
from rlhf_ray.sentinels import drift
from rlhf_ray.types import Batch


class ReusedLogprobs:
    """A policy port whose `logprobs` are the engine's as long as the last measured drift was at most `bound` (nats,
    mean over tokens). Both ways of a step measure it: the pass of the learner, or the first minibatch of the update.
    The first step asks the learner. After a drift above the bound it must fall to half of it before reuse resumes.
    """

    def __init__(self, policy: PolicyPort, bound: float, journal: Journal) -> None:
        self._policy, self._bound, self._journal = policy, bound, journal
        self._reusing = self._reused = False

    def logprobs(self, batch: Batch) -> Tensor:
        """`[B, T]`, of the policy that sampled."""
        self._reused = self._reusing
        if self._reused:
            return batch.rollout_logprobs
        logprobs = self._policy.logprobs(batch)
        self._measured(drift(batch.with_(old_logprobs=logprobs))[names.DRIFT_MEAN])
        return logprobs

    def update(self, batch: Batch, step: int, kl_coef: float) -> Metrics:
        """The learner's update; with reused log-probs its first ratio is the drift, and told as that."""
        metrics = self._policy.update(batch, step, kl_coef)
        if self._reused:
            metrics.pop(names.FIRST_RATIO, None)
            if names.FIRST_DRIFT in metrics:  # absent if no token counted
                metrics[names.DRIFT_MEAN] = metrics[names.FIRST_DRIFT]
                self._measured(metrics[names.DRIFT_MEAN])
        return metrics | {names.REUSED_LOGPROBS: float(self._reused)}

    def save(self, folder: Path) -> Written:
        """As the policy does."""
        return self._policy.save(folder)

    def committed(self, path: Path) -> None:
        """As the policy does."""
        self._policy.committed(path)

    def _measured(self, drift_mean: float) -> None:
        reusing = drift_mean <= (self._bound if self._reusing else self._bound / 2)  # NaN: no
        if reusing != self._reusing:
            who = "the engine's log-probs are used as they are" if reusing else "the learner recomputes log-probs"
            sentence = f"From the next step on {who}: engine and learner differ by {drift_mean:.2g} nats a token"
            self._journal.event("old_logprobs", f"{sentence} (bound {self._bound:g}).")
        self._reusing = reusing
