"""`rlhf-ray chaos`: kill every process of a run in every phase, and compare with the run left alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from rlhf_ray.chaos.fixed_data import Kind, kill_fixed_data_run
from rlhf_ray.chaos.matrix import Outcome, run_seed
from rlhf_ray.chaos.plan import PHASES, ROLES, Cell, Lane, cells
from rlhf_ray.chaos.report import (
    as_json,
    as_markdown,
    kills_as_json,
    kills_as_markdown,
    soak_as_json,
    soak_as_markdown,
)
from rlhf_ray.chaos.soak import soak
from rlhf_ray.errors import GateError, UserError
from rlhf_ray.rundir.commit import replace_file

EFFECTIVE = 0.9
"""The least share of a soak's time that must be training."""


def chaos_command(
    out: Path, seeds: Sequence[int], lane: Lane, roles: Sequence[str], phases: Sequence[str], limit_s: float
) -> Path:
    """Runs the matrix and writes `chaos.json` and `chaos.md` to `out` after each seed; returns the latter.

    `GateError` if a promise was broken.
    """
    for given, known, what in ((roles, ROLES, "role"), (phases, PHASES, "phase")):
        unknown = sorted(set(given) - set(known))
        if unknown:
            raise UserError(f"--{what} {unknown[0]}: choose from {', '.join(known)}")
    tell = _teller(out)
    outcomes: list[Outcome] = []
    plans: list[list[Cell]] = []
    for seed in seeds:
        plans.append(cells(seed, roles or ROLES, phases or PHASES))
        outcomes.append(run_seed(out, seed, plans[-1], lane, limit_s, tell))
        _write(out, as_json(outcomes, plans), as_markdown(outcomes, plans))
    return _table(out, [f"{promise}: {found[0]}" for one in outcomes for promise, found in one.violations.items()])


def fixed_data_chaos(out: Path, kind: Kind, kills: int, limit_s: float) -> Path:
    """The same for a run of `kind`, whose processes are killed at random moments."""
    done, broken = kill_fixed_data_run(out, kind, kills, limit_s, _teller(out))
    _write(out, kills_as_json(kind, kills, done, broken), kills_as_markdown(done, broken))
    return _table(out, [f"{promise}: {found[0]}" for promise, found in broken.items()])


def soak_chaos(out: Path, minutes: float, every_s: float, lane: Lane, limit_s: float) -> Path:
    """The same for a run of so many minutes that is killed every `every_s` seconds. A share of training below 90 % is a
    `GateError` too."""
    if 60 * minutes < every_s:
        raise UserError(f"--soak {minutes:g}: nobody would be killed in it; give more minutes, or --every with less")
    found = soak(out, 60 * minutes, every_s, lane, limit_s, _teller(out))
    _write(out, soak_as_json(found), soak_as_markdown(found))
    broken = [f"{promise}: {sentences[0]}" for promise, sentences in found.violations.items()]
    if found.effective < EFFECTIVE:
        broken.append(f"{found.effective:.1%} of the time was training, less than {EFFECTIVE:.0%}")
    return _table(out, broken)


def _teller(out: Path) -> Callable[[str], None]:
    if out.exists():
        raise UserError(f"{out} exists already: choose another --out")
    return Console(stderr=True, highlight=False, soft_wrap=True, markup=False).print


def _write(out: Path, found: dict[str, Any], table: str) -> None:
    replace_file(out / "chaos.json", json.dumps(found, indent=1) + "\n")
    replace_file(out / "chaos.md", table)


def _table(out: Path, broken: Sequence[str]) -> Path:
    if broken:
        raise GateError(f"{len(broken)} promises were broken; the first, {broken[0]}. See {out / 'chaos.md'}")
    return out / "chaos.md"
