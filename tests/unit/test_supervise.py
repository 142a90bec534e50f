"""When a driver is started again by itself, and when not: real processes, but no cluster."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_ray.config import RunConfig
from rlhf_ray.errors import LostError, RunError, UserError
from rlhf_ray.launching import recovery
from rlhf_ray.launching.recovery import noticing_losses
from rlhf_ray.launching.supervise import LOST
from tests.builders import interruptible, run_config

DRIVER = """
import os, signal, sys, time
from pathlib import Path
from rlhf_ray.launching.supervise import give_signs, started_again

give_signs()
run, lives = Path(sys.argv[1]), Path(sys.argv[1], "lives")
with lives.open("a") as file:
    print(" ".join(sys.argv[2:]), "again" if started_again() else "", file=file)
life = len(lives.read_text().splitlines()) - 1
exec(sys.argv[2].split("|")[life])
"""
SUPERVISOR = """
import sys
from pathlib import Path
from rlhf_ray.launching import supervise

supervise.SILENT_S = float(sys.argv.pop(1))
sys.exit(supervise.supervise(sys.argv[2:], Path(sys.argv[1]), 2))
"""
HANGS = "import re; re.match('(a+)+$', 40 * 'a' + 'b')"  # no other thread can run meanwhile
VANISHED = "time.sleep(0.5); os._exit(1)"  # as Ray does when it has lost its cluster
COMMITTED = "(run / 'checkpoints' / f'step-{life:06d}').mkdir(parents=True)"


def killed(sign: str = "SIGKILL") -> str:
    return f"os.kill(os.getpid(), signal.{sign})"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").touch()
    return tmp_path / "run"


def start(run: Path, *lives: str, resume: bool = False, silent_s: float = 3.0) -> subprocess.Popen[str]:
    """A supervisor whose driver does what `lives` says, one a life."""
    driver = [sys.executable, "-c", DRIVER, str(run), "|".join(lives), *(["--resume"] if resume else [])]
    return subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, str(silent_s), str(run), *driver],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=interruptible,
    )


def ended(run: Path, *lives: str, resume: bool = False, silent_s: float = 3.0) -> tuple[int, list[str]]:
    """Its exit code and the arguments of each life."""
    process = start(run, *lives, resume=resume, silent_s=silent_s)
    process.communicate(timeout=60)
    return process.returncode, words(run)


def words(run: Path) -> list[str]:
    return (run / "lives").read_text().splitlines()


def restarts(run: Path) -> list[str]:
    file = run / "events.jsonl"
    return [json.loads(line)["sentence"] for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.parametrize("death", [killed(), killed("SIGSEGV"), f"sys.exit({LOST})", HANGS, VANISHED])
def test_a_driver_that_dies_or_hangs_is_started_again_and_resumes(run: Path, death: str) -> None:
    code, lives = ended(run, death, "sys.exit(0)", resume=True)
    assert code == 0 and len(lives) == 2
    assert lives[0].endswith("--resume ") and lives[1].endswith("--resume-if-exists again")
    (sentence,) = restarts(run)
    cause = "cannot go on" if "sys.exit" in death else f"was ended by {death[-8:-1]}"
    cause = {VANISHED: "vanished", HANGS: "gave no sign for 3 s and was killed"}.get(death, cause)
    assert sentence == f"The driver {cause}. The run goes on at its newest commit: retry 1 of at most 2."


def test_one_that_is_stopped_is_not_waited_for(run: Path) -> None:
    code, lives = ended(run, killed("SIGSTOP"), "sys.exit(0)", silent_s=1000.0)
    assert code == 0 and len(lives) == 2
    assert restarts(run)[0].startswith("The driver was stopped by a signal for 2 s and was killed. The run goes on")


@pytest.mark.parametrize("code", [0, 1, 2, 3])
def test_a_driver_that_ends_by_itself_is_not(run: Path, code: int) -> None:
    assert ended(run, f"sys.exit({code})") == (code, [words(run)[0]])
    assert restarts(run) == []


def test_restarts_without_progress_are_bounded(run: Path) -> None:
    assert ended(run, *[killed()] * 5)[0] == 128 + signal.SIGKILL
    assert len(words(run)) == 3
    last = json.loads((run / "events.jsonl").read_text().splitlines()[-1])
    assert last["kind"] == "failed", "the crash page is made of it"
    assert last["sentence"] == "The driver was ended by SIGKILL: try 3 of 3 without a commit in between."


def test_a_driver_that_commits_may_die_as_often_as_it_likes(run: Path) -> None:
    code, lives = ended(run, *[f"{COMMITTED}; {killed()}"] * 5, "sys.exit(0)")
    assert code == 0 and len(lives) == 6 and all("retry 1 of" in sentence for sentence in restarts(run))


def test_a_lost_run_fails_in_the_end_with_the_code_of_a_failed_run(run: Path) -> None:
    assert ended(run, *[f"sys.exit({LOST})"] * 3)[0] == 1


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGINT])
def test_who_asks_the_supervisor_to_stop_asks_the_driver(run: Path, sign: signal.Signals) -> None:
    name = f"signal.{sign.name}"
    handler = f"signal.signal({name}, lambda *_: ((run / 'told').touch(), os.kill(os.getpid(), signal.SIGKILL)))"
    process = start(run, f"{handler}; (run / 'ready').touch(); time.sleep(60)", "sys.exit(0)")
    until((run / "ready").exists)
    process.send_signal(sign)
    assert process.wait(30) == 128 + signal.SIGKILL, "a driver that is to stop is not started again"
    assert (run / "told").exists() and len(words(run)) == 1


def test_a_driver_does_not_outlive_its_supervisor(run: Path) -> None:
    process = start(run, "(run / 'pid').write_text(str(os.getpid())); time.sleep(60)")
    until(lambda: (run / "pid").exists() and (run / "pid").read_text() != "")
    process.kill()
    process.wait()
    until(lambda: not _alive(int((run / "pid").read_text())))


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def config(monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    monkeypatch.setattr(recovery, "connected", lambda placement, cpus: contextlib.nullcontext())
    monkeypatch.setattr(recovery, "_alive", lambda: {"a"})
    monkeypatch.setattr(recovery, "_lost_actors", lambda: ["actor controller:run"])
    monkeypatch.setattr(recovery, "_POLL_S", 0.01)
    monkeypatch.setattr(recovery, "_NOTICED_S", 0.05)
    return run_config(Path("model"))


def fails(error: BaseException) -> Callable[[], dict[str, object]]:
    def launch() -> dict[str, object]:
        raise error

    return launch


def test_what_was_lost_is_named(config: RunConfig, run: Path) -> None:
    with pytest.raises(LostError, match=r"^lost actor controller:run: it did not answer$"):
        noticing_losses(fails(RunError("it did not answer.\nfurther lines")), config, run)
    assert restarts(run) == ["Lost actor controller:run: it did not answer."]


@pytest.mark.parametrize("error", [UserError("a wrong key"), ValueError("a bug"), KeyboardInterrupt()])
def test_a_fault_of_config_or_code_is_raised_as_it_is(config: RunConfig, run: Path, error: Exception) -> None:
    with pytest.raises(type(error)):
        noticing_losses(fails(error), config, run)
    assert restarts(run) == []


def test_a_cluster_that_does_not_start_is_noted(config: RunConfig, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor leaves what is lost to the driver to say."""
    failing = fails(LostError("Ray did not start on this machine"))
    monkeypatch.setattr(recovery, "connected", lambda placement, cpus: failing())
    with pytest.raises(LostError):
        noticing_losses(dict, config, run)
    assert restarts(run) == ["Ray did not start on this machine."]


def test_a_failure_without_a_loss_is_a_fault(config: RunConfig, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "_lost_actors", list)
    with pytest.raises(RunError, match="division by zero") as failed:
        noticing_losses(fails(RunError("reward-0 failed at 'score': division by zero")), config, run)
    assert not isinstance(failed.value, LostError)


def test_a_node_may_be_missed_a_little_later(config: RunConfig, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([{"a", "b"}, {"a", "b"}, {"a", "b"}])
    monkeypatch.setattr(recovery, "_alive", lambda: next(answers, {"a"}))
    monkeypatch.setattr(recovery, "_lost_actors", list)
    with pytest.raises(LostError, match="lost node b: policy: connection reset by peer"):
        noticing_losses(fails(RunError("policy: connection reset by peer")), config, run)


def test_only_a_driver_that_was_started_again_waits_for_room(
    config: RunConfig, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[bool] = []
    monkeypatch.setattr(recovery, "_await_room", lambda config: waited.append(True))
    assert noticing_losses(dict, config, run) == {} and waited == []
    monkeypatch.setattr(recovery, "started_again", lambda: True)
    assert noticing_losses(dict, config, run) == {} and waited == [True]
