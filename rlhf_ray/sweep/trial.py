"""One trial: a run of one configuration with one seed, inside an actor of Ray Tune."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ray.exceptions import RayError

from rlhf_ray.actors.build import POOLED, end_actors, make_actors
from rlhf_ray.actors.shared import Shared
from rlhf_ray.config import AnyConfig, AnyOfflineConfig, RunConfig
from rlhf_ray.config_file import dump_config
from rlhf_ray.errors import RunError, UserError
from rlhf_ray.report.files import read_json
from rlhf_ray.report.page import write_report
from rlhf_ray.resume import alone_in
from rlhf_ray.rundir.commit import replace_file
from rlhf_ray.rundir.journal import RunDirectory, write_summary
from rlhf_ray.rundir.lines import read_lines
from rlhf_ray.sweep.config import PBTConfig
from rlhf_ray.sweep.plan import Plan

TRIAL_FILE = "trial.json"
SEED = "seed"
REPEAT = "__trial_index__"  # Tune's Repeater says here which repetition a trial is
_NOT_OF_TOKENS = {"name", "train", "placement", "lora", "gate"}


@dataclass(frozen=True, slots=True)
class Trial:
    """Where one trial is and what it is about."""

    folder: Path
    number: int
    values: Mapping[str, object]
    seed: int
    config: AnyConfig
    population: bool
    """Whether Tune may tell it to go on from another trial's commit."""

    def note(self, state: str, error: str | None = None) -> None:
        """Writes what became of it, for the report."""
        told = {"number": self.number, "values": self.values, "seed": self.seed, "state": state, "error": error}
        replace_file(self.folder / TRIAL_FILE, json.dumps(told, indent=2) + "\n")


def run_trial(drawn: dict[str, Any], *, plan: Plan, sweep_dir: Path, command: str, shared: Shared) -> None:
    """The function that Tune runs: trains what was drawn and reports every line of metrics, then the summary.

    A trial whose run is finished already only reports it again; one whose run was cut goes on from its newest commit.
    """
    from ray import tune

    from rlhf_ray.sweep.reporting import report

    trial = trial_of(drawn, plan, sweep_dir, tune.get_context().get_trial_name())
    summary = read_json(trial.folder / "summary.json")
    try:
        if not summary.get("finished"):
            resume = (trial.folder / "config.yaml").is_file()
            if resume:
                trial.note("running")
            run = _run_online if isinstance(trial.config, RunConfig) else _run_offline
            summary = run(trial, resume, command, shared)
            write_summary(trial.folder, summary)
            write_report(trial.folder)
    except SystemExit:  # this is how Tune ends a trial early
        trial.note("stopped")
        raise
    except Exception as error:  # Tune counts it; the report says why
        if trial.folder.is_dir():
            trial.note(
                "failed", str(error) if isinstance(error, UserError | RunError) else f"{type(error).__name__}: {error}"
            )
        raise
    trial.note("finished")
    report({**read_lines(trial.folder / "metrics.jsonl")[-1], **summary, "step": summary["steps"]})


def trial_of(drawn: Mapping[str, Any], plan: Plan, sweep_dir: Path, number: str) -> Trial:
    """The trial that Tune drew. Its run's directory has the number that Tune gave it, which a restored sweep keeps."""
    seed = int(drawn.get(SEED, drawn.get(REPEAT, 0)))
    values = {path: drawn[path] for path in plan.config.space}
    config = plan.trial(values, seed, f"{plan.config.name}-{number}")
    population = isinstance(plan.config.scheduler, PBTConfig)
    return Trial(sweep_dir / "runs" / number, int(number), plan.values_in(config), config.seed, config, population)


def _run_online(trial: Trial, resume: bool, command: str, shared: Shared) -> dict[str, Any]:
    """The run's controller works in this process, on the actors of `shared` and on those that it makes beside them."""
    from rlhf_ray.actors.controller import Controller
    from rlhf_ray.cluster import folders_of, heldout_accuracy, threads_of
    from rlhf_ray.sweep.learners import end_groups, groups_for
    from rlhf_ray.sweep.population import PopulationJournal, take_over
    from rlhf_ray.sweep.reporting import ReportingJournal

    config, began = trial.config, time.monotonic()
    assert isinstance(config, RunConfig)
    folders = folders_of(config)
    if not resume:
        keep = config.train.keep_checkpoints
        RunDirectory.create(trial.folder, dump_config(config), {"command": command}, keep)
        trial.note("running")
    else:
        take_over(trial)
    journal = PopulationJournal if trial.population else ReportingJournal
    journal.last_step = config.train.num_steps
    groups = groups_for(config, trial.folder.parent.parent)
    missing = [role for role in POOLED if role not in shared.actors]
    own: dict[str, list[Any]] = {}
    controller = None
    with alone_in(trial.folder):
        try:
            own = make_actors(
                config, folders.policy, folders.rewards, trial.folder, threads_of(config), missing, groups
            )
            everybody = Shared({**own, **shared.actors}, shared.lease)
            controller = Controller(config, folders, trial.folder, groups, everybody, journal)
            summary = controller.run()
        except BaseException as error:
            if not isinstance(error, SystemExit):
                end_groups()
            if controller is not None:
                with contextlib.suppress(RayError):  # what went wrong before says more
                    controller.close()
            raise
        finally:
            end_actors(own, trial.folder)
    seconds = time.monotonic() - began
    accuracy = heldout_accuracy(folders.rewards)
    return {**summary, "seconds_total": seconds, "rm_heldout_accuracy": accuracy, "command": command}


def _run_offline(trial: Trial, resume: bool, command: str, shared: Shared) -> dict[str, Any]:
    """The run's ranks are those of the trial before in this process."""
    from rlhf_ray.cluster import run_offline
    from rlhf_ray.sweep.learners import GroupRun, end_groups, groups_for
    from rlhf_ray.sweep.reporting import report

    config, began, sweep_dir = trial.config, time.monotonic(), trial.folder.parent.parent
    assert not isinstance(config, RunConfig)
    group = groups_for(config, sweep_dir)["group"]

    def tell(news: list[dict[str, object]]) -> None:
        if not (trial.folder / TRIAL_FILE).exists():
            trial.note("running")  # the run's directory is there
        for record in news:
            if record["type"] == "metrics" and record["step"] != config.train.max_steps:
                report(record)

    try:
        start = partial(GroupRun, group)
        figures = run_offline(config, trial.folder, resume, command, tell, sweep_dir / "data" / data_key(config), start)
    except Exception:
        end_groups()
        raise
    return {**figures, "seconds_total": time.monotonic() - began}


def data_key(config: AnyOfflineConfig) -> str:
    """The same for configs whose token ids are the same: all that could matter goes in, steps and numbers of a
    preference method do not."""
    tree = config.model_dump(mode="json", exclude=_NOT_OF_TOKENS)
    if "method" in tree:
        tree["method"] = {key: tree["method"].get(key) for key in ("type", "reference")}
    text = json.dumps(tree, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
