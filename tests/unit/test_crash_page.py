"""The page of a run that failed: the cause before its consequences, what is lost, what to do."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray.report.crash import crash
from rlhf_ray.report.files import read_run
from rlhf_ray.report.page import write_report
from rlhf_ray.rundir.journal import RunDirectory

COMMAND = "rlhf-ray train ppo.yaml --run-dir runs/ppo"
NO_SPACE = "policy failed at 'save': rank 0: OSError: [Errno 28] No space left on device"


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", "kind: online\n", {"command": COMMAND})


def told(run: RunDirectory, *events: tuple[str, str]) -> dict[str, str]:
    for kind, sentence in events:
        run.event(kind, sentence)
    return dict(crash(read_run(run.path)))


def committed(run: RunDirectory, step: int) -> None:
    run.commit(step, {"step": step}, lambda folder: (folder / "weights").touch())


def test_the_first_fault_comes_before_what_ended_the_run(run: RunDirectory) -> None:
    for step in range(1, 8):
        run.metrics(step, {"reward/mean": 0.5})
        if step == 5:
            committed(run, step)
    run.phase(8, "update")
    found = told(
        run,
        ("data", "2 rows were dropped."),
        ("hung", "reward-0 did not answer for 15 s and was killed."),
        ("failed", f"{NO_SPACE}\nTraceback ..."),
    )
    assert found == {
        "What failed first": "reward-0 did not answer for 15 s and was killed.",
        "What ended the run": NO_SPACE,
        "What it was doing": "step 8, update",
        "Deaths, hangs and restarts before": "1",
        "What is lost": "No prompt and no answer. step-000005 is whole; 2 steps after it will be done again, with the "
        "same prompts.",
        "What to do": f"Free some disk, or lower train.keep_checkpoints; then resume. Resume with: {COMMAND} --resume",
    }


def test_faults_that_were_survived_before_the_last_start_are_not_the_cause(run: RunDirectory) -> None:
    found = told(
        run, ("lost", "Lost: the controller died"), ("resume", "Continuing after step 2."), ("failed", "a bug")
    )
    assert found["What failed first"] == "a bug" and "What ended the run" not in found
    assert "There is no checkpoint yet: 0 steps will be done again" in found["What is lost"]


def test_faults_that_a_later_step_has_survived_are_not_the_cause(run: RunDirectory) -> None:
    run.event("hung", "reward-0 did not answer for 15 s and was killed.")
    run.spans(3, {"policy": [(time.time() - 1, time.time())]})
    run.event("hung", "reward-1 did not answer for 15 s and was killed.")
    found = told(run, ("failed", "a bug"))
    assert found["What failed first"].startswith("reward-1") and found["Deaths, hangs and restarts before"] == "2"


@pytest.mark.parametrize("events", [[], [("revived", "rollout-0 died and was started again.")]])
def test_a_run_that_goes_on_has_not_failed(run: RunDirectory, events: list[tuple[str, str]]) -> None:
    assert told(run, *events) == {}


def test_a_run_that_reached_its_end_has_not_failed(run: RunDirectory) -> None:
    run.summary({"finished": True})
    assert told(run, ("lost", "Lost: the controller died")) == {}


@pytest.mark.parametrize(
    ("cause", "advice"),
    [
        ("CUDA out of memory", "policy.microbatch_tokens"),
        ("all 8 rollouts of the step failed to be scored", "Mend the reward source"),
        ("all 8 rollouts of the step failed to be scored; the first: MemoryError", "Mend the reward source"),
        (
            "The driver was stopped by a signal for 2 s and was killed: try 4 of 4 without a commit.",
            "somebody had stopped it",
        ),
        ("The driver was ended by SIGKILL: try 4 of 4 without a commit in between.", "takes too much memory"),
        ("there is no room for this maintenance", "names your code or your data"),
        ("policy: ranks [1] did not answer 'update' within 600 s", "train.deadline_s"),
        ("ZeroDivisionError: division by zero", "names your code or your data"),
    ],
)
def test_the_advice_fits_the_cause(run: RunDirectory, cause: str, advice: str) -> None:
    assert advice in told(run, ("failed", cause))["What to do"]


def test_it_is_on_the_page(run: RunDirectory) -> None:
    told(run, ("failed", NO_SPACE))
    page = write_report(run.path).read_text()
    assert "This run failed" in page and NO_SPACE.replace("'", "&#39;") in page and "Free some disk" in page


def test_a_whole_run_has_no_such_card(run: RunDirectory) -> None:
    assert "This run failed" not in write_report(run.path).read_text()


def test_it_says_what_is_damaged(run: RunDirectory) -> None:
    committed(run, 5)
    committed(run, 6)
    manifest: dict[str, Any] = json.loads((run.path / "checkpoints/step-000006/manifest.json").read_text())
    (run.path / "checkpoints/step-000006/manifest.json").write_text(json.dumps({**manifest, "sha256": "0"}))
    assert "step-000005 is whole" in told(run, ("failed", "a bug"))["What is lost"]
