"""Preference pairs alone, as plain pairs of texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_ray.data.feedback import FeedbackConfig, draw_heldout
from rlhf_ray.data.files import raw_rows
from rlhf_ray.data.shapes import BadRow, parse, shape_of
from rlhf_ray.errors import UserError
from rlhf_ray.evidence import Pair
from rlhf_ray.types import Message


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two answers to one prompt, of which `chosen` is preferred."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str


def read_preferences(path: str | Path) -> list[PreferencePair]:
    """The pairs of a file, a folder, a hub id, or `demo`, in their order, without ties.

    Raises `UserError` naming the file, the first rows that are no preference (counted from 1) and what is wrong.
    """
    config = FeedbackConfig(path=str(path))
    pairs, problems, rows = [], [], 0
    for where, row in raw_rows(path):
        rows += 1
        try:
            items = parse(row, where, config)
            found = [item for item in items if isinstance(item, Pair)]
            if not found:
                raise BadRow(f"is of the shape {shape_of(row)}", "a pair needs chosen and rejected")
        except BadRow as error:
            problems.append(f"{where}: {error}")
        else:
            pairs += [PreferencePair(pair.prompt, pair.chosen, pair.rejected) for pair in found if not pair.tie]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise UserError(f"{path}, {'; '.join(problems[:3])}{more}. Mend or remove {len(problems)} of {rows} rows")
    if not pairs:
        raise UserError(f"data.path {path}: there is no preference pair in it")
    return pairs


def split_by_prompt(
    pairs: Sequence[PreferencePair], heldout_fraction: float, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """`(train, heldout)`: whole prompts are held out as `draw_heldout` says; pairs keep their order."""
    heldout = draw_heldout(Counter(pair.prompt for pair in pairs), heldout_fraction, seed)
    return [p for p in pairs if p.prompt not in heldout], [p for p in pairs if p.prompt in heldout]
