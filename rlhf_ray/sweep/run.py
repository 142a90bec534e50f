"""Runs a sweep from its plan to its table: the cluster, what trials share, Ray Tune, and what is left in the folder."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlhf_ray.cluster import connected
from rlhf_ray.errors import RunError, UserError
from rlhf_ray.evaluation.memory import PeakMemory
from rlhf_ray.resume import alone_in
from rlhf_ray.rundir.commit import replace_file
from rlhf_ray.sweep.plan import Plan
from rlhf_ray.sweep.sharing import check_room, demands, make_shared, shared_roles, unshared

PLAN_FILE = "sweep.json"
_ENDING_S = 120  # a trial that is ended early ends its step first, and its process takes the next one


def run_sweep(plan: Plan, sweep_dir: Path, resume: bool, command: str) -> dict[str, Any]:
    """Runs the trials of `plan` that are not finished yet; returns what the sweep cost, also in `summary.json`.

    `UserError` before anything has started; `RunError` if a trial ends without the metric. Failed trials are counted.
    """
    began = time.monotonic()
    needed = next(demand.total(plan.config.concurrent) for demand in demands(plan) if demand.unit == "CPUs")
    with PeakMemory() as memory, connected(plan.base.placement, needed), _environment():
        import ray

        has = ray.cluster_resources()
        memory_gib = has.get("memory", 0.0) / 2**30
        check_room(plan, {"CPUs": has.get("CPU", 0.0), "GPUs": has.get("GPU", 0.0), "GiB of memory": memory_gib})
        if not resume:
            write_plan(plan, sweep_dir, command)
        with alone_in(sweep_dir):
            progress = _tune(plan, sweep_dir, resume, command)
    summary = {
        "resumed": resume,
        "seconds": time.monotonic() - began,
        "peak_rss_gib": memory.peak_gib,
        "core_seconds": memory.core_seconds,
        "shared": shared_roles(plan),
        "not_shared": unshared(plan),
        **progress,
        "command": command,
    }
    replace_file(sweep_dir / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def write_plan(plan: Plan, sweep_dir: Path, command: str) -> None:
    """What is swept, for the report and for a resumed sweep."""
    config = plan.config
    sweep_dir.mkdir(parents=True)
    space = {
        path: {"type": one.type, "values": list(one.values)}
        if one.values is not None
        else {"type": one.type, "low": one.ends[0], "high": one.ends[1]}
        for path, one in config.space.items()
    }
    grids = all(one.grid is not None for one in config.space.values())
    told = {
        "name": config.name,
        "kind": plan.base.kind,
        "recipe": config.recipe,
        "metric": config.metric,
        "mode": config.mode,
        "seeds": plan.seeds,
        "space": space,
        "search": "grid" if grids else config.search,
        "scheduler": None if config.scheduler is None else config.scheduler.type,
        "command": command,
        "config": config.model_dump(mode="json"),
        "base": plan.base.model_dump(mode="json"),
    }
    replace_file(sweep_dir / PLAN_FILE, json.dumps(told, indent=2) + "\n")


def check_same(plan: Plan, sweep_dir: Path) -> None:
    """A `UserError` unless the sweep in `sweep_dir` is this one; only its place may differ."""
    file = sweep_dir / PLAN_FILE
    if not file.is_file():
        raise UserError(f"--resume: {sweep_dir} holds no sweep (no {PLAN_FILE}); start it without --resume")
    told = json.loads(file.read_text(encoding="utf-8"))
    mine = {"config": plan.config.model_dump(mode="json"), "base": plan.base.model_dump(mode="json")}
    for part, may_change in (("config", {"set"}), ("base", {"placement"})):
        changed = [key for key in mine[part] if mine[part][key] != told[part].get(key) and key not in may_change]
        if changed:
            raise UserError(
                f"--resume: {', '.join(changed)} differ from the sweep in {sweep_dir}; a resumed sweep may change "
                "placement only. Start a new one with another --out"
            )


def _tune(plan: Plan, sweep_dir: Path, resume: bool, command: str) -> dict[str, object]:
    import ray

    from rlhf_ray.sweep.tuner import make_tuner, restore_tuner
    from rlhf_ray.sweep.watch import Watch

    shared = make_shared(plan, sweep_dir)
    watch = Watch(plan, shared)
    try:
        if resume:
            tuner = restore_tuner(plan, sweep_dir, command, shared)
        else:
            tuner = make_tuner(plan, sweep_dir, command, shared, watch)
        with watch.view:
            results = tuner.fit()
    except KeyboardInterrupt:
        print("stopped; --resume goes on with what is not finished", flush=True)
        raise
    finally:
        for actor in itertools.chain(*shared.actors.values()):
            ray.kill(actor)
    if watch.complaint is not None:
        raise RunError(watch.complaint)
    return {"trials": len(results), "failed": results.num_errors}


@contextmanager
def _environment() -> Iterator[None]:
    """Inside, Tune and the processes of its trials, to which it hands only what it has listed, have these settings."""
    import ray
    from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE

    settings = {
        # Ray Train's cleaner looks for its cluster by this or by searching the machine, and removes the workers of a
        # trial if it hits upon another one.
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "TUNE_FUNCTION_THREAD_TIMEOUT_S": str(_ENDING_S),
        "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # figures of a summary are reported at a trial's end only
        "RAY_AIR_NEW_OUTPUT": "0",  # which is silent at verbosity 0; the watch says what people want to know
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it would end a stopped sweep as if it had been finished
        "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths count from where the sweep was started
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    listed = settings.keys() - ENV_VARS_TO_PROPAGATE
    ENV_VARS_TO_PROPAGATE.update(listed)
    try:
        yield
    finally:
        ENV_VARS_TO_PROPAGATE.difference_update(listed)
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
