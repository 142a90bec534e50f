"""Bugs that the tests must catch: `python -m tests.conformance.planted_bugs [NAME ...]`.

Each (`planted_bugs.yaml`) is one change of the package's source, as it was found in some RLHF system or as it is easily
made, with the test that should notice. The command plants one at a time in a copy of the project, runs that test
against the copy, and writes `PLANTED_BUGS.md` beside this file: what caught it, and the share that was caught. With
names it tries those only and writes nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.conformance.forked_pytest import Found, Job, run_all

ROOT = Path(__file__).parents[2]
LIST = Path(__file__).with_suffix(".yaml")
TABLE = Path(__file__).with_name("PLANTED_BUGS.md")
TARGET = 0.95
# What a program that cannot run ends with. Any test would notice, so it proves nothing.
BROKEN = ("SyntaxError", "IndentationError", "NameError", "UnboundLocalError", "ImportError", "ModuleNotFoundError",
          "AttributeError", "TypeError")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bug:
    """In `file` of the package `old`, which occurs once, becomes `new`; `test` (of pytest) should fail."""

    name: str
    file: str
    old: str
    new: str
    test: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one bug: how its test failed, None if it passed."""

    bug: Bug
    failure: str | None


def planted() -> list[Bug]:
    """All bugs of the list."""
    return [Bug(**entry) for entry in yaml.safe_load(LIST.read_text(encoding="utf-8"))]


def plant(bug: Bug, tree: Path) -> None:
    """Changes the copy of the project in `tree`. `ValueError` if the source is not there exactly once."""
    file = tree / "rlhf_ray" / bug.file
    source = file.read_text(encoding="utf-8")
    if source.count(bug.old) != 1:
        raise ValueError(f"{bug.name}: {bug.file} has {bug.old!r} {source.count(bug.old)} times, not once")
    file.write_text(source.replace(bug.old, bug.new), encoding="utf-8")


def copy_project(folder: Path) -> Path:
    """Package and tests, without what was compiled from them."""
    for name in ("rlhf_ray", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder / "pyproject.toml")
    return folder


def judged(bug: Bug, found: Found) -> Outcome:
    """A `RuntimeError` if the test did not run, or the program did not."""
    if found.trouble is not None:
        raise RuntimeError(f"{bug.name}: {bug.test} did not run: {found.trouble}")
    if found.failure is not None and found.failure.startswith(BROKEN):
        raise RuntimeError(f"{bug.name}: the changed program cannot run, which proves nothing: {found.failure}")
    return Outcome(bug, found.failure)


def table(outcomes: Sequence[Outcome], seconds: float) -> str:
    """The list and the rate, in Markdown."""
    caught = sum(outcome.failure is not None for outcome in outcomes)
    head = [
        "# Planted bugs",
        "",
        "Written by `python -m tests.conformance.planted_bugs`: one change of the source a row, and the test that has",
        f"to fail because of it, run alone. It took {seconds:.0f} s.",
        "",
        f"**{caught} of {len(outcomes)} caught ({caught / len(outcomes):.1%}; target {TARGET:.0%}).**",
        "",
        "| bug | file | test | caught |",
        "|---|---|---|---|",
    ]
    rows = []
    for outcome in outcomes:
        bug, verdict = outcome.bug, "yes" if outcome.failure is not None else "**no**"
        rows.append(f"| {bug.name} | `{bug.file}` | `{bug.test.removeprefix('tests/')}` | {verdict} |")
    return "\n".join([*head, *rows]) + "\n"


def attempts(bugs: Sequence[Bug], jobs: int) -> list[Outcome]:
    """Each bug in a copy of its own. Without any, all tests must pass first."""
    with tempfile.TemporaryDirectory() as folder:
        sound = copy_project(Path(folder, "sound"))
        tests = sorted({bug.test for bug in bugs})
        (whole,) = run_all([Job(sound, tuple(tests))], 1)
        if whole.failure is not None or whole.trouble is not None:
            raise SystemExit(f"without any bug: {whole.test} {whole.failure or whole.trouble}")
        outcomes = []

        def planted_in_a_copy(number: int) -> Job:
            tree = copy_project(Path(folder, str(number)))
            plant(bugs[number], tree)
            return Job(tree, (bugs[number].test,))

        def told(number: int, found: Found) -> None:
            shutil.rmtree(Path(folder, str(number)))
            outcome = judged(bugs[number], found)
            print(f"{outcome.bug.name}: {outcome.failure or 'NOT CAUGHT'}"[:160], flush=True)
            outcomes.append((number, outcome))

        run_all([lambda n=n: planted_in_a_copy(n) for n in range(len(bugs))], jobs, told)  # type: ignore[misc]  # binds it
        return [outcome for _, outcome in sorted(outcomes, key=lambda pair: pair[0])]


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if enough were caught."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="try only these")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)))
    asked = parser.parse_args(arguments)
    known = {bug.name: bug for bug in planted()}
    unknown = [name for name in asked.names if name not in known]
    if unknown:
        parser.error(f"there is no bug {unknown[0]!r}; known: {', '.join(known)}")
    began = time.monotonic()
    outcomes = attempts([known[name] for name in asked.names] or list(known.values()), asked.jobs)
    seconds = time.monotonic() - began
    rate = sum(outcome.failure is not None for outcome in outcomes) / len(outcomes)
    print(f"{rate:.1%} of {len(outcomes)} caught in {seconds:.0f} s (target {TARGET:.0%})")
    if not asked.names:
        TABLE.write_text(table(outcomes, seconds), encoding="utf-8")
    return 0 if rate >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
