"""Runs on fixed data for real: TRL's trainers with DeepSpeed in Ray Train on the tiny model."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file

from rlhf_ray.cluster import connected, launch_offline, run_offline
from rlhf_ray.config import PlacementConfig, PreferenceConfig, SFTConfig
from rlhf_ray.errors import RunError
from rlhf_ray.models.tiny import tiny_model
from rlhf_ray.offline import launch
from rlhf_ray.rundir.commit import verify
from rlhf_ray.rundir.lines import read_lines


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    with connected(PlacementConfig(), cpus=2):
        yield


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


def _preference(tiny: Path, train: dict[str, Any], **changes: Any) -> PreferenceConfig:
    base = {
        "name": "toy",
        "model": {"path": str(tiny)},
        "data": {"path": "demo", "limit": 60, "max_tokens": 200},
        "train": {"batch_size": 4, "learning_rate": 1e-3, "cpus_per_worker": 0.5, "num_workers": 2, **train},
    }
    return PreferenceConfig.model_validate({**base, **changes})


def _kill_a_worker_once(run_dir: Path, after_step: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sends SIGKILL to one rank of this process's cluster when the run has written `after_step`; tells which."""
    killed: list[int] = []
    follow = launch.follow

    def watching(running: Any, folder: Path, deadline_s: float) -> Iterator[list[dict[str, object]]]:
        monkeypatch.setattr(launch, "_POLL_S", 0.02)  # the steps of a tiny model take a tenth of a second
        for news in follow(running, folder, deadline_s):
            steps = [record["step"] for record in read_lines(run_dir / "metrics.jsonl")]
            if not killed and steps and max(steps) >= after_step:
                below = psutil.Process().children(recursive=True)
                ranks = [process for process in below if "RayTrainWorker" in " ".join(_words(process))]
                os.kill(ranks[-1].pid, signal.SIGKILL)
                killed.append(ranks[-1].pid)
            yield news

    monkeypatch.setattr("rlhf_ray.cluster.follow", watching)
    return killed


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_killed_worker_costs_time_and_nothing_else(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = {"max_steps": 14, "checkpoint_every": 3, "deepspeed": {"zero_stage": 2}}
    method = {"type": "dpo", "adaptive_beta": {"type": "kl", "target_kl": 0.5}}
    config = _preference(tiny, train, lora={"rank": 4}, method=method)
    calm = launch_offline(config, tmp_path / "calm", False, "test")
    with monkeypatch.context() as patch:
        killed = _kill_a_worker_once(tmp_path / "shot", 7, patch)
        shot = launch_offline(config, tmp_path / "shot", False, "test")

    assert killed, "no worker was found to kill"
    events = [record for record in read_lines(tmp_path / "shot" / "events.jsonl") if record["kind"] == "restart"]
    assert len(events) == 1
    assert re.search(r"lost.*checkpoint step-0000(06|09|12)", str(events[0]["sentence"]))
    assert calm["steps"] == shot["steps"] == 14 and shot["finished"]
    steps = [record["step"] for record in read_lines(tmp_path / "shot" / "metrics.jsonl")]
    assert sorted(set(steps)) == list(range(1, 15)) and len(steps) == len(set(steps))
    one, other = (_policy(tmp_path / name) for name in ("calm", "shot"))
    assert one.keys() == other.keys()
    for name, weight in one.items():
        torch.testing.assert_close(weight, other[name], rtol=1e-5, atol=1e-6, msg=name)
    assert not verify(tmp_path / "shot" / "checkpoints" / "step-000014")


def test_a_fault_of_a_worker_is_one_sentence_and_its_traceback_a_file(tiny: Path, tmp_path: Path) -> None:
    def damaged(config: Any, folder: Path, run_dir: Path) -> launch.TaskRun:
        (run_dir / "data" / "train.arrow").write_bytes(b"no table")
        return launch.TaskRun(config, folder, run_dir)

    config = _preference(tiny, {"max_steps": 1})
    with pytest.raises(RunError, match=r"worker 0: ArrowInvalid: .*the traceback is in .*failure-rank0\.txt"):
        run_offline(config, tmp_path / "run", False, "test", lambda news: None, start=damaged)
    traceback = (tmp_path / "run" / "failure-rank0.txt").read_text()
    assert "in read_table" in traceback


def _policy(run_dir: Path) -> dict[str, torch.Tensor]:
    (folder,) = (run_dir / "checkpoints").glob("step-000014/policy")
    return load_file(folder / "model.safetensors")


def test_sft_learns_stops_early_and_resumes(tiny: Path, tmp_path: Path) -> None:
    data = {"path": "demo", "limit": 60, "max_tokens": 200}
    train = {"batch_size": 4, "learning_rate": 2e-2, "cpus_per_worker": 0.5, "max_steps": 60, "eval_every": 2}
    config = SFTConfig.model_validate(
        {"name": "toy", "model": {"path": str(tiny)}, "data": data, "train": {**train, "patience": 1}}
    )
    summary = launch_offline(config, tmp_path / "run", False, "test")
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    losses = [record["heldout/loss"] for record in lines if "heldout/loss" in record]
    assert summary["finished"] and summary["steps"] < 60, "patience did not end a run with a huge learning rate"
    assert summary["heldout_loss"] == pytest.approx(min(losses), rel=1e-4), "the best weights were not restored"
    again = launch_offline(config, tmp_path / "run", True, "test")
    assert again["steps"] == summary["steps"]
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["finished"]
