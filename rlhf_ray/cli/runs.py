"""`rlhf-ray fork`, `replay` and `chaos`: the past of a run, and whether it survives."""

from __future__ import annotations

import json
import pdb  # `replay --pdb` is for debugging
import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from rlhf_ray.errors import UserError


def fork(
    run: Annotated[Path, typer.Argument(help="The run directory to begin from.")],
    target: Annotated[Path, typer.Argument(help="The new run directory.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[a.b=c]...", help="What is different.")] = None,
    step: Annotated[int | None, typer.Option(min=0, help="The checkpoint's step; the newest if not given.")] = None,
) -> None:
    """Begin a new run at a checkpoint of another one, with other settings."""
    from rlhf_ray.fork import fork as make_fork

    chosen = make_fork(run, target, step, overrides or [])
    typer.echo(f"{target} is {run} after step {chosen}. Go on with:")
    typer.echo(shlex.join(["rlhf-ray", "train", str(target / "config.yaml"), "--run-dir", str(target), "--resume"]))


def replay(
    run: Annotated[Path, typer.Argument(help="The run directory.")],
    step: Annotated[int, typer.Option(min=1, help="The step to do again.")],
    debugger: Annotated[bool, typer.Option("--pdb", help="Stop in Python's debugger before the step.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object for machines instead of text.")] = False,
) -> None:
    """Do one step of a run again from its books, in this process, and compare its metrics."""
    from rlhf_ray.replay import replay as do_again

    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is not a run directory: it has no config.yaml")
    figures = do_again(run, step, pdb.set_trace if debugger else lambda: None)  # as --pdb says
    if json_:
        typer.echo(json.dumps({one.name: {"written": one.written, "replayed": one.replayed} for one in figures}))
        return
    table = Table("metric", "written", "replayed", "difference", title=f"step {step} of {run}")
    for one in figures:
        difference = "" if one.written is None else f"{one.replayed - one.written:.1e}"
        written = "" if one.written is None else f"{one.written:.6g}"
        table.add_row(one.name, written, f"{one.replayed:.6g}", difference)
    Console().print(table)


def chaos(
    out: Annotated[Path, typer.Option(help="Where the runs and the table go.")] = Path("runs/chaos"),
    seed: Annotated[
        list[int] | None, typer.Option(help="0: SIGKILL, 1: SIGSEGV, 2: SIGSTOP; all if not given.")
    ] = None,
    engine: Annotated[Literal["torch", "vllm"], typer.Option(help="Which rollout engine the runs have.")] = "torch",
    role: Annotated[list[str] | None, typer.Option(help="Whom to kill; everybody if not given.")] = None,
    phase: Annotated[list[str] | None, typer.Option(help="When; in every phase if not given.")] = None,
    limit: Annotated[float, typer.Option(min=1, help="Seconds that a run may take to recover from one kill.")] = 420.0,
    fixed_data: Annotated[
        Literal["dpo", "reward"] | None, typer.Option(help="Such a run instead, killed at random moments.")
    ] = None,
    kills: Annotated[int, typer.Option(min=1, help="Of a run on fixed data.")] = 50,
    soak: Annotated[
        float | None, typer.Option(min=1, help="So many minutes of training instead, with a kill now and then.")
    ] = None,
    every: Annotated[float, typer.Option(min=60, help="Seconds from one kill of a soak to the next.")] = 300.0,
) -> None:
    """Prove recovery: kill every process of a small run in every phase, and compare with the run left alone."""
    from rlhf_ray.cli.chaos import chaos_command, fixed_data_chaos, soak_chaos

    if soak is not None and fixed_data is not None:
        raise UserError("--soak and --fixed-data: choose one")
    if soak is not None:
        typer.echo(soak_chaos(out, soak, every, engine, limit).read_text())
        return
    if fixed_data is not None:
        typer.echo(fixed_data_chaos(out, fixed_data, kills, limit).read_text())
        return
    typer.echo(chaos_command(out, seed or [0, 1, 2], engine, role or [], phase or [], limit).read_text())
