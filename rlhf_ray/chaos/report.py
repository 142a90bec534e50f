"""What came of it, for machines and as a table."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rlhf_ray.chaos.fixed_data import Kill
from rlhf_ray.chaos.matrix import Outcome
from rlhf_ray.chaos.monkey import Strike
from rlhf_ray.chaos.plan import PHASES, ROLES, Cell
from rlhf_ray.chaos.soak import Soak
from rlhf_ray.machine import cpu_cores, memory_gib

PROMISES = {
    "P1": "every run reached its last step by itself",
    "P2": "each answer of the plan was learned from once",
    "P3": "weights, optimizer and loop have the bits of the run that was left alone",
    "P4": "no damaged commit bears the name of one",
    "P9": "the engines sampled from the learner's weights",
    "P11": "no process was left behind",
}


def as_json(outcomes: Sequence[Outcome], plans: Sequence[Sequence[Cell]]) -> dict[str, Any]:
    """Everything, with the seconds of recovery by role: of one death, and of two before the run was back."""
    strikes = [strike for outcome in outcomes for strike in outcome.strikes]
    roles = sorted({one.cell.role for one in strikes})
    return {
        "machine": _machine(),
        "cells_planned": sum(len(plan) for plan in plans),
        "cells_survived": len(strikes),
        "recovery_s": {role: _quantiles(_of(role, strikes)) for role in roles},
        "recovery_together_s": {role: _quantiles(_of(role, strikes, together=True)) for role in roles},
        "seeds": [_seed(outcome) for outcome in outcomes],
    }


def as_markdown(outcomes: Sequence[Outcome], plans: Sequence[Sequence[Cell]]) -> str:
    """Roles by phases: how many strikes were survived of how many, and the median of seconds until a whole step was
    done again. A star marks what is known only together with another death, of which p50 and p95 have none."""
    strikes = [strike for outcome in outcomes for strike in outcome.strikes]
    planned = [cell for plan in plans for cell in plan]
    roles = [role for role in ROLES if any(cell.role == role for cell in planned)]
    phases = [phase for phase in PHASES if any(cell.phase == phase for cell in planned)]
    rows = ["| | " + " | ".join(phases) + " | p50 | p95 |", "|---" * (len(phases) + 3) + "|"]
    for role in roles:
        squares = []
        for phase in phases:
            asked = sum((cell.role, cell.phase) == (role, phase) for cell in planned)
            found = [one for one in strikes if (one.cell.role, one.cell.phase) == (role, phase)]
            squares.append(f"{len(found)}/{asked}{_median(found)}")
        back = _quantiles(_of(role, strikes))
        squares += [f"{back['p50']:.0f} s", f"{back['p95']:.0f} s"] if back else ["", ""]
        rows.append(f"| {role} | " + " | ".join(squares) + " |")
    verdicts = [f"- {promise}, {says}: {_verdict(promise, outcomes)}" for promise, says in PROMISES.items()]
    return "\n".join([*rows, "", *verdicts, ""])


def _verdict(promise: str, outcomes: Sequence[Outcome]) -> str:
    broken = [f"seed {one.seed}: {one.violations[promise][0]}" for one in outcomes if promise in one.violations]
    return "; ".join(broken) if broken else f"so for {', '.join(f'seed {one.seed}' for one in outcomes)}"


def _of(role: str, strikes: Sequence[Strike], together: bool = False) -> list[Strike]:
    return [strike for strike in strikes if strike.cell.role == role and strike.together is together]


def _median(strikes: Sequence[Strike]) -> str:
    if not strikes:
        return ""
    alone = [strike.back_s for strike in strikes if not strike.together]
    return f" {statistics.median(alone or [strike.back_s for strike in strikes]):.0f} s{'' if alone else ' *'}"


def kills_as_json(kind: str, asked: int, kills: Sequence[Kill], broken: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Of a run on fixed data."""
    return {
        "machine": _machine(),
        "kind": kind,
        "kills_planned": asked,
        "kills_survived": len(kills),
        "violations": broken,
        "kills": [asdict(kill) for kill in kills],
    }


def kills_as_markdown(kills: Sequence[Kill], broken: Mapping[str, Sequence[str]]) -> str:
    """How often who was killed, and how long it took until a step was written again."""
    rows = ["| killed | times | p50 | p95 |", "|---|---|---|---|"]
    for role in sorted({kill.role for kill in kills}):
        mine = [kill for kill in kills if kill.role == role]
        found = _quantiles(mine)
        rows.append(f"| {role} | {len(mine)} | {found['p50']:.0f} s | {found['p95']:.0f} s |")
    return "\n".join([*rows, "", *_kept(broken, [p for p in PROMISES if p != "P9"]), ""])  # there are no engines


def soak_as_json(soak: Soak) -> dict[str, Any]:
    """Of a run that was killed at long intervals."""
    strikes = [_strike(strike) for strike in soak.strikes]
    return {"machine": _machine(), "effective": round(soak.effective, 4), **asdict(soak), "strikes": strikes}


def soak_as_markdown(soak: Soak) -> str:
    """The share of the time that was training, and who was killed."""
    rows = ["| killed | in | step | back after |", "|---|---|---|---|"]
    rows += [f"| {one.cell.role} | {one.phase} | {one.step} | {one.back_s:.0f} s |" for one in soak.strikes]
    share = (
        f"{soak.steps} steps in {soak.seconds:.0f} s, of {soak.undisturbed_step_s:.2f} s each if nobody dies: "
        f"{soak.effective:.1%} of the time was training."
    )
    return "\n".join([share, "", *rows, "", *_kept(soak.violations, [p for p in PROMISES if p != "P3"]), ""])


def _machine() -> dict[str, float]:
    return {"cpu_cores": cpu_cores(), "memory_gib": round(memory_gib(), 1)}


def _kept(broken: Mapping[str, Sequence[str]], promises: Sequence[str]) -> list[str]:
    return [f"- {promise}, {PROMISES[promise]}: {broken.get(promise, ['so'])[0]}" for promise in promises]


def _quantiles(strikes: Sequence[Strike | Kill]) -> dict[str, float]:
    """Nearest ranks; {} of nothing."""
    seconds = sorted(strike.back_s for strike in strikes)
    if not seconds:
        return {}
    return {f"p{part}": round(seconds[min(len(seconds) - 1, len(seconds) * part // 100)], 1) for part in (50, 95)}


def _seed(outcome: Outcome) -> dict[str, Any]:
    return {**asdict(outcome), "strikes": [_strike(strike) for strike in outcome.strikes]}


def _strike(strike: Strike) -> dict[str, Any]:
    return {**asdict(strike), "cell": {**asdict(strike.cell), "sign": strike.cell.sign.name}}
