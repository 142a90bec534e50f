"""Always-on checks of things that must be true. A breach is an event with a plain sentence, and by config an abort."""

from __future__ import annotations

from rlhf_ray import metrics as names
from rlhf_ray.config import RunConfig
from rlhf_ray.errors import RunError
from rlhf_ray.ports import Journal, Metrics
from rlhf_ray.types import Batch, present


class Sentinels:
    """Checks each step's batch and metrics."""

    def __init__(self, config: RunConfig, journal: Journal) -> None:
        self._bounds, self._journal = config.sentinels, journal
        self._learners = tuple(config.learners)
        self._drift = float("inf") if config.train.max_lag else self._bounds.rollout_drift_mean  # stale by design
        # bfloat16 keeps 8 bits of a number, and kernels of other shapes round differently.
        low = config.model.dtype == "bfloat16" or config.policy.gpus_per_worker > 0
        self._first_ratio = self._bounds.first_ratio or (0.2 if low else 1e-3)
        self._reference_gap = self._bounds.reference_gap or (0.5 if low else 1e-3)

    def check_batch(self, step: int, batch: Batch) -> Metrics:
        """Before the update: engine against learner, and at step 1 policy against reference. Returns what it measured;
        `RunError` on a breach if the config says abort."""
        # Of the engine's own log-probs the update knows the drift: `wrappers/old_logprobs.py`.
        found = {} if batch.old_logprobs is batch.rollout_logprobs else drift(batch)
        if step == 1:
            old, ref = present(batch.old_logprobs, "old_logprobs"), present(batch.ref_logprobs, "ref_logprobs")
            found[names.REFERENCE_GAP] = float((old - ref)[batch.response_mask].abs().max())
        self._report(step, found)
        return found

    def check_update(self, step: int, metrics: Metrics) -> None:
        """After the update: the first ratio, missing gradients, skipped updates. `RunError` as above."""
        before = (names.DRIFT_MEAN, names.REFERENCE_GAP)  # `check_batch` or an event has said it
        self._report(step, {name: value for name, value in metrics.items() if name not in before})

    def _report(self, step: int, metrics: Metrics) -> None:
        for breach in self._breaches(metrics):
            self._journal.event("sentinel", f"Step {step}: {breach}", step=step)
            if self._bounds.on_breach == "abort":
                raise RunError(f"sentinel at step {step}: {breach}")

    def _breaches(self, metrics: Metrics) -> list[str]:
        said = []
        for name, bound, sentence in (
            (
                names.FIRST_RATIO,
                self._first_ratio,
                "before any update the policy already differs from its own old log-probs: the ratio is off by",
            ),
            (
                names.REFERENCE_GAP,
                self._reference_gap,
                "before any update the policy and the reference disagree: their log-probs differ by",
            ),
            (
                names.DRIFT_MEAN,
                self._drift,
                "vLLM and the learner disagree about the sampled tokens: their log-probs differ on average by",
            ),
        ):
            if not metrics.get(name, 0.0) <= bound:  # so that NaN is a breach
                said.append(f"{sentence} {metrics[name]:.2g}, the bound is {bound:.2g}")
        for role in self._learners:
            if missing := metrics.get(names.MISSING_GRADIENTS.format(role=role), 0.0):
                said.append(f"{missing:.0f} trainable parameters of the {role} got no gradient")
            if skipped := metrics.get(names.SKIPPED_UPDATES.format(role=role), 0.0):
                said.append(f"{skipped:.0f} updates of the {role} were skipped: a gradient was not finite")
        return said


def drift(batch: Batch) -> Metrics:
    """Mean and largest difference between the engine's and the learner's log-probs of the sampled tokens, in nats."""
    old = present(batch.old_logprobs, "old_logprobs")
    gap = (batch.rollout_logprobs - old)[batch.response_mask].abs()
    return {names.DRIFT_MEAN: float(gap.mean()), names.DRIFT_MAX: float(gap.max())}
