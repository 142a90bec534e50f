"""The list of planted bugs fits the source as it is, the table shows the list, and a sample of them is caught."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance.forked_pytest import Found
from tests.conformance.planted_bugs import ROOT, TABLE, TARGET, Bug, Outcome, judged, plant, planted, table

BUGS = planted()
SAMPLE = ("lambda forgotten in the advantages", "a mean per microbatch", "k3 as a loss with its own gradient")


def test_there_are_enough_different_bugs_and_each_has_its_place_in_the_source() -> None:
    assert len(BUGS) >= 40
    assert len({bug.name for bug in BUGS}) == len({(bug.file, bug.old, bug.new) for bug in BUGS}) == len(BUGS)
    for bug in BUGS:
        source = (ROOT / "rlhf_ray" / bug.file).read_text()
        assert source.count(bug.old) == 1, f"{bug.name}: the source of {bug.file} has changed; change the bug with it"
        ast.parse(source.replace(bug.old, bug.new))
        assert bug.new != bug.old


def test_every_bug_names_a_test_that_exists() -> None:
    functions = {
        file: {node.name for node in ast.parse((ROOT / file).read_text()).body if isinstance(node, ast.FunctionDef)}
        for file in {bug.test.split("::")[0] for bug in BUGS}
    }
    for bug in BUGS:
        file, test = bug.test.split("::")
        assert test.split("[")[0] in functions[file], f"{bug.name}: there is no test {bug.test}"


def test_the_table_is_of_this_list_and_reaches_the_target() -> None:
    shown = [line.strip("| ").split(" | ") for line in TABLE.read_text().splitlines() if line.startswith("| ")][1:]
    listed = [[bug.name, f"`{bug.file}`", f"`{bug.test.removeprefix('tests/')}`"] for bug in BUGS]
    assert [row[:3] for row in shown] == listed, "run python -m tests.conformance.planted_bugs again"
    assert sum(row[3] == "yes" for row in shown) / len(shown) >= TARGET


def test_a_sample_is_caught_by_the_command() -> None:
    command = [sys.executable, "-m", "tests.conformance.planted_bugs", "--jobs", "1", *SAMPLE]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"100.0% of {len(SAMPLE)} caught" in done.stdout


def test_a_bug_is_planted_once_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "rlhf_ray").mkdir()
    file = tmp_path / "rlhf_ray" / "a.py"
    file.write_text("x = 1 + 1\n")
    plant(Bug("one", "a.py", "1 + 1", "2", ""), tmp_path)
    assert file.read_text() == "x = 2\n"
    with pytest.raises(ValueError, match=r"one: a\.py has '1 \+ 1' 0 times"):
        plant(Bug("one", "a.py", "1 + 1", "2", ""), tmp_path)


def test_the_rate_counts_what_nothing_caught() -> None:
    bug = Bug("one", "a.py", "1", "2", "tests/test_x.py::test_x")
    text = table([Outcome(bug, "assert 1 == 2"), Outcome(bug, None)], 3.0)
    assert "**1 of 2 caught (50.0%; target 95%).**" in text
    assert "| one | `a.py` | `test_x.py::test_x` | **no** |" in text


@pytest.mark.parametrize("failure", ["NameError: name 'torch' is not defined", "SyntaxError: invalid syntax"])
def test_a_program_that_cannot_run_counts_as_no_catch(failure: str) -> None:
    bug = Bug("one", "a.py", "1", "2", "test")
    with pytest.raises(RuntimeError, match="cannot run, which proves nothing"):
        judged(bug, Found("test", failure))
    with pytest.raises(RuntimeError, match="did not run: no test was run"):
        judged(bug, Found(trouble="no test was run"))
    assert judged(bug, Found("test", "assert 1 == 2")).failure == "assert 1 == 2"
    assert judged(bug, Found()).failure is None
