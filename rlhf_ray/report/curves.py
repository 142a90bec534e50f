"""The charts of the report page, as plain data that the page's script hands to plotly.js."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from rlhf_ray import metrics as m
from rlhf_ray.report.facts import number, show

Record = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Series:
    """One line or bar series; `spread` widens a line to a band of plus and minus that much."""

    name: str
    x: list[float]
    y: list[float | None]
    spread: list[float] | None = None


@dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes. `kind` is `line`, `bar` (stacked) or `pairs` (two markers joined, one pair an x)."""

    label: str
    series: list[Series]
    kind: str = "line"
    percent: bool = False


@dataclass(frozen=True, slots=True)
class Chart:
    """A card: panels above each other on one x axis. `summary` says in words what the picture shows."""

    id: str
    title: str
    note: str
    x_label: str
    panels: list[Panel]
    summary: str

    def spec(self) -> dict[str, object]:
        """JSON values for the page's script."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a chart wants to show: per panel its label, whether it is a share, and (name, metric) lines."""

    id: str
    title: str
    note: str
    panels: tuple[tuple[str, bool, tuple[tuple[str, str], ...]], ...]


_PLANS = (
    _Plan(
        "kl",
        "Distance from the reference",
        "How far the policy has moved from where it started. The coefficient is what the controller charges for it.",
        (
            ("KL per token (k1, nats)", False, (("KL per token", m.KL_PER_TOKEN),)),
            ("KL coefficient", False, (("coefficient", m.KL_COEF),)),
        ),
    ),
    _Plan(
        "length",
        "Answer length",
        "Rewards are often won by length alone; cut-off answers hit the token limit.",
        (
            ("tokens", False, (("mean length", m.LENGTH_MEAN),)),
            ("cut off", True, (("cut-off share", m.TRUNCATED),)),
        ),
    ),
    _Plan(
        "critic",
        "Critic",
        "Explained variance near 1: the critic predicts the returns. At or below 0: it is no better than their mean.",
        (
            ("value loss", False, (("value loss", m.CRITIC_LOSS),)),
            ("explained variance", False, (("explained variance", m.CRITIC_EXPLAINED_VARIANCE),)),
        ),
    ),
    _Plan(
        "update",
        "Size of the policy update",
        "Share of tokens whose ratio hit the clip range, and KL to the policy that sampled them.",
        (
            ("clipped tokens", True, (("clip fraction", m.POLICY_CLIP_FRACTION),)),
            ("KL to old (k3, nats)", False, (("KL to old", m.POLICY_KL_TO_OLD),)),
        ),
    ),
    _Plan(
        "entropy",
        "Entropy of the policy",
        "A fast fall towards zero means that the policy has stopped exploring.",
        (("nats per token", False, (("entropy", m.ENTROPY),)),),
    ),
    _Plan(
        "drift",
        "Agreement of sampler and learner",
        "Difference of the two engines' log-probabilities of the same tokens; a rise means stale or wrong weights.",
        (("nats", False, (("mean", m.DRIFT_MEAN), ("largest", m.DRIFT_MAX))),),
    ),
)


def build_charts(records: Sequence[Record], pairs: Sequence[tuple[float, float]]) -> list[Chart]:
    """All charts that have data: `records` of metrics.jsonl, and (before, after) rewards of held-out prompts."""
    charts = [_reward(records)]
    charts += [_planned(plan, records) for plan in _PLANS]
    charts.append(_times(records))
    if pairs:
        charts.insert(1, _heldout(pairs))
    return [chart for chart in charts if chart.panels]


def _reward(records: Sequence[Record]) -> Chart:
    line = _series(records, "mean reward", m.REWARD_MEAN)
    prefix = m.REWARD_SOURCE.format(source="")
    known = {m.REWARD_MEAN, m.REWARD_STD, m.QUARANTINED}
    sources = sorted({key for record in records for key in record if key.startswith(prefix)} - known)
    panels = []
    if line is not None:
        spread = [number(record, m.REWARD_STD) or 0.0 for record in records]
        lines = [Series(line.name, line.x, line.y, spread)]
        if len(sources) > 1:
            parts = [_series(records, key.removeprefix(prefix), key) for key in sources]
            lines += [part for part in parts if part is not None]
        panels.append(Panel("reward", lines))
    note = "Of the training rollouts, before any KL term. The band is one standard deviation of the rollouts."
    return Chart("reward", "Reward while training", note, "step", panels, _words(panels))


def _planned(plan: _Plan, records: Sequence[Record]) -> Chart:
    panels = []
    for label, percent, names in plan.panels:
        lines = [series for name, key in names if (series := _series(records, name, key)) is not None]
        if lines:
            panels.append(Panel(label, lines, percent=percent))
    return Chart(plan.id, plan.title, plan.note, "step", panels, _words(panels))


def _times(records: Sequence[Record]) -> Chart:
    bars = [_series(records, phase, m.TIME_PHASE.format(phase=phase)) for phase in m.PHASES]
    shown = [bar for bar in bars if bar is not None]
    panels = [Panel("seconds", shown, kind="bar")] if shown else []
    totals = [f"{bar.name} {sum(value or 0.0 for value in bar.y):.0f} s" for bar in shown]
    note = "What each step waited for."
    return Chart("time", "Time per step", note, "step", panels, "Seconds over all steps: " + ", ".join(totals) + ".")


def _heldout(pairs: Sequence[tuple[float, float]]) -> Chart:
    x = [float(position) for position in range(1, len(pairs) + 1)]
    lines = [Series("before", x, [pair[0] for pair in pairs]), Series("after", x, [pair[1] for pair in pairs])]
    better = sum(after > before for before, after in pairs)
    words = f"{better} of {len(pairs)} held-out prompts got a higher reward after training."
    note = "One line a prompt, biggest gain on the left."
    return Chart("heldout", "Every held-out prompt", note, "prompt", [Panel("reward", lines, kind="pairs")], words)


def _series(records: Sequence[Record], name: str, key: str) -> Series | None:
    """The metric over the steps, None if no step has it; a step without it is a gap."""
    values = [number(record, key) for record in records]
    if all(value is None for value in values):
        return None
    return Series(name, [number(record, "step") or 0.0 for record in records], values)


def _words(panels: Sequence[Panel]) -> str:
    sentences = []
    for panel in panels:
        for series in panel.series:
            known = [value for value in series.y if value is not None]
            first, last = (f"{value:.0%}" if panel.percent else show(value, 3) for value in (known[0], known[-1]))
            sentences.append(f"{series.name.capitalize()}: {first} at first, {last} at last.")
    return " ".join(sentences)
