"""The command line `rlhf-ray`. Heavy imports live inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape

from rlhf_ray.cli.data import data_app
from rlhf_ray.cli.feedback import feedback_app
from rlhf_ray.cli.keys import keys_app
from rlhf_ray.cli.runs import chaos, fork, replay
from rlhf_ray.errors import GateError, LostError, RunError, UserError
from rlhf_ray.launching.supervise import LOST, give_signs, supervised

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="RLHF on Ray: reward models and PPO from one YAML file. Start with [bold]rlhf-ray demo[/bold].",
)
app.add_typer(data_app, name="data")
app.add_typer(keys_app, name="keys")
app.add_typer(feedback_app, name="feedback")
app.command(epilog="Example: rlhf-ray fork runs/ppo runs/slower --step 20 policy.learning_rate=1e-6")(fork)
app.command(epilog="Example: rlhf-ray replay runs/ppo --step 12")(replay)
app.command(epilog="Example: rlhf-ray chaos --role rollout-0 --phase generate --seed 0")(chaos)
Kind = Literal["job", "cluster", "service"]
OWN_PROCESS = "own process"
"""The context's object when the command line is that of this process, not of a call of `main` in some other program."""
_ECHO_S = 1.0
"""A second signal within so long is the first one again: Ray's service signals each process of a job."""
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines instead of text.")]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    0 done, 1 failed, 2 wrong usage or config (nothing started), 3 a gate said no, 130 and 143 stopped by a signal.
    """
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # reward functions are named as modules of the current directory
    terminated = 0.0
    if supervised():
        give_signs()

    def terminate(signum: int, frame: FrameType | None) -> None:
        """Ends a run exactly as Ctrl-C does (it commits first); only the exit code differs."""
        nonlocal terminated
        before, terminated = terminated, time.monotonic()
        if terminated - before > _ECHO_S:
            raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, terminate)
    try:
        code = _run(argv)
    finally:
        signal.signal(signal.SIGTERM, previous)
    return 143 if terminated else code


def _run(argv: Sequence[str] | None) -> int:
    try:
        app(args=argv if argv is None else list(argv), prog_name="rlhf-ray", obj=OWN_PROCESS if argv is None else None)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        return 130
    except (UserError, GateError, RunError) as error:
        if os.environ.get("RLHF_RAY_TRACEBACK") == "1":
            traceback.print_exc()
        Console(stderr=True).print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        return LOST if supervised() and isinstance(error, LostError) else error.exit_code
    return 0


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"rlhf-ray {metadata.version('rlhf-ray')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Nothing of its own: the options of the whole program."""


@app.command(epilog="Example: rlhf-ray demo")
def demo(
    run_dir: Annotated[Path | None, typer.Option(help="Where the run goes; the first free runs/demo[-N].")] = None,
    json_: Json = False,
) -> None:
    """Align the embedded chat model with PPO, offline, in about ten minutes on two cores."""
    from rlhf_ray.cli.demo import run_demo

    summary = run_demo(run_dir, as_json=json_)
    if json_:
        print(json.dumps(summary))


@app.command(epilog="Example: rlhf-ray train ppo_smollm2_cpu.yaml prompts.path=my.jsonl train.num_steps=20")
def train(
    context: typer.Context,
    config: Annotated[str, typer.Argument(help="A YAML file, or the name of a bundled recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[a.b=c]...", help="Values laid over it.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Where the run goes; runs/NAME if not given.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and print everything; start nothing.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run from its newest checkpoint.")] = False,
    resume_if_exists: Annotated[
        bool, typer.Option("--resume-if-exists", help="The same if the run directory has a run; else start it.")
    ] = False,
    max_failures: Annotated[
        int, typer.Option(min=0, help="How often in turn to resume by itself after its driver, or a node, is lost.")
    ] = 3,
    json_: Json = False,
) -> None:
    """Train what CONFIG says: a policy with PPO (kind: online) or a reward model (kind: reward)."""
    from rlhf_ray.cli.train import Persistence, supervised_train, train_command

    persistence = Persistence(resume, resume_if_exists, max_failures)
    if context.obj == OWN_PROCESS and max_failures and not dry_run and not supervised():
        raise typer.Exit(supervised_train(config, overrides or [], run_dir, persistence))
    train_command(config, overrides or [], run_dir, persistence, dry_run=dry_run, as_json=json_)


@app.command(epilog="Example: rlhf-ray submit ppo.yaml --address http://127.0.0.1:8265 --run-dir /shared/runs/ppo")
def submit(
    config: Annotated[str, typer.Argument(help="A YAML file below the working directory, or a bundled recipe.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[a.b=c]...", help="Values laid over it.")] = None,
    *,
    address: Annotated[str, typer.Option(help="The cluster's dashboard, such as http://127.0.0.1:8265.")],
    run_dir: Annotated[Path, typer.Option(help="Where the run goes: absolute, on storage all nodes share.")],
    working_dir: Annotated[Path, typer.Option(help="The folder that the job gets a copy of.")] = Path("."),
    name: Annotated[str | None, typer.Option(help="The job's id; the config's name if not given.")] = None,
    env: Annotated[list[str] | None, typer.Option(help="The name of a variable to pass; may be repeated.")] = None,
    max_failures: Annotated[int, typer.Option(min=0, help="How often to resume after a lost actor or node.")] = 3,
    no_wait: Annotated[bool, typer.Option("--no-wait", help="Do not follow the log to the end.")] = False,
    json_: Json = False,
) -> None:
    """Start the run of CONFIG on a Ray cluster, resume it if it is there, or follow it if it is running."""
    from rlhf_ray.cli.submit import Where, submit_command

    where = Where(address, run_dir, working_dir, name, env or [], max_failures)
    submit_command(config, overrides or [], where, wait=not no_wait, as_json=json_)


@app.command(epilog="Example: rlhf-ray render ppo_8gpu.yaml --kind job --storage training-data > rayjob.yaml")
def render(
    config: Annotated[str, typer.Argument(help="A YAML file or a bundled recipe; for a service, its config.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[a.b=c]...", help="Values laid over it.")] = None,
    kind: Annotated[Kind, typer.Option(help="A run, a cluster of its size, or a service.")] = "job",
    name: Annotated[str | None, typer.Option(help="Of the resource; the config's name if not given.")] = None,
    image: Annotated[str | None, typer.Option(help="Of all pods; the one of deploy/Dockerfile if not given.")] = None,
    storage: Annotated[str, typer.Option(help="The persistent volume claim that holds runs and data.")] = "rlhf-ray",
    nodes: Annotated[int, typer.Option(min=1, help="Worker pods to share the run out over.")] = 1,
    token_auth: Annotated[bool, typer.Option(help="Ask for a token (KubeRay 1.5.1 and newer).")] = True,
    fields: Annotated[
        list[str] | None, typer.Option("--set", metavar="spec.a.b=c", help="A field of the manifest; may be repeated.")
    ] = None,
    crds: Annotated[Path | None, typer.Option(help="KubeRay's CRDs to check against: a folder or a file.")] = None,
) -> None:
    """Print manifests for KubeRay, sized from CONFIG: for `kubectl apply -f -`."""
    from rlhf_ray.cli.render import Wanted, render_command

    render_command(config, overrides or [], Wanted(kind, name, image, storage, nodes, token_auth, fields or [], crds))


@app.command(epilog="Example: rlhf-ray sweep tune_configs/dpo_beta.yaml seeds=3 train.max_steps=4")
def sweep(
    file: Annotated[Path, typer.Argument(help="A sweep file: a recipe, what varies in it, what counts as better.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[a.b=c]...", help="Values of the sweep, or laid over its recipe.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where the trials go; runs/sweep-NAME if not given.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and print everything; start nothing.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a sweep that was killed or stopped.")] = False,
    json_: Json = False,
) -> None:
    """Find good hyper-parameters with Ray Tune: trials share what is frozen; ends with a recipe and how sure it is."""
    from rlhf_ray.cli.sweep import sweep_command

    sweep_command(file, overrides or [], out, dry_run=dry_run, resume=resume, as_json=json_)


@app.command(epilog="Example: rlhf-ray doctor; rlhf-ray doctor ppo.yaml policy.num_workers=2")
def doctor(
    config: Annotated[str | None, typer.Argument(help="A run to check as well: a YAML file, or a recipe.")] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[a.b=c]...", help="Values laid over it.")] = None,
    run_dir: Annotated[Path | None, typer.Option(help="Where it goes; runs/NAME if not given.")] = None,
    json_: Json = False,
) -> None:
    """Check this machine, and a run before it starts; each line says OK or the fix."""
    from rlhf_ray.cli.doctor import diagnose, diagnose_run, print_findings

    findings = [*diagnose(), *(diagnose_run(config, overrides or [], run_dir) if config else [])]
    print_findings(findings, as_json=json_)
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command(epilog="Example: rlhf-ray compare --recipe demo.yaml --algorithms ppo,grpo,rloo --seeds 3")
def compare(
    runs: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN_DIR]...", help="Finished runs, the baseline first; with --recipe: more values."),
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="Make the runs first, from this YAML file or recipe.")] = None,
    algorithms: Annotated[str | None, typer.Option(help="With --recipe: such as ppo,grpo,dpo; baseline first.")] = None,
    seeds: Annotated[int, typer.Option(help="With --recipe: runs of each algorithm.")] = 3,
    values: Annotated[
        list[str] | None, typer.Option("--set", metavar="a.b=c", help="With --recipe: a value laid over it.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Where comparison.html and new runs go.")] = Path("runs", "comparison"),
    json_: Json = False,
) -> None:
    """Compare methods on equal terms: the same prompts, reward and number of rollouts."""
    from rlhf_ray.cli.compare import compare_command, compare_recipe_command

    if recipe is not None and algorithms is not None:
        compare_recipe_command(recipe, [*(values or []), *(runs or [])], algorithms, seeds, out, as_json=json_)
    elif recipe is None and algorithms is None and not values:
        compare_command([Path(run) for run in runs or []], out, as_json=json_)
    else:
        raise UserError("--recipe, --algorithms and --set belong together; without them give run directories")


@app.command(epilog="Examples: rlhf-ray serve runs/demo --canary runs/dpo --weight 0.1; rlhf-ray serve promote")
def serve(
    target: Annotated[
        str | None, typer.Argument(metavar="RUN|FOLDER|promote|rollback|status", help="What to serve, or a verb.")
    ] = None,
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[a.b=c]...", help="Values of the config.")] = None,
    canary: Annotated[str | None, typer.Option(help="A second policy for a share of the conversations.")] = None,
    weight: Annotated[float | None, typer.Option(help="That share.")] = None,
    config: Annotated[Path | None, typer.Option(help="A YAML file with the config of the service.")] = None,
    host: Annotated[str | None, typer.Option(help="Where to listen; 127.0.0.1 if not given.")] = None,
    port: Annotated[int | None, typer.Option(help="The port; 8000 if not given.")] = None,
    store: Annotated[str | None, typer.Option(help="Keys and feedback: a file, or a database URL.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Serve although the gate said no; it is recorded.")] = False,
    url: Annotated[str, typer.Option(help="For the verbs: where the service is.")] = "http://127.0.0.1:8000",
    key: Annotated[str | None, typer.Option(help="For the verbs: an admin key; else RLHF_RAY_KEY.")] = None,
) -> None:
    """Serve a policy as a chatbot: OpenAI's API, feedback, a web page. Or tell a running service what to do."""
    from rlhf_ray.cli.serve import admin_command, serve_command

    if target in ("promote", "rollback", "status"):
        print(json.dumps(admin_command(target, url, key), indent=2))
        return
    options: dict[str, object] = {"canary": canary, "canary_weight": weight, "host": host, "port": port, "store": store}
    serve_command(target, overrides or [], options | {"force": force or None}, config)


@app.command(epilog="Example: rlhf-ray report runs/demo")
def report(
    run: Annotated[Path, typer.Argument(help="The directory of a run or of a sweep.")],
    json_: Json = False,
) -> None:
    """Write report.html of a run or a sweep again and print where it is."""
    if (run / "sweep.json").is_file():
        from rlhf_ray.report.sweep_page import write_sweep_report

        page = write_sweep_report(run)
        typer.echo(json.dumps({"report": str(page)}) if json_ else str(page))
        return
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} holds no run (no config.yaml); give a run directory such as runs/demo")
    from rlhf_ray.report.page import write_report

    page = write_report(run)
    typer.echo(json.dumps({"report": str(page)}) if json_ else str(page))


if __name__ == "__main__":
    sys.exit(main())
