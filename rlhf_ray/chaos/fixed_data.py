"""Runs on fixed data, whose processes are killed at random moments, against the same runs left alone."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rlhf_ray.chaos.oracles import broken, good_commits, no_orphans, same_bits
from rlhf_ray.chaos.runs import GONE_S, Wait, address, cluster, ended, started
from rlhf_ray.config import AnyOfflineConfig, PreferenceConfig, RewardModelConfig
from rlhf_ray.config_file import dump_config
from rlhf_ray.errors import RunError
from rlhf_ray.models.tiny import tiny_model
from rlhf_ray.rundir.lines import read_lines
from rlhf_ray.tags import Process, processes, run_id, ticks_now

Kind = Literal["dpo", "reward"]
_TITLES = {
    "rank": "ray::RayTrainWorker",
    "Ray Train controller": "ray::TrainController",
    "supervising task": "ray::_supervise",
    "driver": "rlhf_ray.cli.main",
}
_ODDS = {"rank": 7, "Ray Train controller": 1, "supervising task": 1, "driver": 1}
_STEPS_A_KILL = 8
_STEP_S = 5.0
"""The most that a step of the run which is left alone may take."""
_POLL_S = 0.02
_UNLIKE = ("time/", "throughput/")


@dataclass(frozen=True, slots=True)
class Kill:
    """Whom, in which step the run was, and how long it took to write a step again."""

    role: str
    step: int
    back_s: float


def fixed_data_config(folder: Path, kind: Kind, kills: int) -> AnyOfflineConfig:
    """A run of a tiny model on the demo's feedback that is long enough."""
    base: dict[str, Any] = {
        "name": kind,
        "model": {"path": str(tiny_model(folder / "tiny"))},
        "data": {"path": "demo", "limit": 60, "max_tokens": 200},
        "train": {
            "batch_size": 4,
            "learning_rate": 1e-4,
            "cpus_per_worker": 0.5,
            "num_workers": 2,
            "max_steps": _STEPS_A_KILL * kills + 10,
            "checkpoint_every": 3,
            "max_restarts": 20,  # the kills between two commits are drawn, and may be more than a user would bear
        },
    }
    if kind == "reward":
        return RewardModelConfig.model_validate(base)
    method = {"type": "dpo", "adaptive_beta": {"type": "kl", "target_kl": 0.5}}
    return PreferenceConfig.model_validate({**base, "method": method, "lora": {"rank": 4}})


def kill_fixed_data_run(
    folder: Path, kind: Kind, kills: int, limit_s: float, tell: Callable[[str], None]
) -> tuple[list[Kill], dict[str, list[str]]]:
    """The kills and the broken promises of a run of `kind`; both runs stay in `folder`."""
    folder.mkdir(parents=True)
    config = fixed_data_config(folder, kind, kills)
    (folder / "run.yaml").write_text(dump_config(config), encoding="utf-8")
    quiet, killed = folder / f"quiet-{kind}", folder / f"killed-{kind}"
    done: list[Kill] = []
    violations: dict[str, list[str]] = {}
    with cluster(), address():
        with started(folder, quiet) as process:
            ended(process, quiet, limit_s + _STEP_S * _STEPS_A_KILL * kills)
        try:
            with started(folder, killed) as process:
                wait = Wait(killed.name, limit_s, lambda: process.poll() is not None)
                for kill in _kill(killed, random.Random(kills), kills, wait):
                    done.append(kill)
                    tell(f"{kind}: {len(done)}/{kills} {kill.role} after step {kill.step}: back in {kill.back_s:.1f} s")
                ended(process, killed)
        except RunError as error:
            violations["P1"] = [str(error)]
        time.sleep(GONE_S)
        violations |= broken(
            P2=_same_steps(quiet, killed),
            P3=same_bits(quiet, killed),
            P4=good_commits(killed),
            P11=no_orphans(killed),
        )
    return done, violations


def _kill(run_dir: Path, draw: random.Random, kills: int, wait: Wait) -> Iterator[Kill]:
    """Kills somebody after some more steps, a moment into the next one, and waits until a step is written again."""
    metrics = run_dir / "metrics.jsonl"
    for _ in range(kills):
        wait.again()
        _steps_later(metrics, draw.randint(1, 4), wait)
        time.sleep(draw.uniform(0, 0.2))
        role = draw.choices(list(_ODDS), list(_ODDS.values()))[0]
        if not _players(run_id(run_dir), role):  # it is being started just now
            role = "driver"
        victim, step = draw.choice(_players(run_id(run_dir), role)), _last_step(metrics)
        struck, began = ticks_now(), time.monotonic()
        os.kill(victim.pid, signal.SIGKILL)
        _written_again(run_dir, role, struck, wait)
        yield Kill(role, step, time.monotonic() - began)


def _steps_later(metrics: Path, steps: int, wait: Wait) -> None:
    last = _last_step(metrics) + steps
    wait.until(lambda: _last_step(metrics) >= last, f"step {last}", _POLL_S)


def _written_again(run_dir: Path, role: str, ticks: int, wait: Wait) -> None:
    """There is a successor of who was killed then, and a step was written after it had come."""
    wait.until(lambda: any(one.started >= ticks for one in _players(run_id(run_dir), role)), f"a new {role}", _POLL_S)
    came, metrics = time.time(), run_dir / "metrics.jsonl"
    wait.until(lambda: metrics.is_file() and metrics.stat().st_mtime > came, "a step", _POLL_S)


def _players(run: str, role: str) -> list[Process]:
    return [each for each in processes(run) if _TITLES[role] in each.title]


def _last_step(metrics: Path) -> int:
    try:
        return max((int(str(record.get("step", 0))) for record in read_lines(metrics)), default=0)
    except (OSError, ValueError):  # it is being replaced
        return 0


def _same_steps(quiet: Path, killed: Path) -> Iterator[str]:
    """P2: each step once, with the figures of the quiet run, which are of the rows that it took."""
    one, other = (
        [{k: v for k, v in record.items() if not k.startswith(_UNLIKE)} for record in read_lines(run / "metrics.jsonl")]
        for run in (quiet, killed)
    )
    if [record["step"] for record in one] != [record["step"] for record in other]:
        yield f"metrics.jsonl has {len(other)} lines instead of {len(one)}"
        return
    yield from (f"step {a['step']} has other figures" for a, b in zip(one, other, strict=True) if a != b)
