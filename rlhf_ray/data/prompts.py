"""Prompts from a JSONL or Parquet file, the package's own rows, or a hub id."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from rlhf_ray.strict import Strict


class PromptsConfig(Strict):
    """Where prompts come from."""

    path: str
    """A .jsonl, .jsonl.gz or .parquet file, `demo` (the package's own), or a hub id."""
    heldout_path: str | None = None
    """Held-out prompts for `train.eval_prompts`; null: the last ones of `path` are held out."""
    split: str = "train"
    """The split of a hub data set."""
    limit: PositiveInt | None = None
    max_prompt_tokens: PositiveInt = 256
    overlong: Literal["error", "drop", "truncate"] = "error"
    """A prompt over the limit: an error that counts them, or dropped, or cut on the left; the count is printed."""
    system: Annotated[str, Field(max_length=4000)] | None = None
    """A system message put before every prompt that has none."""
