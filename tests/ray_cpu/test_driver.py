"""What a driver does about controllers that are lost: real actors, which do nothing but die or come to an end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import ray

from rlhf_ray.actors import driver
from rlhf_ray.actors.driver import LOSSES, _Controllers
from rlhf_ray.cluster import connected
from rlhf_ray.config import PlacementConfig
from rlhf_ray.errors import LostError, RunError
from rlhf_ray.rundir.lines import read_lines
from rlhf_ray.tags import processes, run_id, tags
from tests.short_lived import Controller


@pytest.fixture(scope="module")
def ray_is_up() -> Iterator[None]:
    with connected(PlacementConfig(), cpus=2):
        yield


Run = Callable[..., dict[str, Any]]


@pytest.fixture
def told() -> list[dict[str, object]]:
    """What the live view heard."""
    return []


@pytest.fixture
def run(ray_is_up: None, tmp_path: Path, told: list[dict[str, object]]) -> Run:
    """Follows controllers that do what is said, one after another."""

    def follow(*does: str) -> dict[str, Any]:
        def make(number: int) -> Any:
            options = {"num_cpus": 0, "runtime_env": {"env_vars": tags(run_id(tmp_path), "controller")}}
            kind: Any = ray.remote(Controller)
            return kind.options(**options, max_concurrency=4).remote(does[number], tmp_path, number)

        return _Controllers(make, tmp_path, 60.0, told.extend).run()

    return follow


def _sentences(run_dir: Path) -> Sequence[object]:
    return [event["sentence"] for event in read_lines(run_dir / "events.jsonl") if event["kind"] == "revived"]


def test_another_controller_goes_on(run: Run, tmp_path: Path, told: list[dict[str, object]]) -> None:
    """Of each everything is shown."""
    assert run("dies", "loses_an_inbox", "finishes") == {"number": 2}
    assert _sentences(tmp_path) == [
        f"{what}. Another controller goes on at the newest commit: nothing was lost."
        for what in ("The controller died", "the inbox of policy died")
    ]
    assert [record["number"] for record in told if record["number"] in (0, 2)][-1] == 2


def test_a_controller_that_hangs_is_replaced(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if Ray cannot tell it to end, and it would keep the run to itself."""
    monkeypatch.setattr(driver, "_SILENT_S", 5.0)
    monkeypatch.setattr(ray, "kill", lambda actor: None)
    monkeypatch.setattr(driver, "end_stopped", lambda *_: [])
    assert run("hangs", "finishes") == {"number": 1}
    assert len([process for process in processes(run_id(tmp_path)) if process.role == "controller"]) == 1  # the second
    assert _sentences(tmp_path)[0] == (
        "The controller did not answer in time. Another controller goes on at the newest commit: nothing was lost."
    )


def test_one_that_is_stopped_is_not_waited_for(run: Run, tmp_path: Path) -> None:
    assert run("hangs", "finishes") == {"number": 1}
    assert [str(each).partition(".")[0] for each in _sentences(tmp_path)] == ["The controller died"]


def test_losses_in_turn_are_given_up(run: Run, tmp_path: Path) -> None:
    """The driver's supervisor takes it from there."""
    with pytest.raises(LostError, match=f"The controller died, {LOSSES} times without a commit in between"):
        run(*["dies"] * LOSSES, "finishes")
    assert len(_sentences(tmp_path)) == LOSSES - 1


def test_losses_with_commits_in_between_are_not(run: Run) -> None:
    assert run("dies", *["commits_and_dies"] * LOSSES, "dies", "finishes") == {"number": LOSSES + 2}


def test_a_fault_is_no_loss(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="reward-0 did not finish"):
        run("stalls", "finishes")
    assert not (tmp_path / "events.jsonl").exists()


def test_an_interrupt_lets_the_run_end_whoever_controls_it_then(
    run: Run, tmp_path: Path, told: list[dict[str, object]]
) -> None:
    def interrupt() -> None:
        while not told:
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        run("dies_when_told_to_stop", "waits_for_stop")
    assert len(_sentences(tmp_path)) == 1
