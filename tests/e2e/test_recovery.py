"""Every kind of actor is killed in the middle of a run: the run goes on, and ends with the bits of one left alone."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.util.state import list_actors

from rlhf_ray import metrics as names
from rlhf_ray.cluster import connected, launch
from rlhf_ray.config import PlacementConfig, RunConfig
from rlhf_ray.errors import StallError
from rlhf_ray.models.tiny import tiny_model
from rlhf_ray.rundir.commit import file_sha256
from rlhf_ray.rundir.rollout_table import read_rollouts
from rlhf_ray.tags import run_id
from tests.builders import run_config

STEPS = 13
PATIENCE_S = 180
TRAINER = "TrainController"
RANK = "RayTrainWorker"


@dataclass(frozen=True)
class Kill:
    """When, whom (an actor's name, or a class of Ray Train's, whose first one it is), and how."""

    step: int
    phase: str
    victim: str
    sign: signal.Signals = signal.SIGKILL


KILLS = [
    Kill(2, "generate", "rollout-0"),
    Kill(3, "update", RANK),
    Kill(5, "push", "rollout-0"),
    Kill(6, "generate", "reward-0", signal.SIGSEGV),
    Kill(8, "push", RANK),
    Kill(9, "logprobs", "reference-0", signal.SIGSTOP),
    Kill(11, "logprobs", TRAINER),
]
"""No checkpoint is written before the end, so a group that is built again replays every update since the start."""


@dataclass(frozen=True)
class Runs:
    """A run that was left alone and one whose actors were killed, and what was killed."""

    quiet: Path
    killed: Path
    dead: list[Kill]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("recovery")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"say {i}"}) + "\n" for i in range(8)))
    config = run_config(
        tiny_model(folder / "tiny"),
        folder / "prompts.jsonl",
        train={"num_steps": STEPS, "checkpoint_every": STEPS},
        policy={"num_workers": 2},
        rollout={"max_concurrent": 1},  # what vLLM computes depends, in the last bits, on what it computes beside it
    )
    found = Runs(folder / "quiet", folder / "killed", [])
    with connected(PlacementConfig(), cpus=8):
        _launch(config, found.quiet)
        killer = threading.Thread(target=_kill, args=(found.killed, KILLS, found.dead))
        killer.start()
        _launch(config, found.killed)
        killer.join(60)
    yield found


def sleeps(prompt: str, response: str, reference: str | None) -> float:
    """A reward that does not come in time."""
    time.sleep(300)
    return 0.0


def test_a_stage_that_stalls_ends_the_run_with_the_stacks_of_all(runs: Runs) -> None:
    """The actor lives and says so, hence the watch leaves it alone."""
    folder = runs.quiet.parent
    source = {"type": "function", "path": "tests.e2e.test_recovery:sleeps", "timeout_s": 600}
    config = run_config(
        folder / "tiny",
        folder / "prompts.jsonl",
        rollout={"engine": "torch"},
        reward={"sources": [source]},
        train={"deadline_s": 40},
    )
    with (
        connected(PlacementConfig(), cpus=8),
        pytest.raises(StallError, match="reward-0 did not finish 'score' within 40 s"),
    ):
        launch(config, folder / "stalled", resume=False, command="tests/e2e")
    stalled, failed = _lines(folder / "stalled", "events.jsonl")[-2:]
    assert (stalled["kind"], failed["kind"]) == ("stalled", "failed")
    assert {"controller", "reward-0", "rollout-0", "reference-0", "rank 0 of policy"} <= stalled["stacks"].keys()
    assert "isolated.py" in stalled["stacks"]["reward-0"] and "_serve" in stalled["stacks"]["rank 0 of policy"]
    assert "This run failed" in (folder / "stalled" / "report.html").read_text()


def _launch(config: RunConfig, run: Path) -> None:
    assert launch(config, run, resume=False, command="tests/e2e")["finished"]


def _kill(run: Path, kills: list[Kill], dead: list[Kill]) -> None:
    controller, seen, deadline = None, 0, time.monotonic() + PATIENCE_S
    while controller is None and time.monotonic() < deadline:
        try:
            controller = ray.get_actor(f"controller-0:{run_id(run)}")
        except ValueError:
            time.sleep(0.1)
    for kill in kills:
        found: list[dict[str, Any]] = []
        while not any((one.get("step"), one.get("phase")) == (kill.step, kill.phase) for one in found):
            found = ray.get(controller.records_since.remote(seen), timeout=PATIENCE_S)
            seen = found[-1]["index"] if found else seen
            time.sleep(0.01)
        os.kill(_process(kill.victim, run_id(run)), kill.sign)
        dead.append(kill)


def _process(victim: str, run: str) -> int:
    address = ray.get_runtime_context().gcs_address  # there may be other clusters on this machine
    alive = list_actors(address=address, filters=[("state", "=", "ALIVE")], limit=1000)
    return next(int(one.pid) for one in alive if one.name == f"{victim}:{run}" or victim in one.class_name)


def _lines(run: Path, name: str) -> list[dict[str, Any]]:
    file = run / name
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_the_run_reaches_its_end_step_by_step(runs: Runs) -> None:
    assert runs.dead == KILLS
    assert [line["step"] for line in _lines(runs.killed, "metrics.jsonl")] == list(range(1, STEPS + 1))


def test_it_ends_with_the_bits_of_the_run_that_was_left_alone(runs: Runs) -> None:
    """Weights, the moments of Adam, the head of the critic: of replayed updates, and of answers sampled again."""
    states = [run / "checkpoints" / f"step-{STEPS:06d}" / "state" for run in (runs.quiet, runs.killed)]
    files = [sorted(file.relative_to(state) for file in state.rglob("*.safetensors")) for state in states]
    assert files[0] == files[1] and len(files[0]) == 4
    assert [file_sha256(states[0] / file) for file in files[0]] == [file_sha256(states[1] / file) for file in files[0]]


def test_ray_train_keeps_no_books_that_could_be_torn(runs: Runs) -> None:
    """It is told of no checkpoint, and each group has a new name: so it writes no snapshot, and reads none."""
    kept = [file.name for run in (runs.quiet, runs.killed) for file in (run / "ray_train").rglob("*") if file.is_file()]
    assert len(kept) > 4 and set(kept) == {".validate_storage_marker"}


def test_each_prompt_is_used_as_often_as_planned(runs: Runs) -> None:
    """Every answer once, with the tokens and the reward that it has in the run that was left alone."""
    for step in range(1, STEPS + 1):
        quiet, killed = (_answers(run, step) for run in (runs.quiet, runs.killed))
        assert len(quiet) == 8 and killed == quiet, step


def _answers(run: Path, step: int) -> dict[tuple[str, int], tuple[str, float]]:
    rows = read_rollouts(run / "rollouts" / f"step-{step:06d}.parquet")
    found = {(row["prompt_id"], row["sample_index"]): (row["response"], row["reward"]) for row in rows}
    assert len(found) == len(rows)
    return found


def test_what_the_engine_samples_from_is_what_the_learner_has(runs: Runs) -> None:
    lines = _lines(runs.killed, "metrics.jsonl")
    assert max(line[names.DRIFT_MEAN] for line in lines) < 1e-4
    assert max(line[names.FIRST_RATIO] for line in lines) < 1e-4


def test_the_events_say_who_was_missed(runs: Runs) -> None:
    """One that is back before it is asked again is not."""
    events = _lines(runs.killed, "events.jsonl")
    revived = {event["sentence"].partition(" died")[0] for event in events if event["kind"] == "revived"}
    assert "rollout-0" in revived
    (hung,) = [event["sentence"] for event in events if event["kind"] == "hung"]
    assert hung == "reference-0 was stopped by a signal for 2 s and was killed."
    assert not [event for event in events if event["kind"] in ("restart", "resume")]
