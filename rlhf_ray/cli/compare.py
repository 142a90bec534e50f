"""`rlhf-ray compare`: a table and a page about finished runs; with --recipe it makes the runs first."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from rlhf_ray.cli.table import show_table
from rlhf_ray.rundir.commit import replace_file

if TYPE_CHECKING:  # loads torch, which a comparison of finished runs does not need
    from rlhf_ray.cli.compare_plan import RunPlan


def compare_command(runs: Sequence[Path], out: Path, *, as_json: bool) -> None:
    """Compares finished `runs`, writes `comparison.html` and `comparison.json` into `out`, and prints the table.

    `UserError` for runs that are not finished or not on equal terms.
    """
    from rlhf_ray.report.comparison import as_json as written
    from rlhf_ray.report.comparison import compare_runs
    from rlhf_ray.report.comparison_page import COLUMNS, cells, headline, write_comparison

    comparison = compare_runs(runs)
    out.mkdir(parents=True, exist_ok=True)
    text = written(comparison)
    replace_file(out / "comparison.json", text)
    page = write_comparison(out / "comparison.html", comparison)
    if as_json:
        print(text, end="")
        return
    result, verdict = headline(comparison)
    lines = (f"{result}. {verdict.text}.", f"{page} and comparison.json beside it")
    caption = f"intervals: bootstrap over {comparison.resampled}"
    show_table(COLUMNS, map(cells, comparison.figures), lines, caption)


def compare_recipe_command(
    recipe: str, overrides: Sequence[str], algorithms: str, seeds: int, out: Path, *, as_json: bool
) -> None:
    """Makes a run of every algorithm with every seed under `out`, as far as they are not there yet, and compares them.

    `UserError` before anything has started.
    """
    from rlhf_ray.cli.compare_plan import plan_runs

    plan = plan_runs(recipe, overrides, [name.strip() for name in algorithms.split(",")], seeds)
    words = ["rlhf-ray", "compare", "--recipe", recipe, "--algorithms", algorithms, "--seeds", str(seeds)]
    words += [word for override in overrides for word in ("--set", override)]
    folders = [out / name for name in plan.folders]
    make_runs(plan, folders, shlex.join([*words, "--out", str(out)]))
    compare_command(folders, out, as_json=as_json)


def make_runs(plan: RunPlan, folders: Sequence[Path], command: str) -> None:
    """Runs what `plan` has in `folders`, one after another: finished runs are left alone, unfinished ones go on."""
    from rlhf_ray.cli.compare_plan import check_all

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    wanted, notes = check_all(plan, folders)
    for note in (*notes, f"{len(folders)} runs, {len(folders) - len(wanted)} of them finished already"):
        console.print(note, markup=False)
    if not wanted:
        return
    from rlhf_ray.cluster import connected, launch
    from rlhf_ray.resources import total_cpus

    cpus = max(total_cpus(config) for config, _ in wanted)
    with connected(wanted[0][0].placement, cpus):
        for number, (config, folder) in enumerate(wanted, start=1):
            console.print(f"run {number} of {len(wanted)}: {folder}", markup=False)
            launch(config, folder, folder.exists(), command)
