"""Runs a sweep from its plan to its table: the cluster, what trials share, Ray Tune, and what is left in the folder."""

from __future__ import annotations

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
from rlhf_ray.sweep.sharing import cpus, make_shared, shared_roles, unshared

PLAN_FILE = "sweep.json"
_ENDING_S = 120  # a trial that is ended early ends its step first, and its process takes the next one


def run_sweep(plan: Plan, sweep_dir: Path, resume: bool, command: str) -> dict[str, Any]:
    """Runs the trials of `plan` that are not finished yet; returns what the sweep cost, also in `summary.json`.

    `UserError` before anything has started; `RunError` if no trial could finish or none reported the metric.
    """
    began = time.monotonic()
    shared, each = cpus(plan)
    needed = sum(shared.values()) + plan.config.concurrent * sum(each.values())
    if not resume:
        write_plan(plan, sweep_dir, command)
    with alone_in(sweep_dir), PeakMemory() as memory, connected(plan.base.placement, needed), _one_cluster():
        _check_room(plan)
        progress = _tune(plan, sweep_dir, resume, command)
    summary = {
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
    if sweep_dir.exists():
        raise UserError(f"{sweep_dir} exists already; go on with it by --resume, or choose another --out")
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
    """A `UserError` unless the sweep in `sweep_dir` is this one; only `concurrent` and the budget may differ."""
    file = sweep_dir / PLAN_FILE
    if not file.is_file():
        raise UserError(f"--resume: {sweep_dir} holds no sweep (no {PLAN_FILE}); start it without --resume")
    told = json.loads(file.read_text(encoding="utf-8"))
    mine = {"config": plan.config.model_dump(mode="json"), "base": plan.base.model_dump(mode="json")}
    for part, may_change in (("config", {"set", "concurrent", "budget_minutes"}), ("base", {"placement"})):
        changed = [key for key in mine[part] if mine[part][key] != told[part].get(key) and key not in may_change]
        if changed:
            raise UserError(
                f"--resume: {', '.join(changed)} differ from the sweep in {sweep_dir}; a resumed sweep may change "
                "concurrent, budget_minutes and placement. Start a new one with another --out"
            )


def _tune(plan: Plan, sweep_dir: Path, resume: bool, command: str) -> dict[str, object]:
    import ray

    from rlhf_ray.sweep.tuner import make_tuner, restore_tuner
    from rlhf_ray.sweep.watch import Watch

    shared = make_shared(plan, sweep_dir)
    watch = Watch(plan, shared)
    make = restore_tuner if resume else make_tuner
    tuner = make(plan, sweep_dir, command, shared, watch)
    try:
        with watch.view:
            results = tuner.fit()
    except KeyboardInterrupt:
        print("stopped; --resume goes on with what is not finished", flush=True)
        raise
    if watch.complaint is not None:
        raise RunError(watch.complaint)
    for actors in shared.actors.values():
        for actor in actors:
            ray.kill(actor)
    return {"trials": len(results), "failed": results.num_errors}


@contextmanager
def _one_cluster() -> Iterator[None]:
    """Ray Train's cleaner, which runs beside each trial, looks for a cluster by RAY_ADDRESS or by searching the
    machine, and removes workers if it hits upon another one. Tune hands to a trial only what it has listed."""
    import ray
    from ray.tune.execution.class_cache import ENV_VARS_TO_PROPAGATE

    settings = {
        "RAY_ADDRESS": ray.get_runtime_context().gcs_address,
        "TUNE_FUNCTION_THREAD_TIMEOUT_S": str(_ENDING_S),
        "RAY_AIR_NEW_OUTPUT": "0",  # which is silent at verbosity 0; the watch says what people want to know
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it would end a stopped sweep as if it had been finished
        "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths count from where the sweep was started
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    ENV_VARS_TO_PROPAGATE.update(settings)
    try:
        yield
    finally:
        ENV_VARS_TO_PROPAGATE.discard("RAY_ADDRESS")
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _check_room(plan: Plan) -> None:
    """A `UserError` if the cluster cannot hold so many trials at the same time."""
    import ray

    shared, each = cpus(plan)
    has = ray.cluster_resources().get("CPU", 0.0)
    free, one = has - sum(shared.values()), sum(each.values())
    most = int((free + 1e-6) // one) if one else plan.config.concurrent
    if most < plan.config.concurrent:
        parts = ", ".join(f"{role} {number:g}" for role, number in each.items())
        beside = f" beside {sum(shared.values()):g} that all share" if shared else ""
        raise UserError(
            f"concurrent = {plan.config.concurrent}: a trial asks for {one:g} CPUs ({parts}){beside}, and the cluster "
            f"has {has:g}, so it holds {max(0, most)} at a time; lower concurrent, or join a larger cluster with "
            "placement.address"
        )
