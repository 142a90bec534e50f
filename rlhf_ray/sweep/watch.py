"""The driver's eye on a sweep: a line for each trial, engines of those that died, a metric that nobody reports."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ray.tune import Callback, Stopper
from ray.tune.experiment import Trial
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from rlhf_ray.actors.shared import Shared
from rlhf_ray.sweep.plan import Plan

_watches: list[Watch] = []


class Watch(Callback, Stopper):
    """Hears of every report and every end of a trial, and ends a sweep that is in vain."""

    def __init__(self, plan: Plan, shared: Shared) -> None:
        _watches[:] = [self]
        self._plan, self._shared = plan, shared
        self._began: dict[str, float] = {}
        self._ended = 0
        self.complaint: str | None = None
        """Why the sweep as a whole is in vain."""
        console = Console(stderr=True, highlight=False)
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        self.view = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self.view.add_task("starting", total=None)

    def __reduce__(self) -> tuple[Callable[[], Watch], tuple[()]]:
        """Tune pickles its callbacks and puts the pickle in place of those that a restored sweep comes with; a terminal
        cannot be pickled, and the actors of the killed sweep are gone. So a copy is the one of this process."""
        return _current, ()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """No trial ends for what it reports: that is the scheduler's."""
        return False

    def stop_all(self) -> bool:
        """Whether no trial could be of use."""
        return self.complaint is not None

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Its time begins."""
        self._began[str(trial)] = time.monotonic()
        self.view.update(self._task, description=f"trial {trial}: starting ({self._ended} of {len(trials)} ended)")

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Shows the step."""
        told = f"trial {trial}: step {result.get('step', 0):g} ({self._ended} of {len(trials)} ended)"
        self.view.update(self._task, description=told)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial ended by itself or by the scheduler."""
        metric, result = self._plan.config.metric, trial.last_result or {}
        value = result.get(metric)
        if value is None and "seconds_total" in result:
            reported = ", ".join(sorted(key for key in result if "/" in key or key.startswith("heldout")))
            self.complaint = f"no trial reports metric = {metric}; what trial {trial} reported: {reported}"
        early = "" if "seconds_total" in result else f", ended early at step {result.get('step', 0):g}"
        shown = "no value" if value is None else f"{value:.4g}"
        self._line(trials, trial, f"{metric} {shown}{early}")

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial that failed; Tune may try it again."""
        self._line(trials, trial, f"failed: {_last_line(trial)}")

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A trial that failed and is tried again."""
        self._bury(trial)

    def _line(self, trials: list[Trial], trial: Trial, what: str) -> None:
        self._bury(trial)
        self._ended += 1
        seconds = time.monotonic() - self._began.get(str(trial), time.monotonic())
        values = ", ".join(f"{path} = {_short(trial.config.get(path))}" for path in self._plan.config.space)
        seed = self._plan.base.seed + int(trial.config.get("seed", trial.config.get("__trial_index__", 0)))
        self.view.console.print(
            f"trial {trial} ({values}, seed {seed}): {what} ({seconds:.0f} s)", markup=False, soft_wrap=True
        )

    def _bury(self, trial: Trial) -> None:
        """A trial that was killed cannot give the engines back."""
        if self._shared.lease is not None:
            self._shared.lease.bury.remote(str(trial))


def _current() -> Watch:
    return _watches[0]


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _last_line(trial: Trial) -> str:
    error = trial.get_error()
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else "no reason given"
