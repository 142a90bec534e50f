"""What must be true of a run whose processes were killed, given the same run left alone."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from rlhf_ray import metrics as names
from rlhf_ray.config import RunConfig
from rlhf_ray.rundir.commit import file_sha256, newest_first, newest_good, verify
from rlhf_ray.rundir.lines import read_lines
from rlhf_ray.rundir.rollout_table import read_rollouts
from rlhf_ray.tags import Process, processes, run_id

_DRIFT_NATS = 1e-4
_ENDING_S = 10.0
_OF_THE_CLUSTER = "ray::_AutoscalingCoordinatorActor"
"""Detached by Ray Train: one for all runs of a cluster, although the first one's environment is on it."""
_TRAINER = "state/trainer/trainer_state.json"
_OF_THE_CLOCK = re.compile("_runtime$|_per_second$|^train_loss$")
_UNLIKE = ("manifest.json",)
"""Of a commit: it has hashes, so it differs where a file does."""


def broken(**complaints: Iterable[str]) -> dict[str, list[str]]:
    """What oracles say, by promise, of those that were not kept."""
    found = {promise: list(sentences) for promise, sentences in complaints.items()}
    return {promise: sentences for promise, sentences in found.items() if sentences}


def exactly_once(config: RunConfig, quiet: Path, killed: Path) -> Iterator[str]:
    """P2: each answer of the plan once, with the tokens, the reward and the policy version of the quiet run."""
    yield from plan_kept(config, config.train.num_steps, killed)
    for step in range(1, config.train.num_steps + 1):
        tables = [_table(run, step) for run in (quiet, killed)]
        if all(table.is_file() for table in tables) and read_rollouts(tables[0]) != read_rollouts(tables[1]):
            yield f"step {step} learned from other answers than the quiet run"


def plan_kept(config: RunConfig, steps: int, killed: Path) -> Iterator[str]:
    """P2 without a quiet run: each of `steps` steps once, with as many answers as it should have, all different; and
    each prompt once before any comes again."""
    seen: list[str] = []
    for step in range(1, steps + 1):
        if not _table(killed, step).is_file():
            yield f"step {step} has no rollouts"
            continue
        ids = [(str(row["prompt_id"]), row["sample_index"]) for row in read_rollouts(_table(killed, step))]
        if len(set(ids)) != len(ids) or len(ids) != config.rollouts_per_step:
            asked = config.rollouts_per_step
            yield f"step {step} has {len(ids)} answers, {len(set(ids))} of them different, instead of {asked}"
        seen += dict.fromkeys(prompt for prompt, _ in ids)
    yield from _epochs(seen)
    found = [record["step"] for record in read_lines(killed / "metrics.jsonl")]
    if found != list(range(1, steps + 1)):
        yield f"metrics.jsonl has the steps {found[:3]} ... {found[-3:]}"


def _epochs(prompts: list[str]) -> Iterator[str]:
    """All of them in turn, and again."""
    size = max(1, len(set(prompts)))
    for start in range(0, len(prompts), size):
        epoch = prompts[start : start + size]
        if len(set(epoch)) != len(epoch):
            yield f"{len(epoch) - len(set(epoch))} prompts came again before all others had come"


def _table(run: Path, step: int) -> Path:
    return run / "rollouts" / f"step-{step:06d}.parquet"


def same_bits(quiet: Path, killed: Path) -> Iterator[str]:
    """P3: every file of the last commit, and all the state of the loop, as in the quiet run. Of a trainer's log the
    figures that depend on the clock, or on when its process began, are left out."""
    commits = [newest_good(run / "checkpoints")[0] for run in (quiet, killed)]
    if commits[0] is None or commits[1] is None:
        yield "there is no good commit"
        return
    if commits[0].meta != commits[1].meta:
        yield f"the loop's state differs: {json.dumps(commits[1].meta)[:200]}"
    hashes = [_hashes(commit.path) for commit in commits if commit]
    for name in sorted(hashes[0].keys() | hashes[1].keys()):
        if hashes[0].get(name) != hashes[1].get(name):
            yield f"{name} differs"


def _hashes(commit: Path) -> dict[str, str]:
    files = [file for file in sorted(commit.rglob("*")) if file.is_file() and file.name not in _UNLIKE]
    hashes = {file.relative_to(commit).as_posix(): file_sha256(file) for file in files}
    if (commit / _TRAINER).is_file():
        state = json.loads((commit / _TRAINER).read_text())
        for entry in state["log_history"]:
            for name in [name for name in entry if _OF_THE_CLOCK.search(name)]:
                del entry[name]
        hashes[_TRAINER] = json.dumps(state, sort_keys=True)
    return hashes


def good_commits(killed: Path) -> Iterator[str]:
    """P4: no commit that is named one is damaged."""
    for path in newest_first(killed / "checkpoints"):
        yield from (f"{path.name}: {problem}" for problem in verify(path))


def true_weights(killed: Path) -> Iterator[str]:
    """P9: what an engine samples from is what the learner has: the same log-probs of every token."""
    for record in read_lines(killed / "metrics.jsonl"):
        drift = record.get(names.DRIFT_MAX)
        if not isinstance(drift, float) or drift > _DRIFT_NATS:
            yield f"step {record['step']}: an engine's log-probs are {drift} nats from the learner's"


def no_orphans(killed: Path) -> Iterator[str]:
    """P11: no process of the run is left. A worker of Ray's ends when it has noticed that its node has ended."""
    limit = time.monotonic() + _ENDING_S
    while (left := _left(run_id(killed))) and time.monotonic() < limit:
        time.sleep(0.2)
    yield from (f"process {each.pid} ({each.role}) is left: {each.title[:60]}" for each in left)


def _left(run: str) -> list[Process]:
    return [each for each in processes(run) if not each.title.startswith(_OF_THE_CLUSTER)]
