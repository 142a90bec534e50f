"""Replies and what is said about them: nothing acknowledged is lost or doubled, on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
import psycopg
import pytest
from pydantic import ValidationError
from sqlalchemy import text

from rlhf_ray.errors import UserError
from rlhf_ray.evaluation.intervals import wilson_interval
from rlhf_ray.serving import store as store_module
from rlhf_ray.serving.records import DifferentPrompts, FeedbackItem, PreferenceItem, Reply, UnknownReply, utc_seconds
from rlhf_ray.serving.store import FeedbackStore

HELLO = [{"role": "user", "content": "hello"}]
DAY = 86_400.0
NOON = utc_seconds("2026-11-26T12:00:00")


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The folder of a socket of a PostgreSQL server without a network."""
    if shutil.which("initdb") is None or shutil.which("pg_ctl") is None:
        pytest.skip("needs the programs of PostgreSQL")
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # the path of a socket must be short
    who: dict[str, Any] = {"user": "postgres"} if os.geteuid() == 0 else {}  # it refuses to run as root
    if who:
        shutil.chown(folder, "postgres")

    def run(*command: str) -> None:
        subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **who)

    data = str(folder / "data")
    run("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-N")
    run("pg_ctl", "-D", data, "-w", "-l", str(folder / "log"), "-o", f"-h '' -k {folder} -F", "start")
    yield str(folder)
    run("pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
    shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'feedback.sqlite'}"
    socket, name = request.getfixturevalue("postgres"), f"t{uuid.uuid4().hex}"
    with psycopg.connect(f"host={socket} user=postgres", autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}".encode())
    return f"postgresql+psycopg://postgres@/{name}?host={socket}"


@pytest.fixture
def store(url: str) -> FeedbackStore:
    return FeedbackStore(url)


class Clock:
    """The time as the store sees it."""

    now = NOON

    def time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(store_module, "time", found)
    return found


def reply(name: str, **changes: Any) -> Reply:
    """A reply of the stable policy v1 to `HELLO`, made at noon."""
    messages = json.dumps(changes.pop("prompt", HELLO))
    facts = {"policy_version": "v1", "model_source": "runs/demo", "role": "stable", "conversation": "c"}
    facts |= {"messages": messages, "text": f"text of {name}", "finish_reason": "stop", "created": NOON}
    return Reply(**({"id": name} | facts | changes))


def thumb(name: str, value: str = "up", **more: Any) -> FeedbackItem:
    return FeedbackItem(reply_id=name, kind="thumb", value=value, **more)


def choose(first: str, second: str, choice: Any, **more: Any) -> PreferenceItem:
    return PreferenceItem(reply_ids=(first, second), choice=choice, **more)


def said(store: FeedbackStore) -> list[str]:
    return [str(row["feedback_id"]) for row in store.export_rows(None)]


def test_the_same_idempotency_key_is_the_same_statement(store: FeedbackStore) -> None:
    for name in "ab":
        store.keep_reply(reply(name))
    first = store.add_feedback(thumb("a", annotator="ann", idempotency_key="k"))
    again = store.add_feedback(thumb("a", annotator="ann", idempotency_key="k"))
    assert (again.id, first.duplicate, again.duplicate) == (first.id, False, True)
    others = [
        store.add_feedback(thumb("a", annotator="bob", idempotency_key="k")),
        store.add_feedback(thumb("a", annotator="ann", idempotency_key="l")),
        store.add_feedback(thumb("a", annotator="ann")),
        store.add_feedback(thumb("a", annotator="ann")),
        store.add_feedback(thumb("a", idempotency_key="k")),
        store.add_preference(choose("a", "b", "tie", annotator="ann", idempotency_key="k")),
    ]
    assert not any(other.duplicate for other in others)
    assert sorted(said(store)) == sorted({first.id, *(other.id for other in others)})
    assert store.add_feedback(thumb("a", idempotency_key="k")).id == others[4].id
    assert store.add_preference(choose("a", "b", "a", annotator="ann", idempotency_key="k")).id == others[5].id
    assert all(len(id_) == 32 and int(id_, 16) for id_ in said(store))


@pytest.mark.parametrize("key", [None, "k"])
def test_a_write_that_is_tried_again_is_made_once(store: FeedbackStore, key: str | None) -> None:
    """What an actor does that died after it had committed and before it could say so."""
    store.keep_reply(reply("a"))
    store.add_feedback(thumb("a", annotator="ann"))  # another statement without a key
    item = thumb("a", "down", annotator="ann", idempotency_key=key)
    first, again = store.add_feedback(item), store.add_feedback(item)
    assert first == again and first.id == item.id and not again.duplicate
    assert said(store).count(first.id) == 1 and len(said(store)) == 2
    store.keep_reply(reply("a", text="another"))
    assert {row["completion"] for row in store.export_rows(None)} == {"text of a"}


def test_what_is_refused_leaves_no_trace_and_hinders_nobody(store: FeedbackStore) -> None:
    for each in (reply("a"), reply("b"), reply("other", prompt=[*HELLO, {"role": "assistant", "content": "?"}])):
        store.keep_reply(each)
    outcomes = store.write(
        [thumb("a"), thumb("nowhere", idempotency_key="k"), choose("a", "other", "a"), choose("a", "b", "b"),
         choose("a", "nowhere", "a"), reply("late"), thumb("late")]
    )  # fmt: skip
    assert [type(outcome).__name__ for outcome in outcomes] == [
        "Added", "UnknownReply", "DifferentPrompts", "Added", "UnknownReply", "Added", "Added",
    ]  # fmt: skip
    assert len(said(store)) == 3
    with pytest.raises(UnknownReply, match="there is no reply 'nowhere'") as unknown:
        store.add_feedback(thumb("nowhere"))
    assert unknown.value.reply_id == "nowhere"
    with pytest.raises(DifferentPrompts, match="'a' and 'other' answer different messages"):
        store.add_preference(PreferenceItem(reply_ids=("a", "b", "other"), ranks=(1, 2, 3)))
    store.keep_reply(reply("nowhere"))
    assert not store.add_feedback(thumb("nowhere", idempotency_key="k")).duplicate


def test_one_of_many_who_say_the_same_at_once_is_kept(url: str) -> None:
    """Stores of their own share nothing but the database, as processes do; they also make its tables at once."""
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(FeedbackStore, [url] * 8))
        stores[0].keep_reply(reply("a"))

        def say(number: int) -> tuple[int, Any]:
            item = thumb("a", annotator="ann", idempotency_key=f"k{number // 8}")
            return number // 8, stores[number % 8].add_feedback(item)

        added = list(pool.map(say, range(80)))
    for key in range(10):
        mine = [each for number, each in added if number == key]
        assert len({each.id for each in mine}) == 1 and sum(not each.duplicate for each in mine) == 1
    assert len(said(stores[1])) == 10
    assert len({row["annotator"] for row in stores[2].export_rows(None)}) == 1, "one salt"


def test_nothing_is_forgotten_while_it_is_being_rated(url: str) -> None:
    """Every reply is either gone and its rating refused, or there with its rating."""
    rating, forgetting = FeedbackStore(url), FeedbackStore(url)
    names = [f"r{number}" for number in range(60)]
    rating.write([reply(name) for name in names])
    with ThreadPoolExecutor(4) as pool:
        outcomes = pool.map(lambda name: rating.write([thumb(name)])[0], names)
        gone = sum(pool.map(lambda number: forgetting.forget(NOON + number), range(1, 20)))
        refused = sum(isinstance(outcome, UnknownReply) for outcome in outcomes)
    assert refused == gone and len(said(rating)) == 60 - refused


def test_replies_that_nobody_rated_are_forgotten(store: FeedbackStore) -> None:
    for number, name in enumerate("abcde"):
        store.keep_reply(reply(name, created=NOON + number))
    store.add_feedback(thumb("a"))
    store.add_preference(choose("b", "c", "a"))
    assert store.forget(older_than=NOON + 4) == 1
    assert store.forget(older_than=NOON + 4) == 0
    with pytest.raises(UnknownReply):
        store.add_feedback(thumb("d"))
    assert [store.add_feedback(thumb(name)).duplicate for name in "abce"] == [False] * 4


def test_a_deleted_reply_takes_all_with_it_that_was_said_about_it(store: FeedbackStore) -> None:
    for name in "abc":
        store.keep_reply(reply(name))
    store.add_feedback(thumb("a"))
    store.add_preference(choose("b", "a", "tie"))
    kept = store.add_feedback(thumb("b"))
    assert store.delete("a") == 3
    assert store.delete("a") == 0 and store.delete("'; DROP TABLE replies; --") == 0
    assert said(store) == [kept.id]
    assert store.summary(None)["policies"][0]["replies_rated"] == 1


def test_deleted_text_is_not_left_in_the_files(tmp_path: Path) -> None:
    store, other = (FeedbackStore(f"sqlite:///{tmp_path / 'feedback.sqlite'}") for _ in range(2))
    for name in ("deleted", "forgotten", "kept"):
        store.keep_reply(reply(name, text=f"secret {name} " * 400))
    store.add_feedback(FeedbackItem(reply_id="deleted", kind="correction", value="secret words", annotator="Ann Smith"))
    store.add_feedback(thumb("kept", annotator="Ann Smith", comment="mine"))

    def on_disk(words: bytes) -> bool:
        return any(words in file.read_bytes() for file in tmp_path.iterdir())

    assert on_disk(b"secret deleted") and on_disk(b"secret words") and on_disk(b"secret forgotten")
    store.delete("deleted")
    store.forget(NOON + 1)
    assert not on_disk(b"secret deleted") and not on_disk(b"secret words") and not on_disk(b"secret forgotten")
    assert other.summary(None)["annotators"] == 1, "the file was in use"
    assert on_disk(b"secret kept") and on_disk(b"mine") and not on_disk(b"Ann Smith")


def test_annotators_are_hashed_with_a_salt_of_the_database(tmp_path: Path) -> None:
    hashes = []
    for name in ("one", "two"):
        for _ in range(2):  # opened again, it has the same salt
            store = FeedbackStore(f"sqlite:///{tmp_path / name}")
            store.keep_reply(reply("a"))
            store.add_feedback(thumb("a", annotator="ann"))
        hashes.append([row["annotator"] for row in store.export_rows(None)])
    (first, again), (other, _) = hashes
    assert first == again != other and len(first) == 16 and int(first, 16)


def test_text_is_data(store: FeedbackStore) -> None:
    evil = "'); DROP TABLE replies; -- %s :x {0} \u2028 🙂 \\"
    store.keep_reply(reply(evil, text=evil, conversation=evil))
    store.add_feedback(FeedbackItem(reply_id=evil, kind="correction", value=evil, annotator=evil, comment=evil))
    store.keep_reply(reply("broken", text="a\0b\ud800"))
    store.add_feedback(thumb("broken"))
    rows = list(store.export_rows(None))
    assert (rows[0]["chosen"], rows[0]["rejected"], rows[0]["reply_ids"]) == (evil, evil, [evil])
    assert rows[1]["completion"] == "a\ufffdb?", "what is no text does not stop the store"


def test_commits_survive_a_crash_of_the_machine(tmp_path: Path) -> None:
    store = FeedbackStore(f"sqlite:///{tmp_path / 'feedback.sqlite'}")
    with store._engine.connect() as connection:
        found = [connection.execute(text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous")]
    assert found == ["wal", 2]


def test_another_database_is_refused() -> None:
    with pytest.raises(UserError, match="store: "):
        FeedbackStore("mongodb://localhost/x")
    with pytest.raises(UserError, match="store: "):
        FeedbackStore("what is this")


@pytest.mark.parametrize(
    ("fields", "where", "words"),
    [
        ({"kind": "thumb", "value": "UP"}, "value", "one of up, down"),
        ({"kind": "thumb", "value": True}, "value", "one of up, down"),
        ({"kind": "rating", "value": 0}, "value", "whole number from 1 to 5"),
        ({"kind": "rating", "value": 4.0}, "value", "whole number from 1 to 5"),
        ({"kind": "rating", "value": "4"}, "value", "whole number from 1 to 5"),
        ({"kind": "rating", "value": True}, "value", "whole number from 1 to 5"),
        ({"kind": "correction", "value": " \n"}, "value", "what the reply should have been"),
        ({"kind": "correction", "value": 5}, "value", "what the reply should have been"),
        ({"kind": "correction", "value": "x" * 32_001}, "value", "shorten it to 32000"),
        ({"kind": "correction", "value": "a\0"}, "value", "NUL"),
        ({"kind": "correction", "value": "\ud800"}, "value", "surrogate"),
        ({"kind": "flag", "value": "boring"}, "value", "harmful, untrue, off_topic, other"),
        ({"kind": "flag", "value": ["harmful"]}, "value", "harmful, untrue, off_topic, other"),
        ({"kind": "love", "value": "up"}, "kind", "'thumb', 'rating', 'correction' or 'flag'"),
        ({"kind": "thumb"}, "value", "required"),
        ({"reply_id": ""}, "reply_id", "at least 1"),
        ({"reply_id": "\0"}, "reply_id", "NUL"),
        ({"annotator": "x" * 129}, "annotator", "at most 128"),
        ({"annotator": "é\udfff"}, "annotator", "surrogate"),
        ({"comment": "x" * 4001}, "comment", "at most 4000"),
        ({"idempotency_key": ""}, "idempotency_key", "at least 1"),
        ({"id": "0" * 32}, "id", "not permitted"),
        ({"reply_ids": ["a"], "choice": "a"}, "reply_ids", "at least 2"),
        ({"reply_ids": [str(i) for i in range(17)], "ranks": [1] * 17}, "reply_ids", "at most 16"),
        ({"reply_ids": ["a", "a"], "choice": "a"}, "reply_ids", "name each once"),
        ({"reply_ids": ["a", "b"]}, "", "give choice"),
        ({"reply_ids": ["a", "b"], "choice": "a", "ranks": [1, 2]}, "", "one of them"),
        ({"reply_ids": ["a", "b"], "choice": "c"}, "choice", "'both_bad'"),
        ({"reply_ids": ["a", "b", "c"], "choice": "a"}, "", "give ranks instead"),
        ({"reply_ids": ["a", "b"], "ranks": [1]}, "", "1 numbers for 2 replies"),
        ({"reply_ids": ["a", "b"], "ranks": [0, 1]}, "ranks", "count from 1"),
        ({"reply_ids": ["a", "b"], "ranks": [1, 3]}, "ranks", "count from 1"),
        ({"reply_ids": ["a", "b"], "ranks": [1, True]}, "ranks", "valid integer"),
    ],
)  # fmt: skip
def test_a_wrong_statement_is_told_what_is_wrong(fields: dict[str, Any], where: str, words: str) -> None:
    model: Any = PreferenceItem if "reply_ids" in fields else FeedbackItem
    base = {} if "reply_ids" in fields else {"reply_id": "r", "kind": "thumb", "value": "up"}
    given = base | fields
    if fields == {"kind": "thumb"}:
        del given["value"]
    with pytest.raises(ValidationError) as refused:
        model.model_validate(given)
    first = refused.value.errors()[0]
    assert ".".join(str(part) for part in first["loc"]).startswith(where) and words in first["msg"], first


@pytest.mark.parametrize(
    ("ranks", "kept"), [((1, 1, 3), (1, 1, 2)), ((2, 1, 2), (2, 1, 2)), ((1, 1, 1), (1, 1, 1)), ((3, 1, 1), (2, 1, 1))]
)
def test_ranks_may_have_the_gaps_of_ties(ranks: tuple[int, ...], kept: tuple[int, ...]) -> None:
    assert PreferenceItem(reply_ids=("a", "b", "c"), ranks=ranks).ranks == kept


def test_dates_are_utc() -> None:
    assert utc_seconds("1970-01-02") == utc_seconds("1970-01-02T00:00:00Z") == DAY
    assert utc_seconds("1970-01-02T02:00:00+02:00") == DAY
    with pytest.raises(ValueError, match="'soon' is no date; write 2026-11-01"):
        utc_seconds("soon")


def test_an_empty_summary(store: FeedbackStore) -> None:
    store.keep_reply(reply("a"))
    assert store.summary(None) == {
        "counts": {
            "thumb": {"up": 0, "down": 0}, "rating": dict.fromkeys("12345", 0), "correction": 0, "flag": {},
            "preference": {"a": 0, "b": 0, "tie": 0, "both_bad": 0}, "ranking": 0,
        },
        "annotators": 0, "agreement": {"alpha": None, "items": 0}, "canary_vs_stable": None, "by_day": [],
        "policies": [],
    }  # fmt: skip


def test_summary_counts_everything_from_a_moment_on(store: FeedbackStore, clock: Clock) -> None:
    for name, version in (("a", "v1"), ("b", "v1"), ("c", "v2"), ("d", "v2")):
        store.keep_reply(reply(name, policy_version=version))
    clock.now = NOON - DAY
    store.add_feedback(thumb("a", "down", annotator="old"))
    clock.now = NOON
    for item in (thumb("a", annotator="x"), thumb("a", annotator="x"), thumb("c", "down", annotator="y"), thumb("c")):
        store.add_feedback(item)
    for name, kind, value in [
        ("a", "rating", 5),
        ("b", "rating", 2),
        ("d", "correction", "no"),
        ("d", "flag", "untrue"),
    ]:
        store.add_feedback(FeedbackItem(reply_id=name, kind=kind, value=value))  # type: ignore[arg-type]
    clock.now = NOON + DAY
    store.add_preference(choose("a", "b", "both_bad"))
    store.add_preference(PreferenceItem(reply_ids=("c", "b", "a"), ranks=(1, 2, 2)))

    everything, recent = store.summary(None), store.summary(NOON)
    assert recent["counts"] == {
        "thumb": {"up": 3, "down": 1}, "rating": {"1": 0, "2": 1, "3": 0, "4": 0, "5": 1}, "correction": 1,
        "flag": {"untrue": 1}, "preference": {"a": 0, "b": 0, "tie": 0, "both_bad": 1}, "ranking": 1,
    }  # fmt: skip
    assert everything["counts"]["thumb"] == {"up": 3, "down": 2}
    assert (everything["annotators"], recent["annotators"]) == (3, 2)
    assert everything["by_day"] == [
        {"day": "2026-11-25", "up": 0, "down": 1, "preferences": 0},
        {"day": "2026-11-26", "up": 3, "down": 1, "preferences": 0},
        {"day": "2026-11-27", "up": 0, "down": 0, "preferences": 2},
    ]
    assert recent["by_day"] == everything["by_day"][1:]
    assert everything["policies"] == [
        {"version": "v1", "thumbs_up": 2, "thumbs_down": 1, "mean_rating": 3.5, "replies_rated": 2},
        {"version": "v2", "thumbs_up": 1, "thumbs_down": 1, "mean_rating": None, "replies_rated": 2},
    ]
    assert json.loads(json.dumps(everything)) == everything


def test_agreement_is_krippendorffs_alpha_of_each_kind(store: FeedbackStore) -> None:
    """Three people; thumbs on six replies and ratings on four, each with gaps; the expected figures are a library's."""
    thumbs = [[1, 0, 1, 1, 0, None], [1, 0, 0, 1, 0, 1], [None, 0, 1, 1, 1, None]]  # the last reply has one judge
    ratings = [[5, 1, 3, None], [4, 2, 3, 1], [5, None, 2, 1]]
    for name in "abcdef":
        store.keep_reply(reply(name))
    for person, values in enumerate(thumbs):
        store.add_feedback(thumb("b", "up", annotator=f"p{person}"))  # taken back by what follows
        for name, good in zip("abcdef", values, strict=True):
            if good is not None:
                store.add_feedback(thumb(name, "up" if good else "down", annotator=f"p{person}"))
    for _ in range(2):
        store.add_feedback(thumb("f", "down"))  # nobody knows whose
    for person, values in enumerate(ratings):
        for name, rating in zip("abcd", values, strict=True):
            if rating is not None:
                item = FeedbackItem(reply_id=name, kind="rating", value=rating, annotator=f"p{person}")
                store.add_feedback(item)
    table = {"nominal": thumbs, "ordinal": ratings}
    alphas = {
        level: krippendorff.alpha(np.array(values, dtype=float), level_of_measurement=level)  # type: ignore[arg-type]
        for level, values in table.items()
    }
    found = store.summary(None)["agreement"]
    assert found["items"] == 5 + 4
    assert found["alpha"] == pytest.approx((14 * alphas["nominal"] + 10 * alphas["ordinal"]) / 24)


def test_a_pair_is_the_same_pair_in_the_other_order(store: FeedbackStore) -> None:
    for name in "abcd":
        store.keep_reply(reply(name))
    for first, second, choices in (("a", "b", "ab"), ("c", "d", "ba")):
        store.add_preference(choose(first, second, choices[0], annotator="x"))
        store.add_preference(choose(second, first, choices[1], annotator="y"))
    store.add_preference(choose("a", "c", "a", annotator="x"))  # another pair, which one person judged
    assert store.summary(None)["agreement"] == {"alpha": 1.0, "items": 2}


def test_the_newest_canary_against_stable(store: FeedbackStore) -> None:
    def keep(*names: str, version: str, role: str) -> None:
        for name in names:
            store.keep_reply(reply(name, policy_version=version, role=role))

    keep("s", "t", version="v1", role="stable")
    keep("old", version="v2", role="canary")
    keep("c", "d", version="v3", role="canary")
    store.add_preference(choose("old", "s", "a"))
    assert store.summary(None)["canary_vs_stable"]["comparisons"] == 1
    for item in (
        choose("s", "c", "b"),  # a win
        choose("c", "s", "a"),  # a win, shown first
        choose("s", "c", "a"),
        choose("c", "t", "tie"),
        choose("c", "t", "both_bad"),
        choose("s", "t", "a"),  # says nothing of the canary
        choose("c", "d", "a"),
        PreferenceItem(reply_ids=("s", "c", "t", "d"), ranks=(2, 1, 3, 3)),  # of 4 pairs 2 won, 1 lost, 1 tied
    ):
        store.add_preference(item)
    found = store.summary(None)["canary_vs_stable"]
    assert (found["wins"], found["comparisons"]) == (2 + 2 * 0.5 + 2.5 / 4, 6)
    assert found["rate"] == found["wins"] / 6
    assert found["ci95"] == list(wilson_interval(found["wins"], 6))
