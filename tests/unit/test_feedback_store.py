"""Replies and what is said about them: nothing acknowledged is lost or doubled, on SQLite and on PostgreSQL."""

from __future__ import annotations

import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from feedback_stores import HELLO, NOON, choose, reply, said, thumb
from sqlalchemy import text

from rlhf_ray.errors import UserError
from rlhf_ray.serving.records import DifferentPrompts, FeedbackItem, PreferenceItem, UnknownReply
from rlhf_ray.serving.store import FeedbackStore


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


def test_a_new_file_that_another_process_writes_to_is_waited_for(tmp_path: Path) -> None:
    """SQLite does not wait by itself when a file changes to the write-ahead log, as it does for the first one."""
    file = tmp_path / "store.sqlite"
    other = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    release = threading.Timer(0.5, lambda: other.execute("COMMIT"))
    release.start()
    began = time.monotonic()
    FeedbackStore(f"sqlite:///{file}").keep_reply(reply("a"))
    assert time.monotonic() - began > 0.4
    release.join()
    other.close()


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
