"""`rlhf-ray sweep`: check everything, run the trials, say which configuration to take and how sure that is."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from rlhf_ray.cli.table import show_table
from rlhf_ray.errors import RunError, UserError
from rlhf_ray.preflight import preflight
from rlhf_ray.rundir.commit import replace_file
from rlhf_ray.sweep.plan import candidates, load_sweep
from rlhf_ray.sweep.sharing import demands, shared_roles, unshared

if TYPE_CHECKING:
    from rlhf_ray.sweep.plan import Plan


def sweep_command(
    path: Path, overrides: Sequence[str], out: Path | None, *, dry_run: bool, resume: bool, as_json: bool
) -> None:
    """Loads, checks and runs the sweep file at `path`. Raises `UserError` before anything has started."""
    plan = load_sweep(path, overrides)
    folder = (out or Path("runs", f"sweep-{plan.config.name}")).resolve()
    if resume:
        from rlhf_ray.sweep.run import check_same

        check_same(plan, folder)
    elif folder.exists():
        raise UserError(f"{folder} exists already; go on with it by --resume, or choose another --out")
    first = plan.trial(next(candidates(plan.config.space)), 0, plan.config.name)
    notes = [*preflight(first, folder / "runs" / "first", False), *describe(plan)]
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for note in notes if dry_run or not as_json else ():
        console.print(note, markup=False)
    if dry_run:
        console.print("dry run: nothing was started")
        return
    from rlhf_ray.sweep.run import run_sweep

    words = ["rlhf-ray", "sweep", str(path), *overrides, *(["--out", str(out)] if out else [])]
    run_sweep(plan, folder, resume, shlex.join([*words, *(["--resume"] if resume else [])]))
    show_sweep(plan, folder, as_json=as_json)


def describe(plan: Plan) -> list[str]:
    """What the sweep will do, a sentence each."""
    config = plan.config
    count = config.trials * math.prod(len(one.grid) for one in config.space.values() if one.grid is not None)
    lines = [
        f"{count} configurations of {', '.join(config.space)} x {config.seeds} seeds = {count * config.seeds} trials, "
        f"{config.concurrent} at a time; {config.mode} of {config.metric}"
    ]
    if shared := shared_roles(plan):
        lines.append(f"all trials share: {', '.join(shared)}")
    lines += [f"not shared: {role}, because {reason}" for role, reason in unshared(plan).items()]
    for one in demands(plan):
        if one.each:
            parts = ", ".join(f"{role} {amount:.3g}" for role, amount in one.each.items())
            lines.append(f"a trial asks for {sum(one.each.values()):.3g} {one.unit}: {parts}")
    return lines


def show_sweep(plan: Plan, folder: Path, *, as_json: bool) -> None:
    """Prints the table, and writes the report and the recommended recipe."""
    from rlhf_ray.report import sweep as report
    from rlhf_ray.report.sweep_page import write_sweep_report

    sweep = report.read_sweep(folder)
    best = report.recommended(sweep)
    if best is not None:
        replace_file(folder / "recommended.yaml", f"# {best.sureness}\n{plan.recipe(best.values)}")
    page = write_sweep_report(folder)
    if as_json:
        print(report.as_json(sweep), end="")
    else:
        lines = [] if best is None else [best.sureness, f"rlhf-ray train {folder / 'recommended.yaml'}"]
        show_table(report.columns(sweep), report.cells(sweep), [*lines, str(page)])
    if best is None:
        raise RunError(f"no configuration of {folder} finished with all its seeds; {page} says what became of each")
