"""Reward functions that misbehave, in processes of their own: each costs one answer its score, with the reason."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_ray.rewards.isolated import FunctionFailed, IsolatedFunction
from rlhf_ray.rewards.rubric import Rubric
from rlhf_ray.types import Message, Prompt, Rollout, Score

PATH = f"{__name__}:misbehaves"
EATEN = 2**31
SEEN = "SEEN_ANSWERS"


def misbehaves(prompt: str, response: str, reference: str | None) -> object:
    """What the answer asks for."""
    with Path(os.environ[SEEN]).open("a") as seen:
        seen.write(response + "\n")
    before = Path(os.environ[SEEN]).read_text().splitlines()[:-1]
    if response == "raise":
        raise RuntimeError("no answer")
    if response == "flicker" and response not in before:
        raise ConnectionError("the judge is away")
    if response == "crash once" and response not in before:
        os.kill(os.getpid(), signal.SIGSEGV)
    if response == "hang":
        time.sleep(60)
    if response == "hang with a child":
        subprocess.run([sys.executable, "-c", "import time; time.sleep(60)"], check=False)
    if response == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if response == "leave":
        os._exit(3)
    if response == "fork":
        return 2.0 if os.fork() else 3.0
    if response == "print":
        print('{"value": 7}')
    if response == "eat":
        return float(len(bytearray(EATEN)))
    return {"nan": math.nan, "text": "1.0", "huge": 1e308, "true": True}.get(response, float(len(prompt)))


@pytest.fixture
def function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[IsolatedFunction]:
    monkeypatch.setenv(SEEN, str(tmp_path / "seen"))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    source = IsolatedFunction(PATH, timeout_s=2.0, memory_gib=1.0)
    yield source
    if source._child is not None:
        source._end()


def score(function: IsolatedFunction, *answers: str) -> list[Score]:
    prompt = Prompt("p", (Message("user", "four"),), (1, 2))
    rollouts = [Rollout(prompt, i, (5,), (-1.0,), text, "stop", 0) for i, text in enumerate(answers)]
    return Rubric([("f", 1.0, function)]).score(rollouts)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("raise", "RuntimeError: no answer"),
        ("hang", "did not answer within 2 s (timeout_s) and was killed"),
        ("hang with a child", "did not answer within 2 s (timeout_s) and was killed"),
        ("crash", f"the process of {PATH} died (SIGSEGV)"),
        ("leave", f"the process of {PATH} died (exit code 3)"),
        ("eat", "MemoryError"),
        ("nan", "expected a number of size 1e12 at most, got nan"),
        ("text", "expected a number, got str"),
        ("true", "expected a number, got bool"),
        ("huge", "expected a number of size 1e12 at most, got 1e+308"),
    ],
)
def test_one_that_fails_is_named_and_its_neighbours_are_scored(
    function: IsolatedFunction, answer: str, reason: str
) -> None:
    before, failed, after = score(function, "good", answer, "good")
    assert failed.error is not None and reason in failed.error and math.isnan(failed.reward)
    assert (before.reward, before.error) == (after.reward, after.error) == (4.0, None)


@pytest.mark.parametrize("answer", ["flicker", "crash once"])
def test_what_may_pass_is_asked_again(function: IsolatedFunction, tmp_path: Path, answer: str) -> None:
    assert [one.reward for one in score(function, answer, "good")] == [4.0, 4.0]
    assert (tmp_path / "seen").read_text().splitlines() == [answer, answer, "good"]


@pytest.mark.parametrize("answer", ["raise", "hang"])
def test_what_will_not_pass_is_not(function: IsolatedFunction, tmp_path: Path, answer: str) -> None:
    score(function, answer)
    assert (tmp_path / "seen").read_text().splitlines() == [answer]


def test_a_copy_of_the_process_does_not_answer_too(function: IsolatedFunction) -> None:
    assert [one.reward for one in score(function, "fork")] == [2.0]
    time.sleep(1.0)  # for the copy
    assert [one.reward for one in score(function, "good", "good")] == [4.0, 4.0]


def test_what_it_prints_is_not_its_answer(function: IsolatedFunction) -> None:
    assert [one.reward for one in score(function, "print", "good")] == [4.0, 4.0]


def test_what_it_has_started_ends_with_it(function: IsolatedFunction) -> None:
    score(function, "hang with a child")
    left = [each for each in Path("/proc").glob("[0-9]*") if _command(each).endswith("import time; time.sleep(60)")]
    assert left == []


def _command(process: Path) -> str:
    try:
        return (process / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
    except OSError:
        return ""


def test_a_function_that_is_not_there_is_an_error_at_once() -> None:
    with pytest.raises(FunctionFailed, match="math has no such_thing"):
        IsolatedFunction("math:such_thing", 1.0, None)


def test_it_does_not_outlive_its_owner(tmp_path: Path) -> None:
    program = (
        "from rlhf_ray.rewards.isolated import IsolatedFunction\n"
        "import json, time\n"
        "print(json.dumps(IsolatedFunction('operator:setitem', 9.0, None)._child.pid), flush=True)\n"
        "time.sleep(60)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    child = json.loads(owner.stdout.readline())
    owner.kill()
    owner.wait()
    deadline = time.monotonic() + 10
    while _command(Path("/proc") / str(child)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _command(Path("/proc") / str(child))
