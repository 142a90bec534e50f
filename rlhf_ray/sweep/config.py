"""A sweep file: a recipe, what varies in it, what counts as better, and how much may be spent."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from rlhf_ray.config.common import Name
from rlhf_ray.strict import Strict

Value = bool | int | float | str | None
Mode = Literal["max", "min"]


class Distribution(Strict):
    """What one value may be; exactly one of these is given."""

    grid: Annotated[tuple[Value, ...], Field(min_length=1)] | None = None
    """Every one of these, with every combination of other grids."""
    choice: Annotated[tuple[Value, ...], Field(min_length=1)] | None = None
    """Drawn from these."""
    uniform: tuple[float, float] | None = None
    log_uniform: tuple[PositiveFloat, PositiveFloat] | None = None
    """Drawn so that its logarithm is uniform."""
    integer: tuple[int, int] | None = None
    """A whole number, both ends included."""

    @model_validator(mode="after")
    def _one(self) -> Distribution:
        if len(self.model_fields_set) != 1:
            raise ValueError(f"give exactly one of {', '.join(type(self).model_fields)}")
        if self.values is not None and len(set(map(repr, self.values))) < len(self.values):
            raise ValueError(f"{self.type} names a value twice")
        if self.values is None and not self.ends[0] < self.ends[1]:
            raise ValueError(f"{self.type} = {list(self.ends)} is empty: the first end must be below the second")
        return self

    @property
    def type(self) -> str:
        """Which one it is."""
        return next(iter(self.model_fields_set))

    @property
    def values(self) -> tuple[Value, ...] | None:
        """All that it may be, or None for a range."""
        return self.grid or self.choice

    @property
    def ends(self) -> tuple[float, float]:
        """Of a range."""
        ends = self.uniform or self.log_uniform or self.integer
        assert ends is not None  # `_one` has seen to it
        return ends


class ASHAConfig(Strict):
    """Asynchronous successive halving: at each rung, only the best go on (Li et al. 2018, arXiv 1810.05934)."""

    type: Literal["asha"]
    metric: str | None = None
    """What trials are stopped by, reported while training; null: the sweep's metric."""
    mode: Mode | None = None
    grace: PositiveInt = 1
    """No trial ends before this step."""
    factor: Annotated[int, Field(ge=2)] = 3
    """One in so many goes on at each rung; rungs are this factor apart."""


class MedianConfig(Strict):
    """A trial ends when its best is worse than the median of the others' averages so far (Golovin et al. 2017)."""

    type: Literal["median"]
    metric: str | None = None
    mode: Mode | None = None
    grace: PositiveInt = 1
    min_trials: PositiveInt = 3
    """No trial ends before so many have reached its step."""


class PBTConfig(Strict):
    """Population based training: the worst trials take weights and values of the best, and change the values
    (Jaderberg et al. 2017, arXiv 1711.09846). A trial then has no value of its own but a schedule."""

    type: Literal["pbt"]
    metric: str | None = None
    mode: Mode | None = None
    every: PositiveInt = 2
    """Steps between two decisions; each is a commit."""
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """The share of trials that is replaced, and from which is copied."""


Scheduler = Annotated[ASHAConfig | MedianConfig | PBTConfig, Field(discriminator="type")]


class SweepConfig(Strict):
    """One sweep."""

    name: Name
    recipe: str
    """A bundled recipe, or a YAML file, which counts from the current directory."""
    set: dict[str, object] = Field(default_factory=dict)
    """Values laid over the recipe, by dotted path."""
    space: Annotated[dict[str, Distribution], Field(min_length=1)]
    """What varies, by dotted path."""
    metric: str
    """A figure of a trial's summary, or a name of its metrics.jsonl, whose last value then counts."""
    mode: Mode = "max"
    search: Literal["random", "optuna"] = "random"
    """How values are drawn: independently, or by Optuna's TPE, which learns from finished trials."""
    trials: PositiveInt = 1
    """Draws; each stands for one combination with every point of the grids."""
    seeds: PositiveInt = 1
    """Runs of every configuration, with the recipe's seed and those after it."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the draws."""
    scheduler: Scheduler | None = None
    """What ends trials early; null: nothing."""
    concurrent: PositiveInt = 1
    """Trials at the same time."""
    budget_minutes: PositiveFloat | None = None
    """After this no new trial starts, and those that run are ended."""

    @model_validator(mode="after")
    def _fits(self) -> SweepConfig:
        grids = [path for path, one in self.space.items() if one.grid is not None]
        if self.search == "optuna" and grids:
            raise ValueError(f"search = optuna draws values, so {grids[0]} cannot be a grid; make it a choice")
        if len(grids) == len(self.space) and self.trials > 1:
            raise ValueError("trials above 1 would repeat the same grid; for repetitions set seeds")
        if "seed" in self.space or "seed" in self.set:
            raise ValueError("the seed is no value to vary: set seeds, which every configuration is run with")
        if both := sorted(self.space.keys() & self.set.keys()):
            raise ValueError(f"{both[0]} is in `set` and in `space`; keep one")
        if isinstance(self.scheduler, PBTConfig):
            if grids or self.search == "optuna":
                raise ValueError("pbt changes values while training: give ranges or choices, and search = random")
            if self.trials < 2:
                raise ValueError("pbt needs a population: set trials to 4 or more")
        return self

    @property
    def early_metric(self) -> tuple[str, Mode]:
        """What the scheduler goes by, and its direction."""
        scheduler = self.scheduler
        if scheduler is None or scheduler.metric is None:
            return self.metric, self.mode
        return scheduler.metric, scheduler.mode or self.mode
