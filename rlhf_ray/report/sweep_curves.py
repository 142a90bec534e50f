"""How the configurations of a sweep learned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rlhf_ray.report.curves import Chart, Panel, Series, in_words
from rlhf_ray.report.sweep_charts import plain
from rlhf_ray.report.sweep_ranking import Configuration, Sweep
from rlhf_ray.report.sweep_trials import step_name
from rlhf_ray.report.sweep_words import text_of

_COLOURED = 6  # lines with a colour of their own; the next colour is grey


def curve_chart(sweep: Sweep) -> Chart | None:
    """The metric over the steps: a line is the mean over the seeds, the band goes from the lowest to the highest. The
    best configurations have colours. None if no trial has the metric in two steps."""
    if not any(len(trial.curve) > 1 for trial in sweep.trials):
        return None
    plan, label = sweep.plan, next(trial.curve_of for trial in sweep.trials if trial.curve_of is not None)
    lines = [line for i, one in enumerate(sweep.configurations, start=1) if (line := _line(one, i)) is not None]
    best, rest = lines[:_COLOURED], lines[_COLOURED:]
    note = (
        "A line is the mean over the seeds of a configuration, named by rank and values; its band goes from the lowest "
    )
    note += "to the highest seed."
    if label not in (plan.metric, step_name(plan.metric)):
        note = f"{plan.metric} is measured at the end; this is what comes closest while training. {note}"
    note += f" The first {_COLOURED} of the table are coloured, the other {len(rest)} are grey." if rest else ""
    shown = [replace(line, name=plain(line.name)) for line in best]
    faint = [replace(line, name=plain(line.name), band=None, faint=True) for line in rest]
    words = in_words([Panel(label, best)])
    return Chart(
        "curves", f"{label} while training", note, "step", [Panel(plain(label), shown + faint)], words, wide=True
    )


def _line(one: Configuration, place: int) -> Series | None:
    """Over the steps that all its trials with a curve have."""
    curves = [dict(trial.curve) for trial in one.trials if trial.curve]
    steps = sorted(set.intersection(*(set(curve) for curve in curves))) if curves else []
    if not steps:
        return None
    name = f"{f'{place}: ' if one.complete else ''}{', '.join(map(text_of, one.values.values()))}"
    values = np.array([[curve[step] for step in steps] for curve in curves])
    band = list(zip(values.min(axis=0).tolist(), values.max(axis=0).tolist(), strict=True))
    return Series(name, steps, values.mean(axis=0).tolist(), band=band if len(curves) > 1 else None)
