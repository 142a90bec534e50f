"""`rlhf-ray chaos`: kill every process of a run in every phase, and compare with the run left alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from rlhf_ray.chaos.fixed_data import Kind, kill_fixed_data_run
from rlhf_ray.chaos.matrix import Outcome, run_seed
from rlhf_ray.chaos.plan import PHASES, ROLES, Cell, Lane, cells
from rlhf_ray.chaos.report import as_json, as_markdown, kills_as_json, kills_as_markdown
from rlhf_ray.errors import GateError, UserError
from rlhf_ray.rundir.commit import replace_file


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
    if out.exists():
        raise UserError(f"{out} exists already: choose another --out")
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    outcomes: list[Outcome] = []
    plans: list[list[Cell]] = []
    for seed in seeds:
        plans.append(cells(seed, roles or ROLES, phases or PHASES))
        outcomes.append(run_seed(out / f"seed-{seed}", seed, plans[-1], lane, limit_s, console.print))
        replace_file(out / "chaos.json", json.dumps(as_json(outcomes, plans), indent=1) + "\n")
        replace_file(out / "chaos.md", as_markdown(outcomes, plans))
    broken = [f"{promise}: {found[0]}" for one in outcomes for promise, found in one.violations.items()]
    if broken:
        raise GateError(f"{len(broken)} promises were broken; the first, {broken[0]}. See {out / 'chaos.md'}")
    return out / "chaos.md"


def fixed_data_chaos(out: Path, kind: Kind, kills: int, limit_s: float) -> Path:
    """The same for a run of `kind`, whose processes are killed at random moments."""
    if out.exists():
        raise UserError(f"{out} exists already: choose another --out")
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    done, broken = kill_fixed_data_run(out, kind, kills, limit_s, console.print)
    replace_file(out / "chaos.json", json.dumps(kills_as_json(kind, kills, done, broken), indent=1) + "\n")
    replace_file(out / "chaos.md", kills_as_markdown(done, broken))
    if broken:
        promise, found = next(iter(broken.items()))
        raise GateError(f"{len(broken)} promises were broken; the first, {promise}: {found[0]}. See {out / 'chaos.md'}")
    return out / "chaos.md"
