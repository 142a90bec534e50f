"""Pictures of a sweep: metric against KL, and what each parameter does."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf_ray.report.facts import show
from rlhf_ray.report.sweep_effects import Effect, effects
from rlhf_ray.report.sweep_ranking import Configuration, Sweep
from rlhf_ray.report.sweep_statistics import Mean
from rlhf_ray.report.sweep_trials import Plan
from rlhf_ray.report.sweep_words import digits, in_words, mean_text, short

_NUMBERED = 12  # points; of more, only those on the front have numbers
_SIZE, _SMALLEST, _LARGEST = 12.0, 9.0, 26.0  # pixels across a point


@dataclass(frozen=True, slots=True)
class Picture:
    """A card that sweep.js.j2 draws: `kind` says how, `data` what. `summary` says in words what it shows. plotly.js
    reads tags in its texts, so those in `data` are escaped."""

    id: str
    kind: str
    title: str
    note: str
    summary: str
    data: Mapping[str, object]


def plain(text: str) -> str:
    """`text` as plotly.js will show it, whatever it holds."""
    return html.escape(text, quote=False)


def hover(values: Mapping[str, object], *lines: str) -> str:
    """A line for each value, then `lines`."""
    return "<br>".join(plain(line) for line in (*(in_words({name: value}) for name, value in values.items()), *lines))


def good_side(plan: Plan) -> str:
    """Which side of the metric is good."""
    return "high is good" if plan.mode == "max" else "low is good"


def front_picture(sweep: Sweep) -> Picture | None:
    """Metric against KL of the complete configurations, None if no KL is known."""
    plan, front = sweep.plan, sweep.front
    rated = [one for one in sweep.complete if one.kl is not None]
    if not rated:
        return None
    lengths = [one.length for one in rated if one.length is not None]
    sized = len(lengths) == len(rated)
    sizes = _sizes(lengths) if sized else [_SIZE] * len(rated)
    points = [
        {
            "x": one.kl,
            "y": None if one.mean is None else one.mean.value,
            "front": one in front,
            "rank": str(sweep.complete.index(one) + 1) if one in front or len(rated) <= _NUMBERED else "",
            "size": size,
            "text": _point_text(one, plan),
        }
        for one, size in zip(rated, sizes, strict=True)
    ]
    note = (
        "Each point is a configuration, numbered by its rank. Filled ones are on the front: no other one is as good in "
        f"everything and has a better {plan.metric}{', a lower KL or shorter answers' if sized else ' or a lower KL'}."
    )
    if sized:
        ends = f"{digits(min(lengths))} to {digits(max(lengths))} tokens"
        note += f" The larger a point, the longer its answers: {ends}."
    words = "; ".join(_point_words(one, plan) for one in front)
    axes = {"x": f"KL to the reference, {plan.kl_unit}", "y": plain(plan.metric)}
    data = {"points": points, "joined": not sized, **axes}
    return Picture("front", "front", f"{plan.metric} against KL", note, f"On the front: {words}.", data)


def effect_pictures(sweep: Sweep) -> list[Picture]:
    """One for each parameter, on one scale; none if no trial finished."""
    found = [effect for effect in effects(sweep) if effect.levels]
    limits = _limits([level.mean for effect in found for level in effect.levels], found)
    return [_effect_picture(f"effect-{place}", effect, sweep, limits) for place, effect in enumerate(found)]


def _effect_picture(name: str, effect: Effect, sweep: Sweep, limits: tuple[float, float]) -> Picture:
    found, levels, plan = effect.correlation, effect.levels, sweep.plan
    ordered = sweep.numbers(effect.parameter) is not None
    note = "Thirds of the trials by its value. " if effect.in_parts else ""
    if found is not None:
        low, high = (show(end) for end in found.ci95)
        note += f"Spearman's rho {show(found.rho)} (95% interval {low} to {high}) over {found.count} configurations."
    data = {
        "labels": [_tick(level.label, effect.in_parts) for level in levels],
        "means": [level.mean.value for level in levels],
        "ends": [level.mean.ci95 for level in levels],
        "texts": [plain(f"{level.label}: {mean_text(level.mean)}, {level.mean.count} trials") for level in levels],
        "dots": [[place, value] for place, level in enumerate(levels) for value in level.metrics],
        "range": limits,
        "joined": ordered,
        "y": plain(plan.metric),
    }
    words = " ".join(f"{level.label}: {mean_text(level.mean)} of {level.mean.count}." for level in levels)
    return Picture(
        name, "levels", effect.parameter.name, note.strip(), f"{plan.metric} by {effect.parameter.name}. {words}", data
    )


def _tick(label: str, in_parts: bool) -> str:
    """The ends of a part below each other."""
    return "<br>to ".join(label.split(" to ")) if in_parts else plain(short(label))


def _limits(means: Sequence[Mean], found: Sequence[Effect]) -> tuple[float, float]:
    """Of the trials' values, with room for intervals: those over two seeds can be a hundred times as wide."""
    values = [value for effect in found for level in effect.levels for value in level.metrics]
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    room = 0.5 * (high - low) or 0.1 * abs(high) or 0.1
    ends = [end for mean in means if mean.ci95 for end in mean.ci95] or values
    margin = 0.1 * room
    return max(low - room, min(low, *ends)) - margin, min(high + room, max(high, *ends)) + margin


def _sizes(lengths: Sequence[float]) -> list[float]:
    """Areas from smallest to largest."""
    low, high = min(lengths), max(lengths)
    shares = [(length - low) / (high - low) if high > low else 0.5 for length in lengths]
    return [float((_SMALLEST**2 + share * (_LARGEST**2 - _SMALLEST**2)) ** 0.5) for share in shares]


def _point_text(one: Configuration, plan: Plan) -> str:
    lines = [f"{plan.metric} {mean_text(one.mean)}"] if one.mean else []
    lines += [f"KL {digits(one.kl)} {plan.kl_unit}"] if one.kl is not None else []
    lines += [f"length {digits(one.length)} tokens"] if one.length is not None else []
    return hover(one.values, *lines)


def _point_words(one: Configuration, plan: Plan) -> str:
    mean, kl = (
        ("" if one.mean is None else digits(one.mean.value)),
        ("" if one.kl is None else digits(one.kl)),
    )
    length = "" if one.length is None else f", length {digits(one.length)}"
    return f"{in_words(one.values)} with {plan.metric} {mean}, KL {kl}{length}"
