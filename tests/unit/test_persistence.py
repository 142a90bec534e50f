"""When a run is started again by itself, and when not. No cluster: what Ray would say is given."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_ray.config import RunConfig
from rlhf_ray.errors import RunError, UserError
from rlhf_ray.launching import recovery
from rlhf_ray.launching.recovery import persist
from tests.builders import run_config


class Runs:
    """Tries of a run: each raises what it is told, the last one ends well."""

    def __init__(self, folder: Path, *errors: Exception) -> None:
        self.folder, self.errors, self.resumed = folder, list(errors), list[bool]()

    def __call__(self, *, resume: bool) -> dict[str, object]:
        self.resumed.append(resume)
        self.folder.mkdir(exist_ok=True)
        (self.folder / "config.yaml").touch()
        if self.errors:
            raise self.errors.pop(0)
        return {"finished": True}


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setattr(recovery, "connected", lambda placement, cpus: contextlib.nullcontext())
    monkeypatch.setattr(recovery, "_alive", lambda: {"a"})
    monkeypatch.setattr(recovery, "_await_room", lambda config: None)
    monkeypatch.setattr(recovery, "_lost_actors", lambda: ["actor rollout-0:run"])
    monkeypatch.setattr(recovery, "_POLL_S", 0.01)
    monkeypatch.setattr(recovery, "_NOTICED_S", 0.05)
    return run_config(Path("model"))


def test_a_loss_costs_a_retry_and_leaves_its_reason(config: RunConfig, tmp_path: Path) -> None:
    runs = Runs(tmp_path / "run", RunError("rollout-0 died"), RunError("again"))
    assert persist(runs, config, runs.folder, False, 2) == {"finished": True}
    assert runs.resumed == [False, True, True]
    events = [json.loads(line) for line in (runs.folder / "events.jsonl").read_text().splitlines()]
    assert [event["kind"] for event in events] == ["restart", "restart"]
    assert events[1]["sentence"] == (
        "Lost actor rollout-0:run: again. The run goes on at its newest commit: retry 2 of at most 2."
    )


def test_retries_are_bounded(config: RunConfig, tmp_path: Path) -> None:
    runs = Runs(tmp_path / "run", *[RunError(f"loss {number}") for number in range(5)])
    with pytest.raises(RunError, match="loss 2"):
        persist(runs, config, runs.folder, False, 2)
    assert len(runs.resumed) == 3


@pytest.mark.parametrize("error", [UserError("a wrong key"), ValueError("a bug"), KeyboardInterrupt()])
def test_a_fault_of_config_or_code_is_raised_at_once(config: RunConfig, tmp_path: Path, error: Exception) -> None:
    runs = Runs(tmp_path / "run", error)
    with pytest.raises(type(error)):
        persist(runs, config, runs.folder, False, 3)
    assert len(runs.resumed) == 1


def test_a_failure_without_a_loss_is_a_fault(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recovery, "_lost_actors", list)
    runs = Runs(tmp_path / "run", RunError("reward-0 failed at 'score': division by zero"))
    with pytest.raises(RunError, match="division by zero"):
        persist(runs, config, runs.folder, False, 3)
    assert len(runs.resumed) == 1


def test_a_node_may_be_missed_a_little_later(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([{"a", "b"}, {"a", "b"}, {"a", "b"}])
    monkeypatch.setattr(recovery, "_alive", lambda: next(answers, {"a"}))
    monkeypatch.setattr(recovery, "_lost_actors", list)
    runs = Runs(tmp_path / "run", RunError("policy: connection reset by peer"))
    persist(runs, config, runs.folder, False, 1)
    assert "Lost node b: policy: connection reset by peer. The run" in (runs.folder / "events.jsonl").read_text()


def test_each_try_has_its_own_connection(config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    @contextlib.contextmanager
    def connected(placement: object, cpus: float) -> Iterator[None]:
        seen.append("up")
        yield
        seen.append("down")

    monkeypatch.setattr(recovery, "connected", connected)
    runs = Runs(tmp_path / "run", RunError("lost"))
    persist(runs, config, runs.folder, False, 1)
    assert seen == ["up", "down", "up", "down"]
