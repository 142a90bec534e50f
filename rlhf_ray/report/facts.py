"""The sentences and numbers of the report page, from `summary.json`. What is missing is said, not guessed."""

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


def interval(summary: Values) -> tuple[float, float] | None:
    """The 95 % interval of the gain, or None."""
    raw = summary.get("reward_gain_ci95")
    if not isinstance(raw, list) or len(raw) != 2:
        return None
    ends = {"low": raw[0], "high": raw[1]}
    low, high = number(ends, "low"), number(ends, "high")
    return None if low is None or high is None else (low, high)


def headline(summary: Values, steps_recorded: int) -> str:
    """The result in one sentence; it claims a change only if the interval excludes zero."""
    before, after = number(summary, "reward_before"), number(summary, "reward_after")
    if before is None or after is None:
        return f"No held-out result yet: {steps_recorded} training step{'' if steps_recorded == 1 else 's'} recorded"
    gain = number(summary, "reward_gain")
    gain = after - before if gain is None else gain
    ends = interval(summary)
    change = f"from {show(before)} to {show(after)}"
    if ends is None:
        return f"Held-out reward went {change} ({show(gain, sign=True)}; the interval is not known)"
    low, high = ends
    span = f"95% interval {show(low)} to {show(high)}"
    if low > 0:
        return f"Held-out reward rose {change} ({show(gain, sign=True)}, {span})"
    if high < 0:
        return f"Held-out reward fell {change} ({show(gain, sign=True)}, {span})"
    return f"No clear change in held-out reward: {change} ({show(gain, sign=True)}, {span}, which includes zero)"


def tiles(summary: Values, steps_recorded: int) -> tuple[list[Tile], list[str]]:
    """The key figures, and the names of those that the run has not recorded."""
    steps, ends = number(summary, "steps"), interval(summary)
    sampled = f"sampled in {int(steps) if steps is not None else steps_recorded:,} training steps"
    span = "95% interval not known" if ends is None else f"95% interval {show(ends[0])} to {show(ends[1])}"
    tiles = [
        _figure(summary, "Held-out gain", "reward_gain", lambda x: show(x, sign=True), span),
        _figure(summary, "KL to reference", "kl_to_reference_per_token", lambda x: show(x, 3), "nats per token (k1)"),
        _figure(summary, "Reward model", "rm_heldout_accuracy", "{:.0%}".format, "accuracy on held-out pairs"),
        _figure(summary, "Rollouts", "rollouts", "{:,.0f}".format, sampled),
        _figure(summary, "Total time", "seconds_total", duration, "wall clock, start to end"),
        _figure(summary, "Peak memory", "peak_rss_gib", "{:.1f} GiB".format, "all processes together"),
        _change(summary, "Cut-off answers", "truncated", "{:.0%}".format, "held-out answers at the length limit"),
        _change(summary, "Answer length", "length", "{:.0f}".format, "tokens, mean of held-out answers"),
        _change(summary, "Perplexity", "perplexity", "{:.1f}".format, "under the reference; a jump means broken text"),
        _change(summary, "Distinct-2", "distinct2", "{:.2f}".format, "unique token pairs; low means repetition"),
    ]
    return [tile for tile in tiles if isinstance(tile, Tile)], [tile for tile in tiles if isinstance(tile, str)]


def _figure(summary: Values, label: str, key: str, form: Callable[[float], str], note: str) -> Tile | str:
    """The tile, or what is missing."""
    value = number(summary, key)
    return f"{label} ({key})" if value is None else Tile(label, form(value), note)


def _change(summary: Values, label: str, key: str, form: Callable[[float], str], note: str) -> Tile | str:
    """The tile of a figure before and after training, or what is missing."""
    first, last = number(summary, f"{key}_before"), number(summary, f"{key}_after")
    if first is None or last is None:
        return f"{label} ({key}_before, {key}_after)"
    return Tile(label, f"{form(first)} → {form(last)}", note)


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
