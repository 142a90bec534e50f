"""A new run that begins where another one was, with other values of its config."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from rlhf_ray.config import AnyConfig, PreferenceConfig, RunConfig
from rlhf_ray.config_file import dump_config, load_config
from rlhf_ray.errors import UserError
from rlhf_ray.rundir.commit import fork_commit, link, newest_first, newest_good
from rlhf_ray.rundir.journal import RunDirectory
from rlhf_ray.rundir.lines import read_lines

_BOOKS = ("metrics.jsonl", "spans.jsonl")


def fork(source: Path, target: Path, step: int | None, overrides: Sequence[str]) -> int:
    """Makes the run directory `target` from the commit of `source` at `step` (None: the newest) and returns that step.

    What was learned up to there comes along: metrics, rollouts, the evaluation before training. Files are hard links
    where there can be some. `UserError` if there is no such commit, if `target` exists, or if an override changes what
    the commit depends on.
    """
    if target.exists():
        raise UserError(f"{target} exists already: choose another run directory for the fork")
    before = load_config(source / "config.yaml", [])
    config = load_config(source / "config.yaml", overrides)
    _check(before, config)
    commit = _commit(source / "checkpoints", step)
    chosen = int(commit.name.removeprefix("step-"))
    manifest = {"forked_from": str(source.resolve()), "forked_at_step": chosen}
    unborn = target.with_name(f".tmp-fork-{target.name}")
    shutil.rmtree(unborn, ignore_errors=True)  # of a process that was killed here
    RunDirectory.create(unborn, dump_config(config), manifest)
    try:
        fork_commit(commit, unborn / "checkpoints")
    except ValueError as error:
        raise UserError(f"{error}; choose another --step") from None
    for name in _BOOKS:
        kept = [record for record in read_lines(source / name) if int(str(record["step"])) <= chosen]
        (unborn / name).write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
    tables = [path for path in (source / "rollouts").glob("step-*.parquet") if int(path.stem[5:]) <= chosen]
    for path in [*tables, *(source / "eval").glob("before.*")]:
        copy = unborn / path.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        link(path, copy)
    if (source / "data").is_dir():
        shutil.copytree(source / "data", unborn / "data", copy_function=link)
    os.rename(unborn, target)
    return chosen


def _commit(checkpoints: Path, step: int | None) -> Path:
    """That of `step`; the newest good one if None."""
    if step is None:
        newest, _ = newest_good(checkpoints)
        if newest is None:
            raise UserError(f"{checkpoints.parent} has no good checkpoint to begin from")
        return newest.path
    path = checkpoints / f"step-{step:06d}"
    if not path.is_dir():
        known = ", ".join(str(int(one.name.removeprefix("step-"))) for one in reversed(newest_first(checkpoints)))
        raise UserError(f"{checkpoints.parent} has no checkpoint of step {step}; choose --step from {known or 'none'}")
    return path


def _check(before: AnyConfig, after: AnyConfig) -> None:
    wanted = _kept(after)
    for key, value in _kept(before).items():
        if wanted.get(key) != value:
            raise UserError(f"{key}: a fork goes on with that of the run it comes from; leave it as it was")


def _kept(config: AnyConfig) -> dict[str, object]:
    """What a checkpoint depends on, by key."""
    kept: dict[str, object] = {"kind": config.kind, "model": config.model}
    if isinstance(config, RunConfig):
        adapters = {f"{role}.lora": learner.lora for role, learner in config.learners.items()}
        return kept | {"algorithm.type": config.algorithm.type} | adapters
    method = {"method.type": config.method.type} if isinstance(config, PreferenceConfig) else {}
    return kept | {"data": config.data, "lora": config.lora} | method
