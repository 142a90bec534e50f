"""What a sweep has left in its folder so far: its plan, what each trial reached, and what it all cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from rlhf_ray import metrics as m
from rlhf_ray.errors import UserError
from rlhf_ray.report.facts import latest, number
from rlhf_ray.report.files import read_json
from rlhf_ray.rundir.lines import read_lines

State = Literal["finished", "stopped", "running", "failed"]
Curve = list[tuple[float, float]]
_WIDE = 20  # numbers that span more than this factor belong on a logarithmic axis
_CLOSEST = {"reward_after": m.REWARD_MEAN, "reward_gain": m.REWARD_MEAN}  # of what is measured at the end only
_KL = {  # the figure of a summary, the metric of a step that stands in for it, the unit
    "online": ("kl_to_reference_per_token", m.KL_PER_TOKEN, "nats per token"),
    "preference": ("heldout_kl", None, "nats per sequence"),
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """What varies: its dotted path, and what it may be (`values`, or a range that goes from `ends[0]` to `ends[1]`)."""

    name: str
    type: str
    values: list[object]
    ends: tuple[float, float] | None
    """Lowest and highest number that it may be; None where it may be something else than a number."""

    @property
    def logarithmic(self) -> bool:
        """Whether equal factors, not equal differences, belong at equal distances."""
        if self.type == "log_uniform":
            return True
        return bool(self.values and self.ends and self.ends[0] > 0 and self.ends[1] / self.ends[0] > _WIDE)


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for, from sweep.json."""

    name: str
    kind: str
    recipe: str
    metric: str
    mode: Literal["max", "min"]
    seeds: list[int]
    parameters: list[Parameter]
    search: str
    scheduler: str | None
    command: str | None

    @property
    def sign(self) -> int:
        """1 if high values of the metric are good, -1 if low ones are."""
        return 1 if self.mode == "max" else -1

    @property
    def kl_unit(self) -> str:
        """Of `Trial.kl`."""
        return _KL[self.kind][2] if self.kind in _KL else "nats"


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of one configuration with one seed. What it did not report is None."""

    folder: Path
    number: int
    values: Mapping[str, object]
    seed: int
    state: State
    error: str | None
    value: float | None
    """Of the metric: the summary's, else the last one while training."""
    kl: float | None
    """To the reference, in `Plan.kl_unit`."""
    length: float | None
    """Of its answers, in tokens."""
    step: int | None
    """The last one in its metrics.jsonl."""
    reached: float | None
    """`value`, or what held-out pairs said last while it trained: what an unfinished trial has to show."""
    curve: Curve
    """Step and value of `curve_of`."""
    curve_of: str | None
    """The metric as metrics.jsonl has it, or what comes closest; None if nothing does."""
    reported: frozenset[str]
    """Names of all numbers in its summary and its metrics.jsonl."""


@dataclass(frozen=True, slots=True)
class SweepFiles:
    """All that was read; `cost` is the sweep's summary.json, empty until the sweep has ended."""

    path: Path
    plan: Plan
    trials: list[Trial]
    cost: Mapping[str, object]
    unknown: list[str]
    """Folders of runs that were ended before they could say what they are."""


def read_files(path: Path) -> SweepFiles:
    """Reads the sweep in `path`; a `UserError` names what is no sweep, or the file that is broken."""
    if not (path / "sweep.json").is_file():
        raise UserError(f"{path} holds no sweep (no sweep.json); give the folder of one, such as runs/sweep-NAME")
    try:
        plan, cost = _plan(read_json(path / "sweep.json")), read_json(path / "summary.json")
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{path}: a file of the sweep cannot be read ({_said(error)}). Repair or remove it.") from error
    folders = sorted(folder for folder in (path / "runs").glob("*") if folder.is_dir())
    known = [folder for folder in folders if (folder / "trial.json").is_file()]
    trials = sorted((_read_trial(folder, plan) for folder in known), key=lambda trial: trial.number)
    return SweepFiles(path, plan, trials, cost, [folder.name for folder in folders if folder not in known])


def step_name(metric: str) -> str:
    """The name under which metrics.jsonl has `metric`: figures of the held-out pairs are `heldout/NAME` there."""
    return f"heldout/{metric.removeprefix('heldout_')}" if metric.startswith("heldout_") else metric


def _plan(told: Mapping[str, object]) -> Plan:
    seeds, space, mode, scheduler = told["seeds"], told["space"], told["mode"], told.get("scheduler")
    if mode not in ("max", "min"):
        raise ValueError(f"sweep.json: mode is {mode}, and must be max or min")
    if not isinstance(space, Mapping) or not space:
        raise ValueError("sweep.json: space must be an object that names what varies")
    if not isinstance(seeds, list) or not seeds:
        raise ValueError("sweep.json: seeds must be a list of numbers")
    command = told.get("command")
    return Plan(
        name=str(told["name"]),
        kind=str(told["kind"]),
        recipe=str(told["recipe"]),
        metric=str(told["metric"]),
        mode="max" if mode == "max" else "min",
        seeds=[int(str(seed)) for seed in seeds],
        parameters=[_parameter(str(name), one) for name, one in space.items()],
        search=str(told.get("search", "random")),
        scheduler=None if scheduler is None else str(scheduler),
        command=None if command is None else str(command),
    )


def _parameter(name: str, told: object) -> Parameter:
    if not isinstance(told, Mapping):
        raise ValueError(f"sweep.json: space {name} must be an object")
    kind, values = str(told["type"]), told.get("values")
    if not isinstance(values, list):
        return Parameter(name, kind, [], (float(told["low"]), float(told["high"])))
    numbers = [found for value in values if (found := _as_number(value)) is not None]
    ends = (min(numbers), max(numbers)) if numbers and len(numbers) == len(values) else None
    return Parameter(name, kind, values, ends)


def _as_number(value: object) -> float | None:
    """Also of a text: YAML takes `1e-4` for one, and the config makes it a number."""
    if not isinstance(value, str):
        return number({"value": value}, "value")
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def _read_trial(folder: Path, plan: Plan) -> Trial:
    try:
        told, summary = read_json(folder / "trial.json"), read_json(folder / "summary.json")
        return _trial(folder, plan, told, summary, read_lines(folder / "metrics.jsonl"))
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(
            f"{folder}: a file of the trial cannot be read ({_said(error)}). Repair or remove it."
        ) from error


def _trial(
    folder: Path,
    plan: Plan,
    told: Mapping[str, object],
    summary: Mapping[str, object],
    records: list[dict[str, object]],
) -> Trial:
    values, state, error = told["values"], told["state"], told.get("error")
    if not isinstance(values, Mapping):
        raise ValueError("trial.json: values must be an object")
    if state not in get_args(State):
        raise ValueError(f"trial.json: state is {state}, and must be one of {', '.join(get_args(State))}")
    figure, per_step, _ = _KL.get(plan.kind, (None, None, None))
    steps = [step for record in records if (step := number(record, "step")) is not None]
    names = {key for found in (summary, *records) for key in found}
    known = frozenset(key for key in names if number(summary, key) is not None or latest(records, key) is not None)
    final = _first(summary, plan.metric, records, plan.metric)
    candidates = (plan.metric, step_name(plan.metric), _CLOSEST.get(plan.metric, plan.metric))
    curve_of = next((name for name in candidates if latest(records, name) is not None), None)
    curve = [] if curve_of is None else [(number(record, "step"), number(record, curve_of)) for record in records]
    return Trial(
        folder=folder,
        number=int(str(told["number"])),
        values={parameter.name: values[parameter.name] for parameter in plan.parameters},
        seed=int(str(told["seed"])),
        state=next(known for known in get_args(State) if known == state),
        error=None if error is None else str(error),
        value=final,
        kl=_first(summary, figure, records, per_step),
        length=_first(summary, "length_after", records, m.LENGTH_MEAN),
        step=int(steps[-1]) if steps else None,
        reached=latest(records, step_name(plan.metric)) if final is None else final,
        curve=[(step, value) for step, value in curve if step is not None and value is not None],
        curve_of=curve_of,
        reported=known,
    )


def _first(
    summary: Mapping[str, object], figure: str | None, records: list[dict[str, object]], per_step: str | None
) -> float | None:
    """The summary's number; else the last of the steps."""
    found = None if figure is None else number(summary, figure)
    return latest(records, per_step) if found is None and per_step is not None else found


def _said(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error)
