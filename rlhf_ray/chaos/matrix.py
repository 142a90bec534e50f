"""The whole proof: a run that is left alone, and for each seed one that a monkey works on; then the oracles."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_ray.chaos.monkey import Monkey, Strike
from rlhf_ray.chaos.oracles import broken, exactly_once, good_commits, no_orphans, same_bits, true_weights
from rlhf_ray.chaos.plan import Cell, Lane, config, steps_for
from rlhf_ray.chaos.runs import GONE_S, Wait, address, cluster, ended, started
from rlhf_ray.config import RunConfig
from rlhf_ray.config_file import dump_config
from rlhf_ray.errors import RunError

_START_S, _STEP_S = 300.0, 10.0
"""The most that a run which is left alone may take to start, and for a step."""


@dataclass
class Outcome:
    """Of one seed. `violations` are sentences by promise; the seed holds if there are none."""

    seed: int
    algorithm: str
    strikes: list[Strike] = field(default_factory=list)
    violations: dict[str, list[str]] = field(default_factory=dict)
    seconds_quiet: float = 0.0
    seconds_killed: float = 0.0
    steps: int = 0


def run_seed(
    out: Path, seed: int, plan: Sequence[Cell], lane: Lane, limit_s: float, tell: Callable[[str], None]
) -> Outcome:
    """What the monkey of `seed` did, and what the oracles say. The run that is left alone is made for the first seed of
    an algorithm and length; it is the same for all."""
    run = config(out, seed, lane, steps_for(plan))
    outcome = Outcome(seed, run.algorithm.type, steps=run.train.num_steps)
    folder = out / run.name
    quiet, killed = folder / f"quiet-{run.train.num_steps}", folder / f"killed-{seed}"
    length = f"{run.train.num_steps} steps of {run.algorithm.type}"
    (folder / "run.yaml").write_text(dump_config(run), encoding="utf-8")
    with cluster(), address():
        if not quiet.exists():
            began = time.monotonic()
            with started(folder, quiet) as process:
                ended(process, quiet, _START_S + _STEP_S * run.train.num_steps)
            outcome.seconds_quiet = time.monotonic() - began
            tell(f"{length}, left alone, in {outcome.seconds_quiet:.0f} s")
        began = time.monotonic()
        try:
            with started(folder, killed) as process:
                wait = Wait(killed.name, limit_s, lambda: process.poll() is not None)
                for strike in Monkey(killed, seed, wait).work(plan):
                    outcome.strikes.append(strike)
                    cell = strike.cell
                    tell(
                        f"seed {seed}: {len(outcome.strikes)}/{len(plan)} step {strike.step} {cell.role} in "
                        f"{cell.phase}, {cell.sign.name}: back after {strike.back_s:.1f} s"
                    )
                ended(process, killed)
        except RunError as error:
            outcome.violations["P1"] = [str(error)]
        outcome.seconds_killed = time.monotonic() - began
        tell(f"seed {seed}: {length}, {len(outcome.strikes)} strikes, in {outcome.seconds_killed:.0f} s")
        time.sleep(GONE_S)
        outcome.violations |= _judged(run, quiet, killed)
    return outcome


def _judged(run: RunConfig, quiet: Path, killed: Path) -> dict[str, list[str]]:
    return broken(
        P2=exactly_once(run, quiet, killed),
        P3=same_bits(quiet, killed),
        P4=good_commits(killed),
        P9=true_weights(killed),
        P11=no_orphans(killed),
    )
