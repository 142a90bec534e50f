"""Charts of the report page, as plain data that the page's script hands to plotly.js, and how metrics become them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from rlhf_ray import metrics as m
from rlhf_ray.report.facts import number, show

Record = Mapping[str, object]
_RARE = (m.HELDOUT_LOSS, m.HELDOUT_ACCURACY, m.HELDOUT_MARGIN)  # not in every step by design, so no gap says anything


@dataclass(frozen=True, slots=True)
class Series:
    """One line, set of dots or bars; `spread` widens a line to a band of plus and minus that much, `band` to one with
    these ends, `ends` gives every point its interval, `dashed` makes it a reference to compare with, `faint` one of
    many that only show what the others stand out from."""

    name: str
    x: list[float]
    y: list[float | None]
    spread: list[float] | None = None
    ends: list[tuple[float, float]] | None = None
    band: list[tuple[float, float]] | None = None
    dashed: bool = False
    faint: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes. `pairs` is two markers joined, one pair an x; `bar` is stacked; `dots` are not joined;
    `spans` draws each series as bars from end to end, at its height."""

    label: str
    series: list[Series]
    kind: Literal["line", "bar", "pairs", "dots", "spans"] = "line"
    percent: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """A card: panels above each other on one x axis. `summary` says in words what the picture shows.

    `x_kind` is `count` (whole numbers: steps, prompts), `number` or `share`.
    """

    id: str
    title: str
    note: str
    x_label: str
    panels: list[Panel]
    summary: str
    wide: bool = False
    x_kind: Literal["count", "number", "share"] = "count"

    def spec(self) -> dict[str, object]:
        """JSON values for the page's script."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a chart wants to show: per panel its label, whether it is a share, and (name, metric) lines."""

    id: str
    title: str
    note: str
    panels: tuple[tuple[str, bool, tuple[tuple[str, str], ...]], ...]
    wide: bool = False


def draw(plans: Sequence[Plan], records: Sequence[Record]) -> list[Chart]:
    """The charts of the plans for which `records` of metrics.jsonl have data; a target is drawn dashed."""
    charts = []
    for plan in plans:
        panels = []
        for label, share, names in plan.panels:
            lines = [line for name, key in names if (line := series_of(records, name, key)) is not None]
            if lines:
                panels.append(Panel(label, lines, percent=share))
        charts.append(Chart(plan.id, plan.title, plan.note, "step", panels, in_words(panels), plan.wide))
    return [chart for chart in charts if chart.panels]


def series_of(records: Sequence[Record], name: str, key: str) -> Series | None:
    """The metric over the steps, None if no step has it; a step without it is a gap."""
    if key in _RARE:
        records = [record for record in records if number(record, key) is not None]
    values = [number(record, key) for record in records]
    if all(value is None for value in values):
        return None
    steps = [number(record, "step") or 0.0 for record in records]
    return Series(name, steps, values, dashed=key == m.BETA_TARGET_KL)


def in_words(panels: Sequence[Panel]) -> str:
    """First and last value of every line."""
    sentences = []
    for panel in panels:
        for series in panel.series:
            known = [value for value in series.y if value is not None]
            first, last = (f"{value:.0%}" if panel.percent else show(value, 3) for value in (known[0], known[-1]))
            sentences.append(f"{series.name[:1].upper()}{series.name[1:]}: {first} at first, {last} at last.")
    return " ".join(sentences)
