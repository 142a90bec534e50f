"""A finished online run, as a comparison reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from rlhf_ray import metrics as m
from rlhf_ray.errors import UserError
from rlhf_ray.report.facts import number
from rlhf_ray.report.files import RunFiles, read_run
from rlhf_ray.rundir.rollout_table import REPEATED, read_rollouts

Row = Mapping[str, object]
PerStep = Float[np.ndarray, " steps"]


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """Its files, and its answers to the held-out prompts before and after training, by prompt id."""

    files: RunFiles
    before: Mapping[str, Row]
    after: Mapping[str, Row]

    @property
    def name(self) -> str:
        """The run directory, as it was given."""
        return str(self.files.path)

    @property
    def algorithm(self) -> str:
        """`algorithm.type`."""
        return str(self.setting("algorithm", "type"))

    @property
    def seed(self) -> int:
        """`seed`."""
        return int(str(self.setting("seed")))

    @property
    def rollouts(self) -> int:
        """Sampled in training; those of prompts that dynamic sampling replaced included."""
        replaced = sum(number(record, m.REPLACED_PROMPTS) or 0.0 for record in self.files.records)
        samples = int(str(self.setting("rollout", "samples_per_prompt")))
        return round(self.figure("rollouts") + replaced * samples)

    def setting(self, *keys: str) -> object:
        """The value in config.yaml; `KeyError` if there is none."""
        found: object = self.files.config
        for key in keys:
            if not isinstance(found, Mapping) or key not in found:
                raise KeyError(f"config.yaml has no {'.'.join(keys)}")
            found = found[key]
        return found

    def figure(self, key: str) -> float:
        """The number in summary.json; not a number if there is none."""
        value = number(self.files.summary, key)
        return float("nan") if value is None else value

    def per_step(self, metric: str) -> PerStep:
        """A metric over the steps; not a number where a step lacks it."""
        values = [number(record, metric) for record in self.files.records]
        return np.array([np.nan if value is None else value for value in values], dtype=np.float64)

    @property
    def tokens(self) -> PerStep:
        """Response tokens of the rollouts trained on, up to the end of each step."""
        return np.nancumsum(self.per_step(m.TOKENS))

    @property
    def seconds(self) -> PerStep:
        """Wall-clock seconds of training up to the end of each step: steps and the commits between them, resumed or
        not, without the start of the roles, the last commit and the held-out answers."""
        commits = self.per_step(m.TIME_PHASE.format(phase="commit"))
        return np.nancumsum(np.nansum([self.per_step(m.TIME_STEP), commits], axis=0))

    def prompts_of_step(self, step: int) -> dict[str, str]:
        """The training prompts of a step, as JSON messages by id; none if its table is not there any more."""
        table = self.files.path / "rollouts" / f"step-{step:06d}.parquet"
        rows = read_rollouts(table) if table.is_file() else []
        found = {str(row["prompt_id"]): str(row["messages"]) for row in rows}
        return {key: text for key, text in found.items() if REPEATED.sub("", key) not in found.keys() - {key}}


def is_finished(path: Path) -> bool:
    """Whether the run at `path` has made all its steps and answered the held-out prompts after them."""
    try:
        summary = read_run(path).summary
    except ValueError as error:
        raise UserError(f"{path}: {error}. Repair or remove it.") from error
    return bool(summary.get("finished")) and _table(path, "after").is_file()


def read_finished(path: Path) -> FinishedRun:
    """The run at `path`; a `UserError` names it if it is none, is not finished, or cannot be read."""
    if not (path / "config.yaml").is_file():
        raise UserError(f"{path} holds no run (no config.yaml); give run directories such as runs/demo")
    try:
        files = read_run(path)
        if files.kind != "online":
            raise UserError(f"{path} is a run of kind {files.kind}; only online runs can be compared")
        _check_finished(files)
        before, after = (_by_prompt(read_rollouts(_table(path, when))) for when in ("before", "after"))
        run = FinishedRun(files, before, after)
        if not files.records or np.isnan(run.figure("rollouts")):
            raise ValueError("metrics.jsonl has no steps, or summary.json no rollouts")
        _ = run.seed, run.algorithm, run.rollouts  # a config without them is broken, which must show here
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{path}: a file of the run cannot be read ({error}). Repair or remove it.") from error
    return run


def reward_of(row: Row) -> float | None:
    """The reward of an answer; None if it could not be scored."""
    return number(row, "reward")


def _check_finished(files: RunFiles) -> None:
    path = files.path
    if not files.summary.get("finished"):
        raise UserError(f"{path} is not finished. Go on with it: {_resume(path)}")
    if not _table(path, "before").is_file():
        raise UserError(
            f"{path} has no held-out answers, on which runs are compared; make it again with train.eval_prompts above 0"
        )
    if not _table(path, "after").is_file():
        raise UserError(f"{path} was stopped before its held-out answers after training: {_resume(path)}")


def _resume(path: Path) -> str:
    return f"rlhf-ray train {path}/config.yaml --run-dir {path} --resume"


def _table(path: Path, when: str) -> Path:
    return path / "eval" / f"{when}.parquet"


def _by_prompt(rows: Sequence[Row]) -> dict[str, Row]:
    return {str(row["prompt_id"]): row for row in rows}
