"""A sweep read from its folder, ranked, and told as a table for a terminal and as JSON for machines."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import get_args

from rlhf_ray.report.facts import show
from rlhf_ray.report.sweep_advice import Recommendation, recommended
from rlhf_ray.report.sweep_effects import effects
from rlhf_ray.report.sweep_ranking import Configuration, Sweep, read_sweep
from rlhf_ray.report.sweep_trials import State, Trial
from rlhf_ray.report.sweep_words import mean_text, places, text_of
from rlhf_ray.rundir.lines import finite

__all__ = ["Recommendation", "Sweep", "as_json", "cells", "columns", "read_sweep", "recommended"]

_LONGEST = 100  # characters of an error in a table


def columns(sweep: Sweep) -> list[str]:
    """The columns of the table. KL, length and front are there if they are known of any configuration."""
    plan, found = sweep.plan, ["rank", *(parameter.name for parameter in sweep.plan.parameters)]
    found.append(f"{plan.metric} (95 %)" if len(plan.seeds) > 1 else plan.metric)
    found += [f"KL, {plan.kl_unit}"] if _any(sweep, "kl") else []
    found += ["length, tokens"] if _any(sweep, "length") else []
    return [*found, "seeds finished", *(["front"] if sweep.front else []), "state"]


def cells(sweep: Sweep) -> list[list[str]]:
    """A row under `columns` for each configuration, best first; the texts are plain, whatever a value holds."""
    front, digits = sweep.front, places([_value(one) for one in sweep.configurations])
    kl, length = (places([getattr(one, name) for one in sweep.configurations]) for name in ("kl", "length"))
    rows = []
    for rank, one in enumerate(sweep.configurations, start=1):
        row = [str(rank) if one.complete else "\u2013"]
        row += [text_of(one.values[parameter.name]) for parameter in sweep.plan.parameters]
        row.append(_reached(one, digits) if one.mean is None else mean_text(one.mean, digits))
        row += [_known(one.kl, kl)] if _any(sweep, "kl") else []
        row += [_known(one.length, length)] if _any(sweep, "length") else []
        row.append(f"{len(one.by_seed)} of {len(one.wanted)}")
        row += [("yes" if one in front else "")] if front else []
        rows.append([*row, state_text(one, sweep.plan.metric)])
    return rows


def state_text(configuration: Configuration, metric: str) -> str:
    """What became of a configuration, with the step at which it ended, or the error."""
    if configuration.state == "finished":
        return "finished" if configuration.complete else f"finished without {metric}"
    if configuration.state == "failed":
        error = " ".join((configuration.error or "no reason is recorded").split())
        return f"failed: {error}" if len(error) <= _LONGEST else f"failed: {error[:_LONGEST]}\u2026"
    word = "stopped early" if configuration.state == "stopped" else "unfinished"
    return f"{word} at step {', '.join(map(str, configuration.steps))}" if configuration.steps else word


def as_json(sweep: Sweep) -> str:
    """What was found, for machines: configurations in their order, effects of the parameters, the recommendation."""
    plan, front, advice = sweep.plan, sweep.front, recommended(sweep)
    body = {
        "name": plan.name,
        "recipe": plan.recipe,
        "metric": plan.metric,
        "mode": plan.mode,
        "seeds": plan.seeds,
        "intervals": "95 %, Student's t over seeds; of Spearman's rho, bootstrap over configurations",
        "kl_unit": plan.kl_unit,
        "recommended": None if advice is None else {"values": advice.values, "sureness": advice.sureness},
        "configurations": [_facts(one, one in front) for one in sweep.configurations],
        "effects": [
            {
                "parameter": effect.parameter.name,
                "levels": [asdict(level) for level in effect.levels],
                "spearman": None if effect.correlation is None else asdict(effect.correlation),
            }
            for effect in effects(sweep)
        ],
        "trials": [_trial_facts(trial) for trial in sweep.trials],
        "cost": sweep.files.cost,
    }
    return json.dumps(finite(body), indent=2) + "\n"


def _facts(configuration: Configuration, on_front: bool) -> dict[str, object]:
    mean = configuration.mean
    return {
        "values": configuration.values,
        "state": configuration.state,
        "states": {state: configuration.count(state) for state in get_args(State)},
        "complete": configuration.complete,
        "mean": None if mean is None else asdict(mean),
        "by_seed": configuration.by_seed,
        "reached": configuration.reached,
        "steps": configuration.steps,
        "kl": configuration.kl,
        "length": configuration.length,
        "front": on_front,
        "error": configuration.error,
        "trials": [trial.number for trial in configuration.trials],
    }


def _trial_facts(trial: Trial) -> dict[str, object]:
    figures = {"value": trial.value, "kl": trial.kl, "length": trial.length, "step": trial.step}
    known = {"number": trial.number, "values": trial.values, "seed": trial.seed, "state": trial.state}
    return {**known, **figures, "error": trial.error}


def _reached(configuration: Configuration, digits: int) -> str:
    return "not known" if configuration.reached is None else f"{show(configuration.reached, digits)} so far"


def _value(configuration: Configuration) -> float | None:
    return configuration.reached if configuration.mean is None else configuration.mean.value


def _any(sweep: Sweep, name: str) -> bool:
    return any(getattr(one, name) is not None for one in sweep.configurations)


def _known(value: float | None, digits: int) -> str:
    return "\u2013" if value is None else show(value, digits)
