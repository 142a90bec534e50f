"""Which configuration of a sweep to take, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rlhf_ray.report.content import Tone
from rlhf_ray.report.facts import number, plural
from rlhf_ray.report.sweep_ranking import Configuration, Sweep
from rlhf_ray.report.sweep_statistics import mean_of
from rlhf_ray.report.sweep_trials import Parameter
from rlhf_ray.report.sweep_words import in_words, signed, text_of

_AT_THE_END = 0.05  # of a range, from either end


@dataclass(frozen=True, slots=True)
class Recommendation:
    """The values of the best complete configuration by dotted path. `sureness` says in one line how far it can be
    believed that it is the best; `tone` is `up` if it is clearly ahead."""

    values: Mapping[str, object]
    sureness: str
    tone: Tone


def recommended(sweep: Sweep) -> Recommendation | None:
    """The configuration to take, None if none finished with all its seeds."""
    complete, total = sweep.complete, len(sweep.configurations)
    if not complete:
        return None
    tone, lead = _lead(sweep, complete)
    few = (
        f"Only {len(complete)} of {plural(total, 'configuration')} finished with all seeds."
        if len(complete) < total
        else ""
    )
    ends = [words for parameter in sweep.plan.parameters if (words := _at_the_end(parameter, complete[0]))]
    return Recommendation(complete[0].values, " ".join(" ".join([lead, few, *ends]).split()), tone)


def _lead(sweep: Sweep, complete: list[Configuration]) -> tuple[Tone, str]:
    """The best against the runner-up, by the paired difference over the seeds of both (Student 1908)."""
    if len(complete) == 1:
        return "unknown", "No second configuration finished with all seeds, so there is nothing to compare it with."
    best, second = complete[:2]
    mine, theirs = best.by_seed, second.by_seed
    common = sorted(mine.keys() & theirs.keys())
    ahead = [sweep.plan.sign * (mine[seed] - theirs[seed]) for seed in common]
    found, name = mean_of(ahead), f"the runner-up ({in_words(second.values)})"
    if not any(ahead):
        return "same", f"Equal to {name}."
    if found.ci95 is None:
        return "unknown", f"One seed only: {signed(found.value)} against {name} may be noise."
    if math.isclose(
        max(ahead), min(ahead), rel_tol=1e-9, abs_tol=1e-12
    ):  # figures of a few pairs often agree, which is no proof that they always will
        return (
            "unknown",
            f"{signed(found.value)} against {name} with each of {len(common)} seeds: no noise to judge it by.",
        )
    low, high = (signed(end) for end in found.ci95)
    difference = f"{signed(found.value)}, 95 % interval {low} to {high} over {len(common)} seeds"
    if found.ci95[0] > 0:
        return "up", f"Clearly ahead of {name}: {difference}."
    return "same", f"Not clearly ahead of {name}: {difference}, which includes zero."


def _at_the_end(parameter: Parameter, best: Configuration) -> str | None:
    """A sentence if its value is the lowest or highest that was allowed."""
    value = number(best.values, parameter.name)
    if value is None or parameter.ends is None or parameter.ends[0] == parameter.ends[1]:
        return None
    low, high = parameter.ends
    slack = 0.0
    if parameter.type in ("uniform", "log_uniform"):
        if parameter.type == "log_uniform":
            low, high, value = math.log(low), math.log(high), math.log(value)
        slack = _AT_THE_END * (high - low)
    side = "low" if value <= low + slack else "high" if value >= high - slack else None
    if side is None:
        return None
    shown = text_of(best.values[parameter.name])
    return f"{parameter.name} = {shown} is at the {side} end of its range: the optimum may lie beyond."
