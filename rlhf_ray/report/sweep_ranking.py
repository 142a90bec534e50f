"""Configurations of a sweep over their seeds, best first, and those that no other one beats in everything."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlhf_ray.report.facts import number
from rlhf_ray.report.sweep_statistics import Mean, mean_of, pareto_front
from rlhf_ray.report.sweep_trials import Parameter, Plan, State, SweepFiles, Trial, read_files

_ORDER: tuple[State, ...] = ("finished", "stopped", "running", "failed")


@dataclass(frozen=True, slots=True, eq=False)
class Configuration:
    """The trials of one combination of values."""

    values: Mapping[str, object]
    trials: list[Trial]
    wanted: list[int]
    """The seeds that it was to be run with."""

    @property
    def by_seed(self) -> dict[int, float]:
        """The metric of each seed that finished. A combination that was drawn twice gives the same run twice, which is
        one observation: their mean."""
        found: dict[int, list[float]] = {}
        for trial in self.trials:
            if trial.state == "finished" and trial.value is not None:
                found.setdefault(trial.seed, []).append(trial.value)
        return {seed: float(np.mean(found[seed])) for seed in sorted(found)}

    @property
    def complete(self) -> bool:
        """Whether every seed finished and reported the metric."""
        return set(self.wanted) <= self.by_seed.keys()

    @property
    def mean(self) -> Mean | None:
        """Of the metric over the seeds that finished, with the t interval over them; None if none did."""
        values = list(self.by_seed.values())
        return mean_of(values) if values else None

    @property
    def reached(self) -> float | None:
        """What the metric was when those that did not finish ended: the mean of their last values."""
        return _mean([trial.reached for trial in self._unfinished])

    @property
    def steps(self) -> list[int]:
        """The steps that those that did not finish reached, lowest first."""
        return sorted({trial.step for trial in self._unfinished if trial.step is not None})

    @property
    def kl(self) -> float | None:
        """Mean over the trials that finished, or over all if none did, in `Plan.kl_unit`."""
        return _mean([trial.kl for trial in self._representative])

    @property
    def length(self) -> float | None:
        """Tokens of an answer; a mean like `kl`."""
        return _mean([trial.length for trial in self._representative])

    @property
    def state(self) -> State:
        """`finished` if all its seeds did; else the worst that happened to one of them."""
        if set(self.wanted) <= {trial.seed for trial in self.trials if trial.state == "finished"}:
            return "finished"
        states = {trial.state for trial in self.trials}
        return next((state for state in ("failed", "stopped") if state in states), "running")

    @property
    def error(self) -> str | None:
        """Why the first trial that failed did."""
        return next((trial.error for trial in self.trials if trial.state == "failed" and trial.error), None)

    def count(self, state: State) -> int:
        """How many of its trials are in this state."""
        return sum(trial.state == state for trial in self.trials)

    @property
    def _unfinished(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.state != "finished"]

    @property
    def _representative(self) -> list[Trial]:
        return [trial for trial in self.trials if trial.state == "finished"] or self.trials


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep as it is now. `configurations` are complete ones by their mean, best first; then those that were stopped,
    furthest first; those that are under way; and those that failed."""

    files: SweepFiles
    configurations: list[Configuration]

    @property
    def plan(self) -> Plan:
        """What was asked for."""
        return self.files.plan

    @property
    def trials(self) -> list[Trial]:
        """In the order of their numbers."""
        return self.files.trials

    @property
    def complete(self) -> list[Configuration]:
        """Best first."""
        return [configuration for configuration in self.configurations if configuration.complete]

    @property
    def unreported(self) -> bool:
        """Whether trials finished and none has reported the metric: it may be misspelt."""
        finished = any(trial.state == "finished" for trial in self.trials)
        return finished and all(trial.reached is None for trial in self.trials)

    @property
    def reported(self) -> list[str]:
        """The names of all numbers that trials reported."""
        return sorted(set().union(*(trial.reported for trial in self.trials)))

    def numbers(self, parameter: Parameter) -> list[float] | None:
        """The parameter's value in each configuration if all are numbers, else None: it has no order then."""
        found = [number(configuration.values, parameter.name) for configuration in self.configurations]
        values = [value for value in found if value is not None]
        return values if values and len(values) == len(found) else None

    @property
    def front(self) -> list[Configuration]:
        """Complete configurations that no other one beats: none is as good in metric, KL (low is good) and length (low
        is good) and better in one. Best metric first; empty where KL is not known. What is not known of all does not
        count, except that a configuration without KL is left out."""
        rated = [configuration for configuration in self.complete if configuration.kl is not None]
        if not rated:
            return []
        with_length = all(configuration.length is not None for configuration in rated)
        points = [_objectives(configuration, self.plan.sign, with_length) for configuration in rated]
        kept = pareto_front(np.array(points))
        return [configuration for configuration, on_front in zip(rated, kept, strict=True) if on_front]


def read_sweep(path: Path) -> Sweep:
    """Reads the sweep in the folder `path`, finished or not, and ranks its configurations.

    A `UserError` says cause and fix for a folder that holds no sweep, and for a file that is broken.
    """
    files = read_files(path)
    groups: dict[str, list[Trial]] = {}
    for trial in files.trials:
        groups.setdefault(json.dumps(trial.values, sort_keys=True), []).append(trial)
    found = [Configuration(group[0].values, group, files.plan.seeds) for group in groups.values()]
    return Sweep(files, ranked(found, files.plan.sign))


def ranked(configurations: Sequence[Configuration], sign: int) -> list[Configuration]:
    """In the order of `Sweep.configurations`; of equal ones that with the lower KL is first. Of those that were stopped
    the ones that came furthest are first, because values at different steps cannot be compared."""

    def key(configuration: Configuration) -> tuple[bool, int, float, float, float]:
        complete, mean = configuration.complete, configuration.mean
        value = configuration.reached if mean is None else mean.value
        step = 0 if complete else max(configuration.steps, default=0)
        worth = math.inf if value is None else -sign * value
        kl = math.inf if configuration.kl is None else configuration.kl
        return not complete, _ORDER.index(configuration.state), -step, worth, kl

    return sorted(configurations, key=key)


def _objectives(configuration: Configuration, sign: int, with_length: bool) -> list[float]:
    """All to be as high as possible."""
    assert configuration.mean is not None and configuration.kl is not None  # it is complete, and `front` has looked
    length = configuration.length if with_length else None
    return [sign * configuration.mean.value, -configuration.kl, 0.0 if length is None else -length]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
