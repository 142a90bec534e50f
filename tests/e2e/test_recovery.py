"""A learner's worker is killed in the middle of a run: the run goes on, and what it learned is not lost."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

from rlhf_ray import metrics as names
from rlhf_ray.cluster import connected, launch
from rlhf_ray.config import PlacementConfig
from rlhf_ray.models.tiny import tiny_model
from tests.builders import run_config

STEPS = 14
KILL_AFTER = 4


def test_a_run_survives_the_death_of_its_policy_and_critic_workers(tmp_path: Path) -> None:
    """No checkpoint is written before the kill, so the rebuilt learners must replay every update since the start: the
    first log-probs after it agree with vLLM, which still holds the weights that were pushed before."""
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"say {i}"}) + "\n" for i in range(8)))
    config = run_config(
        tiny_model(tmp_path / "tiny"),
        tmp_path / "prompts.jsonl",
        train={"num_steps": STEPS, "checkpoint_every": STEPS},
    )
    run, killed = tmp_path / "run", list[int]()
    with connected(PlacementConfig(), cpus=8):
        killer = threading.Thread(target=_kill_learners, args=(run / "metrics.jsonl", killed))
        killer.start()
        summary = launch(config, run, resume=False, command="tests/e2e")
        killer.join(60)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(killed) == 2 and summary["finished"]
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert max(line[names.DRIFT_MEAN] for line in lines) < 1e-4
    assert max(line[names.FIRST_RATIO] for line in lines) < 1e-4


def _kill_learners(metrics: Path, killed: list[int]) -> None:
    import ray
    from ray.util.state import list_actors

    address = ray.get_runtime_context().gcs_address  # there may be other clusters on this machine
    while not metrics.exists() or len(metrics.read_text().splitlines()) < KILL_AFTER:
        time.sleep(0.05)
    workers = list_actors(
        address=address, filters=[("class_name", "=", "RayTrainWorker"), ("state", "=", "ALIVE")], limit=100
    )
    for worker in workers:
        os.kill(worker.pid, signal.SIGKILL)
        killed.append(worker.pid)
