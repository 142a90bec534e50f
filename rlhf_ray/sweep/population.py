"""Population based training: what a trial copies when Tune tells it to go on from a better one."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune

from rlhf_ray.config_file import dump_config
from rlhf_ray.ports import Metrics, Save, State
from rlhf_ray.rundir.commit import fork_commit, replace_file
from rlhf_ray.rundir.lines import append_line
from rlhf_ray.sweep.reporting import ReportingJournal, report
from rlhf_ray.sweep.trial import Trial

_POINTER = "commit.json"
_TAKEN = "taken.json"


class PopulationJournal(ReportingJournal):
    """Tells Tune of a step once it is committed, with the place of the commit: Tune keeps that place as the trial's
    checkpoint, so that nothing large is copied until another trial takes it over."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._last: Metrics = {}

    def metrics(self, step: int, metrics: Metrics) -> None:
        """Only into the run directory; Tune decides at commits."""
        super(ReportingJournal, self).metrics(step, metrics)
        self._last = metrics

    def commit_beside(self, step: int, state: State, save: Save, committed: Callable[[Path], None]) -> None:
        """As the run directory does, but not beside anything: then to Tune, which may end the trial here."""
        super().commit_beside(step, state, save, committed)
        self.settle()
        if step == self.last_step:
            return
        assert self.committed is not None
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, _POINTER).write_text(json.dumps({"commit": str(self.committed.path)}), encoding="utf-8")
            checkpoint = tune.Checkpoint.from_directory(folder)
            report({"step": step, **self._last}, checkpoint)  # type: ignore[arg-type]  # annotated as its base


def take_over(trial: Trial) -> None:
    """Puts the commit that Tune points to in place of the trial's own, if it is another trial's.

    The learners' weights and optimizers, the prompts' cursor and the controllers are then those of the other trial, the
    values are this trial's new ones.
    """
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return
    with checkpoint.as_directory() as folder:
        pointer = Path(folder, _POINTER).read_text(encoding="utf-8")
    donor, taken = Path(json.loads(pointer)["commit"]), trial.folder / _TAKEN
    if donor.parent.parent == trial.folder or (taken.is_file() and taken.read_text(encoding="utf-8") == pointer):
        return
    own = trial.folder / "checkpoints"
    shutil.rmtree(own, ignore_errors=True)
    fork_commit(donor, own)
    replace_file(trial.folder / "config.yaml", dump_config(trial.config))
    values = ", ".join(f"{path} = {value}" for path, value in trial.values.items())
    sentence = f"Took the weights of {donor.parent.parent.name} at {donor.name}; goes on with {values}."
    append_line(trial.folder / "events.jsonl", {"time": time.time(), "kind": "population", "sentence": sentence})
    replace_file(taken, pointer)
