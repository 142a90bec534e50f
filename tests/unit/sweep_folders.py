"""Folders as sweeps leave them, with the figures that a test asks for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlhf_ray.rundir.lines import append_line

BETA = {"method.beta": {"type": "grid", "values": [0.01, 0.1, 0.5]}}


def sweep_folder(folder: Path, space: Mapping[str, object] = BETA, **told: Any) -> Path:
    """A sweep in `folder`, which it returns, without trials yet: of DPO by its held-out accuracy over two seeds, or
    with what `told` lays over its sweep.json."""
    folder.mkdir(parents=True, exist_ok=True)
    plan = {
        "name": "dpo-beta",
        "kind": "preference",
        "recipe": "dpo.yaml",
        "metric": "heldout_accuracy",
        "mode": "max",
        "seeds": [0, 1],
        "space": space,
        "search": "grid",
        "scheduler": None,
        "command": "rlhf-ray sweep tune_configs/dpo_beta.yaml",
    }
    (folder / "sweep.json").write_text(json.dumps({**plan, **told}))
    return folder


def add_trial(
    folder: Path,
    values: Mapping[str, object],
    seed: int = 0,
    summary: Mapping[str, object] | None = None,
    steps: Sequence[Mapping[str, float]] = (),
    state: str = "finished",
    error: str | None = None,
) -> Path:
    """The next trial of the sweep in `folder`: its run directory, which it returns. Steps are numbered from 1."""
    number = len(list((folder / "runs").glob("*")))
    run = folder / "runs" / f"{number:05d}"
    run.mkdir(parents=True)
    told = {"number": number, "values": values, "seed": seed, "state": state, "error": error}
    (run / "trial.json").write_text(json.dumps(told))
    if summary is not None:
        (run / "summary.json").write_text(json.dumps(summary))
    for step, record in enumerate(steps, start=1):
        append_line(run / "metrics.jsonl", {"step": step, **record})
    return run


def add_seeds(folder: Path, beta: float, accuracies: Sequence[float], kl: float | None = None) -> None:
    """A finished trial for each accuracy, with seeds from 0."""
    known = {} if kl is None else {"heldout_kl": kl}
    for seed, accuracy in enumerate(accuracies):
        add_trial(folder, {"method.beta": beta}, seed, {"heldout_accuracy": accuracy, **known})


def online_folder(folder: Path) -> Path:
    """An online sweep in `folder`, which it returns, with everything that can happen: twelve configurations of three
    parameters with two seeds, of which one failed, two were stopped early and one is under way; with its cost."""
    space = {
        "algorithm.kl_coef": {"type": "grid", "values": [0.001, 0.03, 0.3]},
        "train.learning_rate": {"type": "log_uniform", "low": 1e-6, "high": 1e-4},
        "algorithm.type": {"type": "choice", "values": ["grpo", "rloo"]},
    }
    plan = {"kind": "online", "recipe": "grpo.yaml", "metric": "reward_after", "scheduler": "asha"}
    sweep_folder(folder, space, name="grpo-kl", search="random", **plan)
    for number in range(12):
        coef, rate = (0.001, 0.03, 0.3)[number % 3], 10 ** (-6 + number / 6)
        values = {
            "algorithm.kl_coef": coef,
            "train.learning_rate": rate,
            "algorithm.type": ("grpo", "rloo")[number % 2],
        }
        gain, kl = 0.2 + 0.1 * number - 0.3 * (coef > 0.1), 0.05 + 0.02 * number + 0.05 * (coef < 0.01)
        for seed in (0, 1):
            state = {5: "failed", 3: "stopped", 7: "stopped", 8: "running"}.get(number, "finished")
            done = {"finished": 6, "stopped": 2, "running": 4, "failed": 0}[state]
            noise = 0.04 * (-1) ** (seed + number)
            steps = [
                {
                    "reward/mean": gain * i / 6 + noise,
                    "kl/k1_per_token": kl * i / 6,
                    "response/length_mean": 60.0 - 2 * i,
                }
                for i in range(1, done + 1)
            ]
            summary = {"reward_after": gain + noise, "kl_to_reference_per_token": kl, "length_after": 40.0 + 3 * number}
            error = "reward-0: the reward model could not be read" if state == "failed" else None
            add_trial(folder, values, seed, summary if state == "finished" else None, steps, state, error)
    cost = {
        "seconds": 3725.0,
        "core_seconds": 7200.0,
        "peak_rss_gib": 9.5,
        "shared": ["rollout", "reward"],
        "not_shared": {"reference": "rollout.temperature varies, which its actors are made with"},
    }
    (folder / "summary.json").write_text(json.dumps(cost))
    return folder
