"""The writer of feedback is killed again and again: what it acknowledged is there, once."""

from __future__ import annotations

import asyncio
import os
import queue
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from rlhf_ray.serving.records import Added, DifferentPrompts, FeedbackItem, PreferenceItem, Reply, UnknownReply
from rlhf_ray.serving.store import FeedbackStore
from rlhf_ray.serving.writer import FeedbackWriter, writer_handle

POSTS = 1000
KILLS = 10
THREADS = 8


@pytest.fixture(scope="module", autouse=True)
def _ray() -> Iterator[None]:
    settings = {"num_cpus": 2, "include_dashboard": False, "_system_config": {"worker_niceness": 0}}
    ray.init("local", log_to_driver=False, namespace="feedback-writer", **settings)
    yield
    ray.shutdown()


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'feedback.sqlite'}"


@pytest.fixture
def writer(url: str) -> Iterator[Any]:
    actor = writer_handle("policy", url)
    yield actor
    ray.kill(actor)


def reply(name: str, prompt: str = "[]") -> Reply:
    return Reply(name, "v1", "runs/demo", "stable", "c", prompt, f"text of {name}", "stop", 0.0)


def thumb(name: str, key: str | None = None) -> FeedbackItem:
    return FeedbackItem(reply_id=name, kind="thumb", value="up", annotator="ann", idempotency_key=key)


def _process() -> psutil.Process | None:
    """The writer's, among those of this test's own cluster."""
    for process in psutil.Process().children(recursive=True):
        try:
            if process.cmdline()[0].startswith(f"ray::{FeedbackWriter.__name__}"):
                return process
        except (psutil.Error, IndexError):
            continue
    return None


def _kill_now_and_then(news: queue.Queue[int], killed: list[int]) -> None:
    """Sends SIGKILL whenever another share of the posts has been acknowledged."""
    done = 0
    while len(killed) < KILLS:
        done += news.get()
        if done >= (len(killed) + 0.5) * POSTS / KILLS:
            process = _process()
            while process is None or process.pid in killed:  # it is still being started again
                process = _process()
            os.kill(process.pid, signal.SIGKILL)
            killed.append(process.pid)


def _post(numbers: Iterator[int], post: Callable[[int], Any], news: queue.Queue[int]) -> None:
    for number in numbers:
        post(number)
        news.put(1)


def test_nothing_acknowledged_is_lost_or_doubled(writer: Any, url: str) -> None:
    ray.get([writer.keep_reply.remote(reply(f"r{number}")) for number in range(10)])
    acknowledged: dict[int, Added] = {}
    again: dict[int, Added] = {}

    def post(number: int) -> None:
        name, key = f"r{number % 10}", f"key {number}" if number % 2 else None
        acknowledged[number] = ray.get(writer.add_feedback.remote(thumb(name, key)))
        if number % 10 == 1:  # a client that did not hear the answer
            again[number] = ray.get(writer.add_feedback.remote(thumb(name, key)))

    news: queue.Queue[int] = queue.Queue()
    killed: list[int] = []
    threads = [
        threading.Thread(target=_post, args=(iter(range(first, POSTS, THREADS)), post, news))
        for first in range(THREADS)
    ]
    threads.append(threading.Thread(target=_kill_now_and_then, args=(news, killed)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(set(killed)) == KILLS and len(acknowledged) == POSTS
    with sqlite3.connect(url.removeprefix("sqlite:///")) as database:
        stored = [id_ for (id_,) in database.execute("SELECT id FROM statements")]
        about = [id_ for (id_,) in database.execute("SELECT statement_id FROM statement_replies")]
    assert sorted(stored) == sorted(added.id for added in acknowledged.values())
    assert sorted(about) == sorted(stored)
    assert not any(added.duplicate for added in acknowledged.values())
    assert all(added == Added(acknowledged[number].id, duplicate=True) for number, added in again.items())
    assert ray.get(writer.summary.remote(None))["counts"]["thumb"] == {"up": POSTS, "down": 0}


def test_errors_come_through_with_their_own_message(writer: Any) -> None:
    for name, prompt in (("a", "[]"), ("b", "[1]")):
        ray.get(writer.keep_reply.remote(reply(name, prompt)))
    with pytest.raises(UnknownReply) as unknown:
        ray.get(writer.add_feedback.remote(thumb("nowhere")))
    assert unknown.value.message.startswith("there is no reply 'nowhere'")
    with pytest.raises(DifferentPrompts) as different:
        ray.get(writer.add_preference.remote(PreferenceItem(reply_ids=("a", "b"), choice="tie")))
    assert different.value.message.startswith("'a' and 'b' answer different messages")
    assert ray.get(writer.delete.remote("a")) == 1 and ray.get(writer.forget.remote(1.0)) == 1


def test_there_is_one_writer_for_a_service_and_a_store(writer: Any, url: str, tmp_path: Path) -> None:
    other = writer_handle("policy", f"sqlite:///{tmp_path / 'other.sqlite'}")
    try:
        assert writer_handle("policy", url)._actor_id == writer._actor_id != other._actor_id
        ray.get(other.keep_reply.remote(reply("a")))
        with pytest.raises(UnknownReply):
            ray.get(writer.add_feedback.remote(thumb("a")))
    finally:
        ray.kill(other)


def test_calls_that_wait_share_a_commit_and_one_bad_record_fails_alone(url: str, monkeypatch: Any) -> None:
    """In this process: what the store is asked to write at once."""
    batches: list[int] = []
    write = FeedbackStore.write

    def counted(store: FeedbackStore, records: Any) -> Any:
        batches.append(len(records))
        if any(record.id == "broken" for record in records):
            raise RuntimeError("the database says no")
        return write(store, records)

    monkeypatch.setattr(FeedbackStore, "write", counted)

    async def together() -> list[Any]:
        writer = FeedbackWriter(url)
        await writer.keep_reply(reply("a"))
        calls = [writer.add_feedback(thumb("a")) for _ in range(20)]
        return await asyncio.gather(*calls, writer.keep_reply(reply("broken")), return_exceptions=True)

    outcomes = asyncio.run(together())
    assert batches == [1, 21, *[1] * 21]
    assert [type(outcome) for outcome in outcomes] == [Added] * 20 + [RuntimeError]
