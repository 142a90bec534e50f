"""`comparison.html`: the table of methods, reward against KL, tokens and time, and answers side by side."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlhf_ray.report.answers import Answer, answer_of, context_of, text_of
from rlhf_ray.report.comparison import Comparison, Estimate, Figures, Method, curves, gains
from rlhf_ray.report.content import Verdict
from rlhf_ray.report.curves import Chart, Panel, Series
from rlhf_ray.report.facts import duration, flatten, plural, show, span
from rlhf_ray.report.finished import FinishedRun, reward_of
from rlhf_ray.report.html import render
from rlhf_ray.rundir.commit import replace_file

COLUMNS = (
    "method", "seeds", "rollouts of each run", "held-out reward", "gain (95 %)", "wins against the first (95 %)",
    "KL per token", "cut off", "tokens sampled", "training time",
)  # fmt: skip
_SAMPLES = 6
_FEWEST = 6  # held-out prompts from which an interval can be bootstrapped at all
_AXES = (
    ("kl", "kl_per_token", "Reward against KL", "KL per token to the reference (k1, nats)"),
    ("tokens", "tokens", "Reward against tokens", "response tokens sampled so far"),
    ("time", "seconds", "Reward against wall time", "seconds of training so far"),
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One held-out prompt, the untrained answer of the first run, and the trained one of every run."""

    prompt: str
    context: list[tuple[str, str]]
    before: Answer
    after: list[tuple[str, int, Answer]]
    """Label with the seed, number of the method, answer."""


def write_comparison(path: Path, comparison: Comparison) -> Path:
    """Writes the page to `path`, which it returns."""
    text, verdict = headline(comparison)
    drawn = charts(comparison.methods)
    variables = {
        "headline": text,
        "verdict": verdict,
        "comparison": comparison,
        "baseline": comparison.methods[0].label,
        "columns": COLUMNS,
        "rows": [cells(figures) for figures in comparison.figures],
        "charts": drawn,
        "samples": samples(comparison),
        "runs": [_run_cells(label, run, comparison.prompts) for label, run in comparison.runs],
        "settings": settings(comparison.methods),
    }
    replace_file(path, render("comparison.html.j2", drawn, variables))
    return path


def headline(comparison: Comparison) -> tuple[str, Verdict]:
    """The result in a sentence, and whether the best method is clearly ahead of the second."""
    best = comparison.ranked[0]
    text = f"Largest held-out gain: {best.label}, {show(best.gain.value, sign=True)} ({span(best.gain.ci95, show)})"
    over = f"Bootstrap over {comparison.resampled}; {plural(len(comparison.prompts), 'held-out prompt')}."
    if comparison.lead is None:
        return text, Verdict("unknown", "One method only", over)
    second, (low, high) = comparison.ranked[1].label, comparison.lead.ci95
    difference = f"{show(comparison.lead.value, sign=True)}, {span((low, high), show)}"
    if len(comparison.prompts) < _FEWEST:
        return text, Verdict("unknown", f"Fewer than {_FEWEST} held-out prompts tell nothing", over)
    if low > 0:
        return text, Verdict("up", f"Ahead of {second}: {difference}", over)
    return text, Verdict("same", f"Not clearly ahead of {second}: {difference}, which includes zero", over)


def cells(figures: Figures) -> list[str]:
    """A row under `COLUMNS`."""
    return [
        figures.label,
        ", ".join(map(str, figures.seeds)),
        f"{figures.rollouts:,}",
        _known(figures.reward, lambda x: show(x, 3)),
        _estimate(figures.gain, lambda x: show(x, 3, sign=True)),
        "baseline" if figures.win_rate is None else _estimate(figures.win_rate, "{:.0%}".format),
        _known(figures.kl_per_token, lambda x: show(x, 4)),
        _known(figures.truncated, "{:.0%}".format),
        f"{figures.tokens:,.0f}",
        duration(figures.seconds),
    ]


def charts(methods: Sequence[Method]) -> list[Chart]:
    """Reward while training against three ways to count the cost: a method's line is the mean over its seeds, step by
    step, and the band or the bars go from its lowest seed to its highest."""
    drawn = []
    for name, axis, title, label in _AXES:
        lines = [_line(method, axis) for method in methods]
        words = " ".join(f"{line.name}: {_last(line.y)} at {_last(line.x)}." for line in lines)
        several = any(len(method.runs) > 1 for method in methods)
        shape = "bars go" if axis == "kl_per_token" else "band goes"
        seeds = f" The line is the mean over the seeds; the {shape} from the lowest to the highest." if several else ""
        note = f"Of the training rollouts, before any KL term; one point a step.{seeds}"
        drawn.append(Chart(name, title, note, label, [Panel("reward", lines)], words, wide=True, x_kind="number"))
    return drawn


def samples(comparison: Comparison) -> list[Sample]:
    """Held-out prompts at even distances in the ranking of the first run's rewards after training."""
    runs, first = comparison.runs, comparison.methods[0].runs[0]
    ranked = sorted(comparison.prompts, key=lambda prompt: -(reward_of(first.after[prompt]) or 0.0))
    places = np.linspace(0, len(ranked) - 1, min(_SAMPLES, len(ranked))).round().astype(int)
    number = {method.label: i for i, method in enumerate(comparison.methods)}
    return [
        Sample(
            text_of(first.after[prompt], "prompt"),
            context_of(first.after[prompt]),
            answer_of(first.before[prompt]),
            [(f"{label}, seed {run.seed}", number[label], answer_of(run.after[prompt])) for label, run in runs],
        )
        for prompt in (ranked[place] for place in places)
    ]


def settings(methods: Sequence[Method]) -> list[tuple[str, list[str]]]:
    """The settings in which the methods differ, with the value in each."""
    trees = [dict(flatten(method.runs[0].files.config)) for method in methods]
    keys = sorted({key for tree in trees for key in tree} - {"name", "seed"})
    rows = [(key, [tree.get(key, "\u2013") for tree in trees]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _line(method: Method, axis: str) -> Series:
    found = [curves(run) for run in method.runs]
    steps = min(len(curve["reward"]) for curve in found)
    x, y = (np.array([curve[key][:steps] for curve in found]) for key in (axis, "reward"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a step that no seed has stays without a value
        mean, low, high = np.nanmean(y, axis=0), np.nanmin(y, axis=0), np.nanmax(y, axis=0)
        place = np.nanmean(x, axis=0)
    ends = list(zip(low.tolist(), high.tolist(), strict=True)) if len(found) > 1 else None
    jumps = axis == "kl_per_token"  # goes to and fro, where a band would cover itself
    return Series(
        method.label, place.tolist(), mean.tolist(), ends=ends if jumps else None, band=None if jumps else ends
    )


def _run_cells(label: str, run: FinishedRun, prompts: Sequence[str]) -> list[str]:
    return [
        run.name,
        label,
        str(run.seed),
        show(float(gains(run, prompts).mean()), 3, sign=True),
        _known(run.figure("kl_to_reference_per_token"), lambda x: show(x, 4)),
        f"{run.tokens[-1]:,.0f}",
        duration(float(run.seconds[-1])),
    ]


def _estimate(estimate: Estimate, form: Callable[[float], str]) -> str:
    low, high = estimate.ci95
    return f"{form(estimate.value)} ({form(low)} to {form(high)})"


def _known(value: float, form: Callable[[float], str]) -> str:
    return "not known" if math.isnan(value) else form(value)


def _last(values: Sequence[float | None]) -> str:
    value = values[-1]
    return "not known" if value is None or math.isnan(value) else f"{value:,.4g}"
