"""Human feedback from files, of every shape, as evidence. The config; the reader is built on `files` and `shapes`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from rlhf_ray.strict import Strict


class FeedbackConfig(Strict):
    """Where feedback comes from, how much of it is held out, and what happens to rows that cannot be used."""

    path: str
    """`demo`, a file (.jsonl, .json, .csv, .parquet, each also .gz where that makes sense), a folder, or a hub id."""
    split: str = "train"
    """The split of a hub data set."""
    heldout_path: str | None = None
    """A file of its own for evaluation; null holds out whole prompts of `path`."""
    heldout_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.15
    limit: PositiveInt | None = None
    """Read the first rows only."""
    max_tokens: PositiveInt = 256
    """Of prompt and answer together; longer conversations lose their beginning."""
    on_bad_row: Literal["error", "drop"] = "error"
    """`drop` counts and reports the rows that cannot be used instead of stopping."""
    rating_scale: tuple[float, float] = (1.0, 5.0)
    rating_step: PositiveFloat = 1.0
    """Ratings lie on `low, low + step, ..., high`."""

    @model_validator(mode="after")
    def _scale(self) -> FeedbackConfig:
        low, high = self.rating_scale
        if low >= high:
            raise ValueError(f"rating_scale = [{low:g}, {high:g}]: the first number must be the lower one")
        if abs((high - low) / self.rating_step - round((high - low) / self.rating_step)) > 1e-6:
            raise ValueError(f"rating_step = {self.rating_step:g} does not divide rating_scale = [{low:g}, {high:g}]")
        return self
