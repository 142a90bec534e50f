"""Methods on equal terms: what each reached on the same held-out prompts for the same number of rollouts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from rlhf_ray import metrics as m
from rlhf_ray.errors import UserError
from rlhf_ray.evaluation.intervals import Interval, bootstrap, wilson_interval
from rlhf_ray.report.comparable import check_comparable
from rlhf_ray.report.finished import FinishedRun, PerStep, read_finished, reward_of
from rlhf_ray.rundir.lines import finite

_TIE = 1e-6  # of the larger reward: what float32 can tell apart
_SEED = 0
_NO_METHOD = ("seed", "name", "placement")  # a method is the same wherever it runs


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean and its 95 % interval."""

    value: float
    ci95: Interval


@dataclass(frozen=True, slots=True)
class Method:
    """Runs that differ in their seed only."""

    label: str
    runs: list[FinishedRun]


@dataclass(frozen=True, slots=True)
class Figures:
    """What a method reached, as means over its seeds."""

    label: str
    seeds: list[int]
    rollouts: int
    """Of each run."""
    reward: float
    """Held-out, after training."""
    gain: Estimate
    win_rate: Estimate | None
    """Of its answers against the baseline's to the same held-out prompts, ties half; None for the baseline itself."""
    kl_per_token: float
    """To the reference (k1, nats), of all held-out answers after training that could be scored."""
    truncated: float
    """Of the held-out answers after training."""
    tokens: float
    """Response tokens sampled in training."""
    seconds: float
    """Wall-clock time of training."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Methods in the order in which their runs were given, the baseline first."""

    methods: list[Method]
    figures: list[Figures]
    prompts: list[str]
    """Ids of the held-out prompts whose answers have a reward in all runs, before and after training."""
    left_out: int
    """Held-out prompts that have not."""
    lead: Estimate | None
    """The gain of the best method less that of the second best."""

    @property
    def runs(self) -> list[tuple[str, FinishedRun]]:
        """All runs with the label of their method."""
        return [(method.label, run) for method in self.methods for run in method.runs]

    @property
    def ranked(self) -> list[Figures]:
        """The figures, largest gain first."""
        return sorted(self.figures, key=lambda figures: -figures.gain.value)

    @property
    def resampled(self) -> str:
        """What the intervals are a bootstrap over."""
        return "held-out prompts and seeds" if len(self.runs) > len(self.methods) else "held-out prompts"


def compare_runs(paths: Sequence[Path]) -> Comparison:
    """Reads and compares finished runs; `UserError` for those that are not finished or not on equal terms."""
    if len(paths) < 2:
        raise UserError("compare needs at least two run directories, or --recipe with --algorithms")
    runs = [read_finished(path) for path in paths]
    check_comparable(runs)
    methods = by_method(runs)
    asked = {prompt for run in runs for prompt in (*run.before, *run.after)}
    prompts = [prompt for prompt in sorted(asked) if all(_scored(run, prompt) for run in runs)]
    if not prompts:
        raise UserError("no held-out prompt has an answer with a reward in all runs: there is nothing to compare")
    figures = [_figures(method, methods[0], prompts) for method in methods]
    left_out = max(len(asked), int(str(runs[0].setting("train", "eval_prompts")))) - len(prompts)
    return Comparison(methods, figures, prompts, left_out, _lead(methods, figures, prompts))


def by_method(runs: Sequence[FinishedRun]) -> list[Method]:
    """The runs in groups that differ in seed and name only, each under the type of its algorithm, or under the name of
    its first run where several have that type. `UserError` if two runs of a group have one seed: they are no sample."""
    groups: dict[str, list[FinishedRun]] = {}
    for run in runs:
        same = {key: value for key, value in run.files.config.items() if key not in _NO_METHOD}
        groups.setdefault(json.dumps(same, sort_keys=True, default=str), []).append(run)
    for group in groups.values():
        seeds: dict[int, FinishedRun] = {}
        for run in group:
            twin = seeds.setdefault(run.seed, run)
            if twin is not run:
                raise UserError(f"{twin.name} and {run.name} are one method with one seed ({run.seed}): leave one out")
    firsts = [group[0] for group in groups.values()]
    return [Method(_label(group[0], firsts), group) for group in groups.values()]


def resampled(values: Float[np.ndarray, "..."]) -> Estimate:
    """The mean of all values and its 95 % percentile interval, from resampling the last axis (prompts) and each of the
    others (seeds) as a whole. Of an axis of length 1 there is nothing to draw."""
    draw = np.random.default_rng([_SEED, 1])

    def mean(prompts: np.ndarray) -> float:
        drawn = values[..., prompts]
        for axis, seeds in enumerate(values.shape[:-1]):
            drawn = drawn.take(draw.integers(0, seeds, seeds), axis=axis)
        return float(drawn.mean())

    return Estimate(float(values.mean()), bootstrap(values.shape[-1], mean, _SEED))


def as_json(comparison: Comparison) -> str:
    """`comparison.json`: the figures, those of every run, and the curves."""
    body = {
        "baseline": comparison.methods[0].label,
        "heldout_prompts": len(comparison.prompts),
        "heldout_prompts_left_out": comparison.left_out,
        "intervals": f"95 %, bootstrap over {comparison.resampled}",
        "methods": [asdict(figures) for figures in comparison.figures],
        "lead_of_the_best": None if comparison.lead is None else asdict(comparison.lead),
        "runs": [
            {
                "method": label,
                "path": run.name,
                "seed": run.seed,
                "gain": float(gains(run, comparison.prompts).mean()),
                "curve": {name: curve.tolist() for name, curve in curves(run).items()},
            }
            for label, run in comparison.runs
        ],
    }
    return json.dumps(finite(body), indent=2) + "\n"


def curves(run: FinishedRun) -> Mapping[str, PerStep]:
    """Reward of the training rollouts of each step, and three ways to count what it cost."""
    return {
        "reward": run.per_step(m.REWARD_MEAN),
        "kl_per_token": run.per_step(m.KL_PER_TOKEN),
        "tokens": run.tokens,
        "seconds": run.seconds,
    }


def gains(run: FinishedRun, prompts: Sequence[str]) -> Float[np.ndarray, " prompts"]:
    """Reward after training less that before, by prompt."""
    found: Float[np.ndarray, " prompts"] = _rewards(run.after, prompts) - _rewards(run.before, prompts)
    return found


def _label(run: FinishedRun, all_runs: Sequence[FinishedRun]) -> str:
    if sum(other.algorithm == run.algorithm for other in all_runs) == 1:
        return run.algorithm
    folder = run.files.path.resolve().name
    return folder if sum(other.files.path.resolve().name == folder for other in all_runs) == 1 else run.name


def _figures(method: Method, baseline: Method, prompts: Sequence[str]) -> Figures:
    runs = method.runs
    wins = np.array([[_wins(run, other, prompts) for other in baseline.runs] for run in runs])
    return Figures(
        label=method.label,
        seeds=[run.seed for run in runs],
        rollouts=runs[0].rollouts,
        reward=float(np.mean([_rewards(run.after, prompts) for run in runs])),
        gain=resampled(np.array([gains(run, prompts) for run in runs])),
        win_rate=None if method is baseline else _win_rate(wins),
        kl_per_token=float(np.mean([run.figure("kl_to_reference_per_token") for run in runs])),
        truncated=float(np.mean([[run.after[key]["finish_reason"] == "length" for key in prompts] for run in runs])),
        tokens=float(np.mean([run.tokens[-1] for run in runs])),
        seconds=float(np.mean([run.seconds[-1] for run in runs])),
    )


def _win_rate(wins: Float[np.ndarray, "seeds others prompts"]) -> Estimate:
    """The mean. Where all are won, or all lost, there is nothing to resample: Wilson's interval over the prompts."""
    found = resampled(wins)
    if 0 < found.value < 1:
        return found
    prompts = wins.shape[-1]
    return Estimate(found.value, wilson_interval(found.value * prompts, prompts))


def _lead(methods: Sequence[Method], figures: Sequence[Figures], prompts: Sequence[str]) -> Estimate | None:
    if len(methods) < 2:
        return None
    order = sorted(range(len(methods)), key=lambda i: -figures[i].gain.value)
    best, second = (np.array([gains(run, prompts) for run in methods[i].runs]) for i in order[:2])
    return resampled(best[:, None] - second[None])


def _wins(run: FinishedRun, other: FinishedRun, prompts: Sequence[str]) -> list[float]:
    """1, 0.5 or 0 a prompt. One answer is a tie whatever its two rewards: a model's score of it depends a little on the
    batch that it was scored in."""
    found = []
    for prompt in prompts:
        mine, theirs = run.after[prompt], other.after[prompt]
        a, b = float(str(mine["reward"])), float(str(theirs["reward"]))
        tie = mine["response"] == theirs["response"] or abs(a - b) <= _TIE * max(abs(a), abs(b))
        found.append(0.5 if tie else float(a > b))
    return found


def _scored(run: FinishedRun, prompt: str) -> bool:
    return all(prompt in rows and reward_of(rows[prompt]) is not None for rows in (run.before, run.after))


def _rewards(rows: Mapping[str, Mapping[str, object]], prompts: Sequence[str]) -> Float[np.ndarray, " prompts"]:
    return np.array([float(str(rows[prompt]["reward"])) for prompt in prompts])
