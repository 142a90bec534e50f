"""What a trial tells Ray Tune, step by step."""

from __future__ import annotations

from collections.abc import Mapping

from ray import tune

from rlhf_ray.ports import Metrics
from rlhf_ray.rundir.journal import RunDirectory


def report(record: Mapping[str, object], checkpoint: tune.Checkpoint | None = None) -> None:
    """The numbers of a line of metrics, or of a summary. Raises `SystemExit` if the scheduler ends the trial here."""
    numbers = {key: value for key, value in record.items() if isinstance(value, int | float)}
    tune.report(numbers, checkpoint=checkpoint)


class ReportingJournal(RunDirectory):
    """A run directory that also tells Tune each step, so that a trial ends in the step in which Tune says so."""

    last_step = 0
    """Of the trial in this process. It is told with the summary: who ends there has only the evaluation left."""

    def metrics(self, step: int, metrics: Metrics) -> None:
        """As the run directory does, then to Tune."""
        super().metrics(step, metrics)
        if step != self.last_step:
            report({"step": step, **metrics})
