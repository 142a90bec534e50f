"""Runs tests against copies of the project, each in a fork of a process that has the heavy libraries already.

A new interpreter would import torch and transformers for seconds before every test. The forking process must never
import the project itself: its modules have to come from the copy.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).parents[2]
TIMEOUT_S = 120.0
HEAVY = (
    "torch", "numpy", "pydantic", "annotated_types", "jaxtyping", "hypothesis", "safetensors.torch", "tokenizers",
    "ray.train.torch", "ray.data", "transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto",
    "transformers.generation.utils", "peft",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Job:
    """Tests by their ids, to be run in the copy `tree`."""

    tree: Path
    tests: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """The first test that failed, and its error; or why the tests could not run."""

    test: str | None = None
    failure: str | None = None
    trouble: str | None = None


class _Recorder:
    """A plugin of pytest."""

    def __init__(self, tree: Path) -> None:
        self._tree, self._count, self.found = tree, 0, Found()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.found = Found(trouble=str(report.longrepr)[-2000:])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._count += report.when == "call"
        if report.failed and self.found == Found():
            crash = getattr(report.longrepr, "reprcrash", None)
            message = str(crash.message if crash else report.longrepr).strip().splitlines()
            self.found = Found(report.nodeid, message[0] if message else "failed")

    def pytest_sessionfinish(self) -> None:
        package = sys.modules.get("rlhf_ray")
        if package is None or package.__file__ is None or not Path(package.__file__).is_relative_to(self._tree):
            self.found = Found(trouble=f"the tests did not import the copy in {self._tree}")
        elif not self._count and self.found == Found():
            self.found = Found(trouble="no test was run")


def run_all(
    jobs: Sequence[Job | Callable[[], Job]], at_once: int, told: Callable[[int, Found], None] = lambda *_: None
) -> list[Found]:
    """What came of each; `told` hears it as soon as it is known. Jobs may be made when their turn comes."""
    _warm()
    waiting, found = list(enumerate(jobs)), dict[int, Found]()
    running: dict[Any, tuple[int, Any, float]] = {}
    context = multiprocessing.get_context("fork")
    while waiting or running:
        while waiting and len(running) < at_once:
            number, job = waiting.pop(0)
            job = job() if callable(job) else job
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(job, there))
            process.start()
            there.close()
            running[here] = number, process, time.monotonic() + TIMEOUT_S * len(job.tests)
        ready = wait(list(running), timeout=1.0)
        for answer, (number, process, deadline) in list(running.items()):
            if answer in ready:
                found[number] = _received(answer)
            elif time.monotonic() > deadline:
                process.kill()
                found[number] = Found(trouble="it did not end")
            else:
                continue
            process.join()
            del running[answer]
            told(number, found[number])
    return [found[number] for number in range(len(jobs))]


def _received(answer: Connection) -> Found:
    try:
        return Found(*answer.recv())
    except EOFError:
        return Found(trouble="its process died")


def _warm() -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for name in HEAVY:
        importlib.import_module(name)
    loaded = [name for name in sys.modules if name.split(".")[0] == "rlhf_ray"]
    if loaded:
        raise RuntimeError(f"the project is imported already ({loaded[0]}): the copies would not be")


def _child(job: Job, answer: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    log = os.open(job.tree / "log.txt", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(job.tree)
    here = [path for path in sys.path if Path(path).resolve() != PROJECT]
    sys.path[:] = [str(job.tree), *here]
    for name in [name for name in sys.modules if name.split(".")[0] == "tests"]:
        del sys.modules[name]
    importlib.invalidate_caches()
    recorder: Any = _Recorder(job.tree)
    options = ["-x", "-q", "-p", "no:cacheprovider", f"--basetemp={job.tree / 'tmp'}"]
    pytest.main([*job.tests, *options], plugins=[recorder])
    answer.send(astuple(recorder.found))  # the class itself would be pickled by the name of a module that is gone
    answer.close()
    os._exit(0)
