"""What a kind of run puts on its page; the rest of the page is the same for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from rlhf_ray.report.curves import Chart
from rlhf_ray.report.facts import Share, Tile

Tone = Literal["up", "down", "same", "unknown"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How far the headline may be believed. `tone` colours it; `note` says where the interval comes from."""

    tone: Tone
    text: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of the table of steps."""

    label: str
    metric: str
    digits: int


@dataclass(frozen=True, slots=True)
class Strip:
    """An interval drawn in a cell, all positions in percent of its width; `baseline` is where nothing was learned."""

    low: float
    value: float
    high: float
    baseline: float


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a table: its name, perhaps an interval to draw, and the texts of the other cells."""

    name: str
    strip: Strip | None
    cells: list[str]


@dataclass(frozen=True, slots=True)
class Table:
    """`columns` names the cells; with `strip_label` there is a drawn column before them."""

    columns: list[str]
    rows: list[Row]
    strip_label: str | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """A card of the evaluation: what was found in a sentence, and the table or picture that shows it."""

    id: str
    title: str
    text: str
    table: Table | None = None
    chart: Chart | None = None


@dataclass(frozen=True, slots=True)
class Content:
    """A kind's part of the page. `template` shows `details` after the curves."""

    headline: str
    verdict: Verdict
    tiles: list[Tile]
    missing: list[str]
    absent_files: list[str]
    charts: list[Chart]
    columns: Sequence[Column]
    shares: list[Share] = field(default_factory=list)
    model_dir: str | None = None
    template: str | None = None
    details: object = None

    @property
    def all_charts(self) -> list[Chart]:
        """Also those inside findings."""
        findings = self.details if isinstance(self.details, list) else []
        return self.charts + [f.chart for f in findings if isinstance(f, Finding) and f.chart is not None]
