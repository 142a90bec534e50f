"""Numbers of a run as words: tiles, shares of time, intervals, durations. What is missing is said, not guessed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Values = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Tile:
    """One key figure: `label`, `value`, and a `note` that says how to read it."""

    label: str
    value: str
    note: str


@dataclass(frozen=True, slots=True)
class Share:
    """One phase's part of the time."""

    name: str
    seconds: str
    percent: float


def number(values: Values, key: str) -> float | None:
    """The finite number under `key`, or None."""
    value = values.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def interval(values: Values, key: str) -> tuple[float, float] | None:
    """The two finite numbers under `key`, or None."""
    raw = values.get(key)
    if not isinstance(raw, list | tuple) or len(raw) != 2:
        return None
    ends = {"low": raw[0], "high": raw[1]}
    low, high = number(ends, "low"), number(ends, "high")
    return None if low is None or high is None else (low, high)


def latest(records: Sequence[Values], key: str) -> float | None:
    """The last finite number under `key` in the records, or None."""
    return next((value for record in reversed(records) if (value := number(record, key)) is not None), None)


def figure(values: Values, label: str, key: str, form: Callable[[float], str], note: str) -> Tile | str:
    """The tile of the number under `key`, or what is missing."""
    value = number(values, key)
    return f"{label} ({key})" if value is None else Tile(label, form(value), note)


def change(values: Values, label: str, key: str, form: Callable[[float], str], note: str) -> Tile | str:
    """The tile of a figure before and after training, or what is missing."""
    first, last = number(values, f"{key}_before"), number(values, f"{key}_after")
    if first is None or last is None:
        return f"{label} ({key}_before, {key}_after)"
    return Tile(label, f"{form(first)} → {form(last)}", note)


def costs(summary: Values, note: str = "wall clock, start to end") -> list[Tile | str]:
    """Time and memory, which every kind of run has."""
    return [
        figure(summary, "Total time", "seconds_total", duration, note),
        figure(summary, "Peak memory", "peak_rss_gib", "{:.1f} GiB".format, "all processes together"),
    ]


def split(tiles: Sequence[Tile | str]) -> tuple[list[Tile], list[str]]:
    """The tiles, and the names of those that are missing."""
    return [tile for tile in tiles if isinstance(tile, Tile)], [tile for tile in tiles if isinstance(tile, str)]


def time_shares(summary: Values) -> list[Share]:
    """The phases of `seconds_by_phase`, longest first."""
    raw = summary.get("seconds_by_phase")
    if not isinstance(raw, Mapping):
        return []
    seconds = {str(name): value for name in raw if (value := number(raw, name)) is not None and value > 0}
    total = sum(seconds.values())
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return [Share(name, duration(value), 100 * value / total) for name, value in ordered]


def show(value: float, digits: int = 2, sign: bool = False) -> str:
    """`value` with a true minus sign, and a plus sign if asked."""
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    return text.replace("-", "\u2212")


def percent(value: float, digits: int = 1) -> str:
    """`71.3%`."""
    return f"{show(100 * value, digits)}%"


def span(ends: tuple[float, float] | None, form: Callable[[float], str]) -> str:
    """`95% interval 0.1 to 0.3`, or that it is not known."""
    return "95% interval not known" if ends is None else f"95% interval {form(ends[0])} to {form(ends[1])}"


def plural(count: float, thing: str) -> str:
    """`1 step`, `1,200 steps`."""
    return f"{count:,.0f} {thing}{'' if count == 1 else 's'}"


def duration(seconds: float) -> str:
    """`42 s`, `7 min 05 s` or `3 h 12 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def flatten(values: Values, prefix: str = "") -> list[tuple[str, str]]:
    """Nested facts as `(dotted name, text)` rows for a table."""
    rows: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += flatten(value, f"{prefix}{key}.")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            rows.append((prefix + key, ", ".join(map(str, value)) or "none"))
        else:
            rows.append((prefix + key, str(value)))
    return rows
