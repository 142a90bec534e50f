"""`rlhf-ray data`: what it prints, its exit codes, and that it loads nothing heavy before it is asked to."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_folders import tiny_tokenizer

from rlhf_ray.cli.main import main

Captured = pytest.CaptureFixture[str]
PAIR = {"prompt": "Why?", "chosen": "Because of the weather.", "rejected": "No."}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Relative paths are meant in an empty folder, and lines are wide."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def write(name: str, *rows: object) -> str:
    Path(name).write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return name


@pytest.fixture
def model(here: Path) -> str:
    """A folder with nothing but a tokenizer of one character a token."""
    tiny_tokenizer().save_pretrained(here / "model")
    return str(here / "model")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from rlhf_ray.cli.main import main; main(['data', 'check', '--help']); "
        "heavy = {'torch', 'ray', 'transformers', 'numpy', 'datasets'} & set(sys.modules); "
        "sys.exit(str(heavy or '') or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "--against" in done.stdout


@pytest.mark.parametrize("verb", ["check", "make"])
def test_every_verb_has_an_example(verb: str, capsys: Captured) -> None:
    assert main(["data", verb, "--help"]) == 0
    assert f"Example: rlhf-ray data {verb}" in " ".join(capsys.readouterr().out.split())


def test_a_good_file(model: str, capsys: Captured) -> None:
    write("good.jsonl", PAIR, {"prompt": "Rate [bold]", "completion": "x\u001b[31m", "rating": 5})
    assert main(["data", "check", "good.jsonl", "--model", model, "--max-tokens", "20"]) == 0
    out = capsys.readouterr().out
    for words in (
        "good.jsonl row 1: explicit preference", "<|start|>assistant", "chosen, 23 tokens: Because of the weather.",
        "explicit preference 1, rating 1", "cannot be used 0", "2 rows over 20 tokens", "wins 100.0% of 1",
        "Rate [bold]",
    ):  # fmt: skip
        assert words in out
    assert "\x1b" not in out


def test_a_file_with_bad_rows_is_reported_and_fails(capsys: Captured) -> None:
    write("bad.jsonl", PAIR, PAIR, {**PAIR, "chosen": ""}, "{", {**PAIR, "chosen": "No."})
    assert main(["data", "check", "bad.jsonl", "--model", "none"]) == 1
    out = capsys.readouterr().out
    assert "! cannot be used 3 (1 with an empty answer, 1 with equal answers)" in out
    assert "bad.jsonl row 3: chosen is empty; write it or remove the row" in out
    assert "! duplicates     1 rows say the same as an earlier one (first: bad.jsonl row 2)" in out
    assert "tokens" not in out


def test_json_is_one_object(capsys: Captured) -> None:
    write("bad.jsonl", PAIR, "{")
    assert main(["data", "check", "bad.jsonl", "--model", "none", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["usable"], found["bad"]["total"], found["tokens"]) == (2, 1, 1, None)
    assert found["cleaned"] is None


def test_fix_writes_a_clean_copy_once(capsys: Captured) -> None:
    write("bad.jsonl", PAIR, PAIR, "{", {**PAIR, "prompt": "Leak?"})
    write("test.jsonl", {"prompt": "Leak?"})
    words = ["data", "check", "bad.jsonl", "--model", "none", "--against", "test.jsonl", "--fix", "clean.jsonl"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "! leaks          1 rows have a prompt that is also in test.jsonl (first: bad.jsonl row 4)" in out
    assert "clean.jsonl: 1 rows written" in out and "1 left out: exact duplicate" in out
    assert main(["data", "check", "clean.jsonl", "--model", "none", "--against", "test.jsonl"]) == 0
    assert main(words) == 2
    assert "clean.jsonl exists already" in capsys.readouterr().err


def test_wrong_paths_and_values_are_2(capsys: Captured, here: Path) -> None:
    good = write("good.jsonl", PAIR)
    (here / "empty").mkdir()
    for words, message in (
        (["nope.jsonl"], "file nope.jsonl does not exist"),
        ([good, "--against", "nope.jsonl"], "file nope.jsonl does not exist"),
        ([good, "--model", "./nope"], "model folder ./nope does not exist"),
        ([good, "--model", str(here / "empty")], "no tokenizer that can be loaded"),
        ([good, "--rating-scale", "5", "1"], "the first number must be the lower one"),
        ([good, "--model", "none", "--fix", "good.jsonl"], "exists already"),
        ([good, "--max-tokens", "0"], "max-tokens"),
    ):
        assert main(["data", "check", *words]) == 2, words
        assert message in capsys.readouterr().err


def test_ratings_on_another_scale() -> None:
    write("rated.jsonl", {"prompt": "a", "completion": "b", "rating": 0.5})
    assert main(["data", "check", "rated.jsonl", "--model", "none"]) == 1
    scale = ["--rating-scale", "0", "1", "--rating-step", "0.25"]
    assert main(["data", "check", "rated.jsonl", "--model", "none", *scale]) == 0


def test_progress_without_a_terminal_goes_to_stderr(capsys: Captured) -> None:
    write("many.jsonl", *({**PAIR, "prompt": f"q{i}"} for i in range(20_500)))
    assert main(["data", "check", "many.jsonl", "--model", "none", "--json"]) == 0
    captured = capsys.readouterr()
    assert "checking: 20," in captured.err
    assert json.loads(captured.out)["rows"] == 20_500


@pytest.mark.parametrize("kind", ["pairs", "rankings", "ratings", "thumbs", "mixed"])
def test_made_data_passes_the_check(kind: str, capsys: Captured) -> None:
    words = ["--kind", kind, "--samples", "30", "--noise", "0.2", "--annotators", "2", "--seed", "3"]
    assert main(["data", "make", "made.jsonl", *words]) == 0
    assert "made.jsonl: 60 rows" in capsys.readouterr().out
    assert main(["data", "check", "made.jsonl", "--model", "none", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["usable"], found["annotators"]) == (60, 2)
    kinds = {"pair": 20, "ranking": 20, "rating": 20} if kind == "mixed" else {kind.removesuffix("s"): 60}
    assert found["kinds"] == kinds
    assert all(-1 <= agreement["alpha"] <= 1 for agreement in found["agreement"])
    Path("made.jsonl").rename("first.jsonl")
    assert main(["data", "make", "made.jsonl", *words]) == 0
    assert Path("made.jsonl").read_bytes() == Path("first.jsonl").read_bytes()


def test_make_refuses_what_it_cannot_do(capsys: Captured, here: Path) -> None:
    write("there.jsonl", PAIR)
    for words, message in (
        (["there.jsonl"], "exists already"),
        (["out.csv"], "must end in .jsonl"),
        (["no/out.jsonl"], "cannot be written"),
        (["out.jsonl", "--noise", "0.7"], "label_noise = 0.7"),
        (["out.jsonl", "--kind", "pair"], "must be one of pairs, rankings, ratings, thumbs, mixed"),
    ):
        assert main(["data", "make", *words]) == 2, words
        assert message in capsys.readouterr().err
    assert not (here / "out.jsonl").exists()
