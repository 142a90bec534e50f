"""Replies and what people say about them, in a database: SQLite in a file, or PostgreSQL."""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    Column,
    Connection,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    and_,
    delete,
    event,
    exists,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite

from rlhf_ray.serving.database import open_database, writing
from rlhf_ray.serving.records import Added, DifferentPrompts, FeedbackItem, PreferenceItem, Reply, UnknownReply

Record = Reply | FeedbackItem | PreferenceItem
Refusal = UnknownReply | DifferentPrompts

_TABLES = MetaData()
REPLIES = Table(
    "replies",
    _TABLES,
    Column("id", String(256), primary_key=True),
    Column("policy_version", String(128), nullable=False),
    Column("model_source", Text, nullable=False),
    Column("role", String(16), nullable=False),
    Column("conversation", String(128), nullable=False),
    Column("messages", Text, nullable=False),  # JSON
    Column("text", Text, nullable=False),
    Column("finish_reason", String(32), nullable=False),
    Column("created", Float, nullable=False, index=True),
)
STATEMENTS = Table(
    "statements",
    _TABLES,
    Column("id", String(32), primary_key=True),
    Column("endpoint", String(16), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("value", String(64), nullable=False),  # a word, a number, or ranks as JSON; "" for a correction
    Column("correction", Text),
    Column("comment", Text),
    Column("annotator", String(16), nullable=False),  # a salted hash; "" if nobody is named
    Column("idempotency_key", String(128)),
    Column("given_at", Float, nullable=False, index=True),
    Column("day", String(10), nullable=False),  # UTC, so that days are counted alike by every database
    UniqueConstraint("annotator", "endpoint", "idempotency_key"),
)
ABOUT = Table(
    "statement_replies",
    _TABLES,
    Column("statement_id", ForeignKey(STATEMENTS.c.id, ondelete="CASCADE"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("reply_id", ForeignKey(REPLIES.c.id), nullable=False, index=True),
)
_SETTINGS = Table("feedback_settings", _TABLES, Column("name", String(32), primary_key=True), Column("value", Text))

_INSERT: Mapping[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}
_ERASE_MS = 500


class FeedbackStore:
    """Replies and statements about them. Safe for several threads and processes; what returned is on the disk."""

    def __init__(self, url: str) -> None:
        """Creates the tables if they are missing. `UserError` for a database that is not supported."""
        self._engine = open_database(url)
        self._dialect = self._engine.dialect.name
        self._insert = _INSERT[self._dialect]
        if self._dialect == "sqlite":
            event.listen(self._engine, "connect", _erase_what_is_deleted)
        with writing(self._engine) as connection:
            _TABLES.create_all(connection)
            salt = self._insert(_SETTINGS).values(name="salt", value=secrets.token_hex(16))
            connection.execute(salt.on_conflict_do_nothing())
            kept = select(_SETTINGS.c.value).where(_SETTINGS.c.name == "salt")
            self._salt: str = connection.execute(kept).scalar_one()

    def keep_reply(self, reply: Reply) -> None:
        """Keeps a reply so that it can be rated; `forget` deletes it unless somebody says something about it."""
        self.write([reply])

    def add_feedback(self, item: FeedbackItem) -> Added:
        """Keeps what is said about one reply. Raises `UnknownReply`."""
        return _taken(self.write([item])[0])

    def add_preference(self, item: PreferenceItem) -> Added:
        """Keeps a comparison. Raises `UnknownReply`, or `DifferentPrompts` if the replies answer different messages."""
        return _taken(self.write([item])[0])

    def write(self, records: Sequence[Record]) -> list[Added | Refusal]:
        """Writes all in one transaction, with one flush to the disk; what became of each, in their order.

        A record that is refused leaves no trace and does not hinder the others. Writing a record again is harmless.
        """
        with writing(self._engine) as connection:
            return [self._write(connection, record) for record in records]

    def forget(self, older_than: float) -> int:
        """Deletes the replies made before `older_than` (UTC seconds) about which nobody said anything; how many."""
        unrated = ~exists().where(ABOUT.c.reply_id == REPLIES.c.id)
        with writing(self._engine) as connection:
            count = connection.execute(delete(REPLIES).where(REPLIES.c.created < older_than, unrated)).rowcount
        self._erase(count)
        return count

    def delete(self, reply_id: str) -> int:
        """Deletes a reply and all that was said about it, comparisons with other replies included.

        Returns the number of replies and statements deleted, 0 if there is no such reply. PostgreSQL's own files lose
        the text when it vacuums, SQLite's at once unless somebody is reading.
        """
        about = select(ABOUT.c.statement_id).where(ABOUT.c.reply_id == reply_id)
        with writing(self._engine) as connection:
            count = connection.execute(delete(STATEMENTS).where(STATEMENTS.c.id.in_(about))).rowcount
            count += connection.execute(delete(REPLIES).where(REPLIES.c.id == reply_id)).rowcount
        self._erase(count)
        return count

    def summary(self, since: float | None) -> dict[str, Any]:
        """The body of `GET /v1/feedback/summary`, of what was said from `since` (UTC seconds) on."""
        from rlhf_ray.serving.summary import summarise  # reads this module's tables

        with self._engine.connect() as connection:
            return summarise(connection, since)

    def export_rows(self, since: float | None) -> Iterator[dict[str, Any]]:
        """Rows for training, as `export.rows` says, of what was said from `since` (UTC seconds) on."""
        from rlhf_ray.serving.export import rows  # reads this module's tables

        with self._engine.connect() as connection:
            yield from rows(connection, since)

    def _write(self, connection: Connection, record: Record) -> Added | Refusal:
        if isinstance(record, Reply):
            values = {name: _storable(value) for name, value in asdict(record).items()}
            return Added(record.id, duplicate=not self._inserted(connection, REPLIES, values))
        reply_ids = (record.reply_id,) if isinstance(record, FeedbackItem) else record.reply_ids
        wrong = _not_comparable(connection, reply_ids)
        return wrong or self._state(connection, record, reply_ids)

    def _state(self, connection: Connection, item: FeedbackItem | PreferenceItem, reply_ids: Sequence[str]) -> Added:
        """Inserts a statement. The constraints decide whether it is new: its own id, and its idempotency key."""
        row = self._columns(item)
        if self._inserted(connection, STATEMENTS, row):
            about = [{"statement_id": item.id, "position": i, "reply_id": id_} for i, id_ in enumerate(reply_ids)]
            connection.execute(self._insert(ABOUT), about)
            return Added(item.id, duplicate=False)
        same = STATEMENTS.c.id == item.id
        if item.idempotency_key is not None:
            same |= and_(*(STATEMENTS.c[name] == row[name] for name in ("annotator", "endpoint", "idempotency_key")))
        first: str = connection.execute(select(STATEMENTS.c.id).where(same)).scalar_one()
        return Added(first, duplicate=first != item.id)  # its own id: this very write, tried again

    def _inserted(self, connection: Connection, table: Table, row: Mapping[str, Any]) -> bool:
        """Whether `row` is there now that was not there before. No driver's count of rows tells that reliably."""
        insert = self._insert(table).values(row).on_conflict_do_nothing().returning(table.c.id)
        return connection.execute(insert).first() is not None

    def _columns(self, item: FeedbackItem | PreferenceItem) -> dict[str, Any]:
        now = time.time()
        row = {
            "id": item.id,
            "kind": item.kind,
            "correction": None,
            "comment": item.comment,
            "annotator": self._hash(item.annotator) if item.annotator else "",
            "idempotency_key": item.idempotency_key,
            "given_at": now,
            "day": datetime.fromtimestamp(now, UTC).date().isoformat(),
        }
        if isinstance(item, PreferenceItem):
            value = item.choice if item.ranks is None else json.dumps(item.ranks, separators=(",", ":"))
            return row | {"endpoint": "preferences", "value": value}
        if item.kind == "correction":
            return row | {"endpoint": "feedback", "value": "", "correction": item.value}
        return row | {"endpoint": "feedback", "value": str(item.value)}

    def _hash(self, annotator: str) -> str:
        return hashlib.sha256(f"{self._salt}:{annotator}".encode()).hexdigest()[:16]

    def _erase(self, deleted: int) -> None:
        """SQLite's log holds the text of what was deleted until it is written back, which has to wait for readers."""
        if deleted and self._dialect == "sqlite":
            with self._engine.connect() as connection:
                connection.detach()  # the short patience is not for others
                connection.exec_driver_sql(f"PRAGMA busy_timeout={_ERASE_MS}")
                connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")


def _not_comparable(connection: Connection, reply_ids: Sequence[str]) -> Refusal | None:
    """Why nothing can be said about these replies (together), or None."""
    found = connection.execute(select(REPLIES.c.id, REPLIES.c.messages).where(REPLIES.c.id.in_(reply_ids)))
    prompts = {row.id: json.loads(row.messages) for row in found}
    missing = next((reply_id for reply_id in reply_ids if reply_id not in prompts), None)
    if missing is not None:
        return UnknownReply(missing)
    first = reply_ids[0]
    other = next((reply_id for reply_id in reply_ids if prompts[reply_id] != prompts[first]), None)
    return None if other is None else DifferentPrompts(first, other)


def _taken(outcome: Added | Refusal) -> Added:
    if isinstance(outcome, Added):
        return outcome
    raise outcome


def _storable(value: str | float) -> str | float:
    """A model may sample what is no text: NUL, which PostgreSQL refuses, or half a character."""
    return value.encode("utf-8", "replace").decode().replace("\0", "\ufffd") if isinstance(value, str) else value


def _erase_what_is_deleted(connection: Any, _: object) -> None:
    connection.execute("PRAGMA secure_delete=ON")
