"""One trial: a run of one configuration with one seed, inside an actor of Ray Tune."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf_ray.config import AnyConfig, AnyOfflineConfig, RunConfig
from rlhf_ray.errors import RunError, UserError
from rlhf_ray.report.files import read_json
from rlhf_ray.report.page import write_report
from rlhf_ray.rundir.commit import replace_file
from rlhf_ray.rundir.journal import write_summary
from rlhf_ray.sweep.plan import Plan

TRIAL_FILE = "trial.json"
SEED = "seed"
REPEAT = "__trial_index__"  # Tune's Repeater says here which repetition a trial is
_PLACES = frozenset({"name", "train", "placement", "lora", "gate"})


@dataclass(frozen=True, slots=True)
class Trial:
    """Where one trial is and what it is about."""

    folder: Path
    number: int
    values: Mapping[str, object]
    seed: int
    config: AnyConfig

    def note(self, state: str, error: str | None = None) -> None:
        """Writes what became of it, for the report."""
        told = {"number": self.number, "values": self.values, "seed": self.seed, "state": state, "error": error}
        replace_file(self.folder / TRIAL_FILE, json.dumps(told, indent=2) + "\n")


def run_trial(drawn: dict[str, Any], *, plan: Plan, sweep_dir: Path, command: str) -> None:
    """The function that Tune runs: trains what was drawn and reports every line of metrics, then the summary.

    A trial whose run is finished already only reports it again; one whose run was cut goes on from its newest commit.
    """
    from ray import tune

    trial = trial_of(drawn, plan, sweep_dir, tune.get_context().get_trial_id())
    summary = read_json(trial.folder / "summary.json")
    try:
        if not summary.get("finished"):
            resume = (trial.folder / "config.yaml").is_file()
            summary = _run(trial, resume, command)
            write_summary(trial.folder, summary)
            write_report(trial.folder)
    except SystemExit:  # this is how Tune ends a trial early
        trial.note("stopped")
        raise
    except (UserError, RunError) as error:
        trial.note("failed", str(error))
        raise
    trial.note("finished")
    tune.report({"step": summary["steps"], **_numbers(summary)})


def trial_of(drawn: Mapping[str, Any], plan: Plan, sweep_dir: Path, trial_id: str) -> Trial:
    """The trial that Tune drew. Its run's directory has the number that Tune gave it, which a restored sweep keeps."""
    seed = int(drawn.get(SEED, drawn.get(REPEAT, 0)))
    number = trial_id.rpartition("_")[2]
    values = {path: drawn[path] for path in plan.config.space}
    config = plan.trial(values, seed, f"{plan.config.name}-{number}")
    return Trial(sweep_dir / "runs" / number, int(number), plan.values_in(config), config.seed, config)


def _run(trial: Trial, resume: bool, command: str) -> dict[str, Any]:
    config = trial.config
    if isinstance(config, RunConfig):
        raise NotImplementedError
    from rlhf_ray.cluster import run_offline

    def tell(news: list[dict[str, object]]) -> None:
        for record in news:
            if record["type"] == "metrics":
                report(record)

    data = trial.folder.parent.parent / "data" / data_key(config)
    return run_offline(config, trial.folder, resume, command, tell, data)


def report(record: Mapping[str, object]) -> None:
    """One line of metrics to Tune. Raises `SystemExit` if the scheduler ends the trial here."""
    from ray import tune

    tune.report(_numbers(record))


def data_key(config: AnyOfflineConfig) -> str:
    """The same for configs whose token ids are the same: all that could matter goes in, steps and numbers of a
    preference method do not."""
    tree = config.model_dump(mode="json", exclude=set(_PLACES))
    if "method" in tree:
        tree["method"] = {key: tree["method"].get(key) for key in ("type", "reference")}
    text = json.dumps([tree, os.getcwd()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _numbers(record: Mapping[str, object]) -> dict[str, float]:
    return {
        key: value for key, value in record.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }
