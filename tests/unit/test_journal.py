"""The run directory: what is written, what survives a crash, what a resume drops."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_ray.errors import UserError
from rlhf_ray.rundir.commit import newest_good, unfinished
from rlhf_ray.rundir.journal import RunDirectory
from rlhf_ray.rundir.lines import append_line, read_lines
from rlhf_ray.rundir.rollout_table import SCHEMA, read_rollouts
from rlhf_ray.types import Message, Prompt, Rollout, Score


def make(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", "name: x\n", {"data": {"prompts": "abc"}})


def save(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(b"w")


def rollout(score: Score | None) -> Rollout:
    messages = (Message("system", "Be kind."), Message("user", "Hé?"))
    return Rollout(Prompt("p1", messages, (1,)), 2, (5, 6, 7), (-1.0,) * 3, "Hi", "length", 4, score)


def test_create_writes_config_and_manifest_and_refuses_an_existing_directory(tmp_path: Path) -> None:
    run = make(tmp_path)
    manifest = json.loads((run.path / "manifest.json").read_text())
    assert manifest["data"] == {"prompts": "abc"}
    assert {"python", "torch"} <= manifest["versions"].keys()
    assert manifest["hardware"]["cpu_cores"] >= 1 and manifest["command"]
    assert (run.path / "config.yaml").read_text() == "name: x\n"
    with pytest.raises(UserError, match=r"exists already.*--resume"):
        make(tmp_path)
    with pytest.raises(UserError, match="no run to continue"):
        RunDirectory.open(tmp_path)


def test_metrics_are_valid_json_even_when_they_are_not_finite(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.metrics(1, {"reward/mean": 0.5, "policy/loss": math.nan, "critic/loss": math.inf})
    run.close()
    text = (run.path / "metrics.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    assert json.loads(text) == {"step": 1, "reward/mean": 0.5, "policy/loss": None, "critic/loss": None}
    [event] = read_lines(run.path / "events.jsonl")
    assert event["kind"] == "non_finite_metric"
    assert event["values"] == {"policy/loss": "nan", "critic/loss": "inf"}
    assert list((run.path / "tensorboard").iterdir())


def test_tensorboard_has_the_same_tags(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    run = make(tmp_path)
    for step in (1, 2):
        run.metrics(step, {"reward/mean": step / 2, "kl/coef": math.nan})
    run.close()
    board = accumulator.EventAccumulator(str(run.path / "tensorboard"))
    board.Reload()
    assert board.Tags()["scalars"] == ["reward/mean"]
    assert [(point.step, point.value) for point in board.Scalars("reward/mean")] == [(1, 0.5), (2, 1.0)]


def test_open_goes_back_to_the_committed_step(tmp_path: Path) -> None:
    run = make(tmp_path)
    for step in (1, 2, 3):
        run.metrics(step, {"reward/mean": float(step)})
        run.rollouts(step, [rollout(None)])
        if step == 2:
            run.commit(step, {"cursor": 32}, save)
    run.event("fault", "rank 1 died")
    run.close()
    with (run.path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "rew')
    again = RunDirectory.open(run.path)
    assert again.committed is not None and again.committed.meta == {"cursor": 32, "reward_mean": 1.5}
    assert again.committed_step == 2
    assert [record["step"] for record in read_lines(again.path / "metrics.jsonl")] == [1, 2]
    assert [record["kind"] for record in read_lines(again.path / "events.jsonl")] == ["fault"]
    assert sorted(p.name for p in (again.path / "rollouts").iterdir()) == ["step-000001.parquet", "step-000002.parquet"]
    again.metrics(3, {"reward/mean": 3.0})
    again.close()
    assert [record["step"] for record in read_lines(again.path / "metrics.jsonl")] == [1, 2, 3]


def test_open_without_a_commit_starts_over_and_a_broken_line_is_an_error(tmp_path: Path) -> None:
    run = make(tmp_path)
    append_line(run.path / "metrics.jsonl", {"step": 1})
    assert RunDirectory.open(run.path).committed is None
    assert read_lines(run.path / "metrics.jsonl") == []
    (run.path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl line 2"):
        RunDirectory.open(run.path)


def test_a_damaged_checkpoint_is_an_event_and_its_step_can_be_committed_again(tmp_path: Path) -> None:
    run = make(tmp_path)
    for step in (5, 10):
        run.commit(step, {"step": step}, save)
    (run.path / "checkpoints" / "step-000010" / "weights.bin").write_bytes(b"x")
    again = RunDirectory.open(run.path)
    assert again.committed_step == 5
    [event] = read_lines(again.path / "events.jsonl")
    assert event["kind"] == "damaged_checkpoint" and "weights.bin" in str(event["sentence"])
    again.commit(10, {"step": 10}, save)
    assert RunDirectory.open(run.path).committed_step == 10


def test_commit_keeps_the_newest_checkpoints(tmp_path: Path) -> None:
    run = make(tmp_path)
    for step in (1, 2, 3):
        run.commit(step, {}, save)
    names = sorted(p.name for p in (run.path / "checkpoints").iterdir())
    assert names == ["latest", "step-000002", "step-000003"]


def test_rollouts_come_back_with_every_column(tmp_path: Path) -> None:
    run = make(tmp_path)
    scored, failed = Score(1.5, {"rm": 1.0, "length": 0.5}), Score(0.0, {}, "timeout")
    written = rollout(scored)
    run.rollouts(12, [written, rollout(failed), rollout(None)])
    run.evaluation("before", [rollout(scored)])
    rows = read_rollouts(run.path / "rollouts" / "step-000012.parquet")
    assert list(rows[0]) == SCHEMA.names
    assert rows[0] | {"messages": "", "breakdown": ""} == {
        "prompt_id": "p1",
        "sample_index": 2,
        "prompt": "Hé?",
        "messages": "",
        "response": "Hi",
        "finish_reason": "length",
        "policy_version": 4,
        "versions": "[[4, 3]]",
        "reward": 1.5,
        "breakdown": "",
        "error": None,
        "response_tokens": 3,
        "cost": 0.0,
        "prompt_ids": list(written.prompt.token_ids),
        "response_ids": list(written.response_ids),
        "rollout_logprobs": list(written.rollout_logprobs),
    }
    assert json.loads(str(rows[0]["breakdown"])) == {"rm": 1.0, "length": 0.5}
    assert json.loads(str(rows[0]["messages"]))[1] == {"role": "user", "content": "Hé?"}
    assert [row["reward"] for row in rows] == [1.5, None, None]
    assert rows[1]["error"] == "timeout"
    assert len(read_rollouts(run.path / "eval" / "before.parquet")) == 1


def test_the_live_records_are_bounded_and_their_index_grows_over_restarts(tmp_path: Path) -> None:
    run = make(tmp_path)
    for step in range(2100):
        run.phase(step, "generate")
    records = run.records_since(0)
    assert len(records) == 2000 and records[-1]["step"] == 2099
    indices = [record["index"] for record in records]
    assert indices == sorted(set(map(int, map(str, indices))))
    last = int(str(indices[-1]))
    assert run.records_since(last) == []
    again = RunDirectory.open(run.path)
    again.event("restart", "the controller came back")
    [event] = again.records_since(last)
    assert (event["type"], event["sentence"]) == ("event", "the controller came back")


def test_summary_is_replaced_whole_and_never_holds_nan(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.summary({"reward_gain": math.nan, "steps": 3})
    run.summary({"reward_gain": math.nan, "reward_gain_ci95": (0.1, math.inf), "path": run.path})
    summary = json.loads((run.path / "summary.json").read_text())
    assert summary == {"reward_gain": None, "reward_gain_ci95": [0.1, None], "path": str(run.path)}


def _beside(
    run: RunDirectory, step: int, waits: threading.Event, told: list[str], fault: Exception | None = None
) -> None:
    def written(folder: Path) -> None:
        assert waits.wait(10)
        if fault is not None:
            raise fault
        save(folder)

    def begin(folder: Path) -> Callable[[], None]:
        return lambda: written(folder)

    run.commit_beside(step, {"step": step}, begin, lambda path: told.append(path.name))


def test_a_commit_beside_others_is_there_when_it_is_settled(tmp_path: Path) -> None:
    run, waits, told = make(tmp_path), threading.Event(), list[str]()
    run.metrics(1, {"reward/mean": 2.0})
    _beside(run, 1, waits, told)
    run.metrics(2, {"reward/mean": 4.0})
    checkpoints = run.path / "checkpoints"
    assert unfinished(checkpoints) == "step-000001" and newest_good(checkpoints)[0] is None and told == []
    waits.set()
    run.settle()
    assert told == ["step-000001"] and run.committed_step == 1
    found = RunDirectory.open(run.path).committed
    assert found is not None and found.meta == {"step": 1, "reward_mean": 2.0}
    run.settle()  # nothing is under way


def test_what_a_dead_writer_left_is_forgotten(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.commit(1, {}, save)
    left = run.path / "checkpoints" / ".tmp-step-000002"
    left.mkdir()
    save(left)
    assert RunDirectory.open(run.path).committed_step == 1 and not left.exists()


def test_the_next_commit_waits_for_the_one_before(tmp_path: Path) -> None:
    run, first, told = make(tmp_path), threading.Event(), list[str]()
    _beside(run, 1, first, told)
    threading.Timer(0.2, first.set).start()
    _beside(run, 2, first, told)
    assert told[:1] == ["step-000001"]
    run.settle()
    assert told == ["step-000001", "step-000002"] and run.committed_step == 2


def test_a_commit_that_failed_is_an_error_at_the_next_one(tmp_path: Path) -> None:
    """And leaves nothing: no folder, no word to the learners."""
    run, told, now = make(tmp_path), list[str](), threading.Event()
    now.set()
    _beside(run, 1, now, told, OSError(28, "No space left on device"))
    with pytest.raises(OSError, match="No space left"):
        _beside(run, 2, now, told)
    assert told == [] and list((run.path / "checkpoints").iterdir()) == []
    _beside(run, 2, now, told)
    run.settle()
    assert told == ["step-000002"]
