"""Feedback as rows to train on: readers of training data take them as they are, with the evidence that was given."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from rlhf_ray.cli.feedback import feedback_app
from rlhf_ray.config import PreferenceConfig
from rlhf_ray.config_file import load_config
from rlhf_ray.data.feedback import Feedback, FeedbackConfig, open_feedback
from rlhf_ray.data.shapes import parse, shape_of
from rlhf_ray.errors import UserError
from rlhf_ray.evidence import Item, Pair, Ranking, Rating, Thumb
from rlhf_ray.serving import store as store_module
from rlhf_ray.serving.records import FeedbackItem, PreferenceItem, Reply, utc_seconds
from rlhf_ray.serving.store import FeedbackStore
from rlhf_ray.types import Message

HELLO = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hello"}]
BYE = [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}, {"role": "user", "content": "bye"}]
PROMPT = (Message("system", "Be kind."), Message("user", "hello"))
LINEAGE = {"reply_ids", "policy_versions", "annotator", "feedback_id", "given_at"}
NOON = utc_seconds("2026-11-26T12:00:00")


class Clock:
    """A minute passes between two statements."""

    now = NOON

    def time(self) -> float:
        self.now += 60
        return self.now


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FeedbackStore:
    """Three replies to `HELLO` by versions v1 and v2, one to `BYE`, and one that is blank."""
    monkeypatch.setattr(store_module, "time", Clock())
    monkeypatch.chdir(tmp_path)
    store = FeedbackStore("sqlite:///feedback.sqlite")
    replies = [("a", "v1", HELLO, "A"), ("b", "v2", HELLO, "B"), ("c", "v1", HELLO, "C"), ("bye", "v1", BYE, "Bye.")]
    for name, version, prompt, text in [*replies, ("same", "v1", HELLO, "A "), ("blank", "v1", HELLO, " ")]:
        store.keep_reply(Reply(name, version, "runs/demo", "stable", "c", json.dumps(prompt), text, "stop", NOON))
    return store


def say(store: FeedbackStore, name: str, kind: Any, value: Any, annotator: str | None = "ann") -> str:
    return store.add_feedback(FeedbackItem(reply_id=name, kind=kind, value=value, annotator=annotator)).id


def compare(store: FeedbackStore, names: str, **judged: Any) -> str:
    item = PreferenceItem(reply_ids=tuple(names), annotator="ann", comment="private", **judged)
    return store.add_preference(item).id


def parsed(row: dict[str, Any]) -> Item:
    (item,) = parse(json.loads(json.dumps(row)), "here", FeedbackConfig(path="x"))
    return item


def evidence(item: Item) -> tuple[object, ...]:
    """What `item` says, without its prompt and label."""
    if isinstance(item, Pair):
        return ("pair", item.chosen, item.rejected, item.tie)
    if isinstance(item, Ranking):
        return ("ranking", *item.answers, item.ranks)
    if isinstance(item, Rating):
        return ("rating", item.answer, item.value)
    assert isinstance(item, Thumb)
    return ("thumb", item.answer, item.good)


@pytest.mark.parametrize(
    ("said", "expected", "shape", "reply_ids", "versions"),
    [
        ({"choice": "a"}, ("pair", "A", "B", False), "explicit preference", "ab", ["v1", "v2"]),
        ({"choice": "b"}, ("pair", "B", "A", False), "explicit preference", "ba", ["v2", "v1"]),
        ({"choice": "tie"}, ("pair", "A", "B", True), "compared pair", "ab", ["v1", "v2"]),
        ({"ranks": (2, 1)}, ("ranking", "B", "A", (1, 2)), "ranking", "ab", ["v1", "v2"]),
        (("thumb", "up"), ("thumb", "A", True), "unpaired (label)", "a", ["v1"]),
        (("thumb", "down"), ("thumb", "A", False), "unpaired (label)", "a", ["v1"]),
        (("rating", 4), ("rating", "A", 4.0), "rating", "a", ["v1"]),
        (("correction", "Better."), ("pair", "Better.", "A", False), "explicit preference", "a", ["v1"]),
        (("flag", "harmful"), ("thumb", "A", False), "unpaired (label)", "a", ["v1"]),
    ],
)  # fmt: skip
def test_every_kind_is_the_evidence_it_was(
    store: FeedbackStore, said: Any, expected: object, shape: str, reply_ids: str, versions: list[str]
) -> None:
    id_ = compare(store, "ab", **said) if isinstance(said, dict) else say(store, "a", *said)
    (row,) = store.export_rows(None)
    item = parsed(row)
    assert evidence(item) == expected and item.prompt == PROMPT and shape_of(row) == shape
    assert row.keys() >= LINEAGE and "private" not in json.dumps(row)
    assert (row["reply_ids"], row["policy_versions"], row["feedback_id"]) == (list(reply_ids), versions, id_)
    assert row["given_at"] == NOON + 60
    assert not isinstance(item, Pair | Ranking | Rating | Thumb) or item.label.annotator == row["annotator"]


def test_a_ranking_of_several_keeps_its_ties(store: FeedbackStore) -> None:
    compare(store, "abc", ranks=(2, 1, 2))
    (row,) = store.export_rows(None)
    assert evidence(parsed(row)) == ("ranking", "B", "A", "C", (1, 2, 2))


def test_two_bad_replies_are_two_thumbs_down(store: FeedbackStore) -> None:
    id_ = compare(store, "ab", choice="both_bad")
    rows = list(store.export_rows(None))
    assert [evidence(parsed(row)) for row in rows] == [("thumb", "A", False), ("thumb", "B", False)]
    assert [(row["reply_ids"], row["policy_versions"]) for row in rows] == [(["a"], ["v1"]), (["b"], ["v2"])]
    assert [row["feedback_id"] for row in rows] == [id_, id_]


def test_a_statement_of_nobody_names_no_annotator(store: FeedbackStore) -> None:
    say(store, "bye", "thumb", "up", annotator=None)
    (row,) = store.export_rows(None)
    item = parsed(row)
    assert isinstance(item, Thumb) and item.label.annotator is None and "annotator" not in row
    assert [message.content for message in item.prompt] == ["a", "", "bye"]


def test_rows_come_in_the_order_in_which_they_were_given_from_a_moment_on(store: FeedbackStore) -> None:
    ids = [say(store, "a", "thumb", "up") for _ in range(12)]  # at 12:01, 12:02, ...
    assert [row["feedback_id"] for row in store.export_rows(None)] == ids
    assert [row["feedback_id"] for row in store.export_rows(NOON + 600)] == ids[9:]


def run(*arguments: str) -> Result:
    root = typer.Typer()
    root.add_typer(feedback_app, name="feedback")
    return CliRunner().invoke(root, ["feedback", "export", *arguments, "--store", "feedback.sqlite"])


def refused(words: str, *arguments: str) -> None:
    result = run(*arguments)
    assert isinstance(result.exception, UserError) and words in str(result.exception), result
    assert not [file.name for file in Path().iterdir() if "tmp" in file.name]


def opened(path: str) -> Feedback:
    return open_feedback(FeedbackConfig(path=path), seed=0)


def test_the_file_is_read_as_it_is(store: FeedbackStore) -> None:
    compare(store, "ab", choice="a")
    compare(store, "ab", choice="tie")
    compare(store, "bc", choice="both_bad")
    compare(store, "abc", ranks=(1, 2, 3))
    for kind, value in (("thumb", "up"), ("rating", 5), ("correction", "Bye!"), ("flag", "untrue")):
        say(store, "bye", kind, value)
    result = run("out.jsonl")
    assert result.output == "out.jsonl: 3 pairs, 1 ranking, 1 rating, 4 thumbs\n", result
    feedback = opened("out.jsonl")
    assert feedback.counts == {
        "pair": {"overall": 3}, "ranking": {"overall": 1}, "rating": {"overall": 1}, "thumb": {"overall": 4},
    }  # fmt: skip
    assert (feedback.dropped, feedback.ties) == (0, 1)
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert rows == list(store.export_rows(None)) and all(row.keys() >= LINEAGE for row in rows)


def test_what_nothing_can_be_learned_from_is_left_out_and_counted(store: FeedbackStore) -> None:
    say(store, "a", "thumb", "up")
    say(store, "bye", "thumb", "up")
    say(store, "blank", "thumb", "down")
    store.add_preference(PreferenceItem(reply_ids=("a", "same"), choice="a"))
    result = run("out.jsonl", "--json")
    assert json.loads(result.output) == {
        "path": "out.jsonl",
        "rows": {"thumb": 2},
        "left_out": {
            "completion is empty": 1,
            "chosen and rejected are the same text, so the pair says nothing": 1,
        },
    }
    assert opened("out.jsonl").counts == {"thumb": {"overall": 2}}
    assert "2 thumbs (left out: 1: completion is empty; 1: chosen" in run("again.jsonl").output


def test_a_file_is_replaced_only_when_asked_and_only_as_a_whole(
    store: FeedbackStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("out.jsonl").write_text("mine")
    refused("has no feedback to train on", "out.jsonl", "--force")
    say(store, "a", "thumb", "up")
    refused("out.jsonl exists already and is not overwritten; give another name, or --force", "out.jsonl")
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        refused("out.jsonl cannot be written: No space left on device", "out.jsonl", "--force")
    assert Path("out.jsonl").read_text() == "mine"
    assert run("out.jsonl", "--force").exit_code == 0
    assert json.loads(Path("out.jsonl").read_text())["completion"] == "A"


def test_wrong_options_are_told_what_is_wrong(store: FeedbackStore) -> None:
    say(store, "a", "thumb", "up")
    refused("the name must end in .jsonl", "out.json")
    refused("--since: 'yesterday' is no date; write 2026-11-01", "out.jsonl", "--since", "yesterday")
    refused("has no feedback to train on since 2026-11-27", "out.jsonl", "--since", "2026-11-27")
    refused("give a path in a folder that exists", "nowhere/out.jsonl")
    assert not Path("out.jsonl").exists()
    assert run("out.jsonl", "--since", "2026-11-26").exit_code == 0


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere.sqlite", "--store nowhere.sqlite: there is no such file"),
        ("sqlite:///nowhere.sqlite", "--store sqlite:///nowhere.sqlite: there is no such file"),
        ("text.sqlite", "--store text.sqlite cannot be read: file is not a database"),
        ("postgresql+psycopg://me:secret@/x?host=/nowhere", "--store postgresql+psycopg://me:***@/x?host"),
    ],
)
def test_a_store_that_is_none_is_refused_and_not_made(store: FeedbackStore, name: str, words: str) -> None:
    Path("text.sqlite").write_text("this is no database, whatever its name may be")
    root = typer.Typer()
    root.add_typer(feedback_app, name="feedback")
    result = CliRunner().invoke(root, ["feedback", "export", "--store", name, "out.jsonl"])
    assert isinstance(result.exception, UserError) and words in str(result.exception), result
    assert "secret" not in str(result.exception)
    assert not Path("nowhere.sqlite").exists() and not Path("out.jsonl").exists()


def test_a_url_is_a_store_too(store: FeedbackStore) -> None:
    say(store, "a", "thumb", "up")
    root = typer.Typer()
    root.add_typer(feedback_app, name="feedback")
    url = f"sqlite:///{Path('feedback.sqlite').resolve()}"
    assert CliRunner().invoke(root, ["feedback", "export", "out.jsonl", "--store", url]).exit_code == 0


def test_help_imports_nothing_heavy() -> None:
    code = "import sys, rlhf_ray.cli.feedback; print(*({'torch', 'ray', 'numpy', 'sqlalchemy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_recipe_reads_what_is_exported() -> None:
    config = load_config("dpo_from_feedback.yaml")
    assert isinstance(config, PreferenceConfig) and config.data.path == "feedback.jsonl"
