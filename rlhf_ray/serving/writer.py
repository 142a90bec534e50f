"""The actor that owns the store: what arrives while it writes is written together, with one flush to the disk."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

import ray

from rlhf_ray.serving.records import Added, FeedbackItem, PreferenceItem, Reply
from rlhf_ray.serving.store import FeedbackStore, Record

_AT_ONCE = 1000  # calls that wait together


class FeedbackWriter:
    """`FeedbackStore` for many callers. A call that returned is on the disk; one that is made again is harmless."""

    def __init__(self, url: str) -> None:
        self._store = FeedbackStore(url)
        self._waiting: list[tuple[Record, asyncio.Future[Added]]] = []
        self._writing: asyncio.Task[None] | None = None

    async def keep_reply(self, reply: Reply) -> None:
        """As the store's."""
        await self._written(reply)

    async def add_feedback(self, item: FeedbackItem) -> Added:
        """As the store's, errors included."""
        return await self._written(item)

    async def add_preference(self, item: PreferenceItem) -> Added:
        """As the store's, errors included."""
        return await self._written(item)

    async def forget(self, older_than: float) -> int:
        """As the store's."""
        return await asyncio.to_thread(self._store.forget, older_than)

    async def delete(self, reply_id: str) -> int:
        """As the store's."""
        return await asyncio.to_thread(self._store.delete, reply_id)

    async def summary(self, since: float | None) -> dict[str, Any]:
        """As the store's."""
        return await asyncio.to_thread(self._store.summary, since)

    async def _written(self, record: Record) -> Added:
        done: asyncio.Future[Added] = asyncio.get_running_loop().create_future()
        self._waiting.append((record, done))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write_all())
        return await done

    async def _write_all(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting, []
            outcomes = await asyncio.to_thread(self._outcomes, [record for record, _ in batch])
            for (_, done), outcome in zip(batch, outcomes, strict=True):
                if done.done():  # the caller has gone
                    continue
                if isinstance(outcome, Added):
                    done.set_result(outcome)
                else:
                    done.set_exception(outcome)

    def _outcomes(self, records: Sequence[Record]) -> Sequence[Added | Exception]:
        """If the database refuses all because of one of them, each is tried by itself."""
        try:
            return self._store.write(records)
        except Exception as error:
            if len(records) == 1:
                return [error]
            return [self._outcomes([record])[0] for record in records]


def writer_handle(name: str, url: str) -> Any:
    """The writer of service `name` and database `url` in the cluster, made if there is none.

    It outlives whoever made it. If its process dies, Ray starts it again and makes the calls under way again. Other
    urls have other writers, so a service that is started with another store does not write into the old one.
    """
    store = hashlib.sha256(url.encode()).hexdigest()[:8]
    actor = ray.remote(FeedbackWriter).options(
        name=f"feedback-writer:{name}:{store}",
        namespace="rlhf-ray",  # each driver has one of its own: deploying again would make another writer
        get_if_exists=True,
        lifetime="detached",
        max_restarts=-1,
        max_task_retries=-1,
        max_concurrency=_AT_ONCE,
        num_cpus=0,
    )
    return actor.remote(url)
