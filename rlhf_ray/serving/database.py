"""The service's database: a file for one node, PostgreSQL for several."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from rlhf_ray.errors import UserError

_BUSY_S = 30
_AGAIN_S = 0.02
_FIX = "give a file, or postgresql+psycopg://USER:PASSWORD@HOST/NAME with the extra [postgres]"
_LOCK: Mapping[str, str] = {"sqlite": "BEGIN IMMEDIATE", "postgresql": "SELECT pg_advisory_xact_lock(7306110)"}


def open_database(url: str) -> Engine:
    """An engine for `sqlite:///FILE`, whose commits survive a crash of the machine, or for PostgreSQL.

    `UserError` for what is no URL, or one of another database, or if the driver is not installed.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # what they quote may be a piece of the password
        raise UserError(f"store: this is not the URL of a database; {_FIX}") from None
    try:
        if parsed.get_backend_name() not in _LOCK:
            raise UserError(f"store: {parsed.get_backend_name()} is not supported; {_FIX}")
        if parsed.get_backend_name() != "sqlite":
            return create_engine(parsed, pool_pre_ping=True, hide_parameters=True)
    except (ArgumentError, ImportError) as error:
        raise UserError(f"store: {error}; {_FIX}") from None
    if parsed.database:
        file = Path(parsed.database)
        file.parent.mkdir(parents=True, exist_ok=True)
        if not file.exists():  # what people wrote is the owner's to share; SQLite gives its log the same mode
            file.touch(mode=0o600)
    # What people wrote does not belong into an error or a log.
    engine = create_engine(parsed, connect_args={"timeout": _BUSY_S}, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: object) -> None:
        _to_write_ahead_log(connection)
        for pragma in ("synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    return engine


def _to_write_ahead_log(connection: sqlite3.Connection) -> None:
    """SQLite does not wait for the others here, as it does elsewhere: several processes may open a new file at once."""
    deadline = time.monotonic() + _BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_AGAIN_S)


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction of the only writer: what it reads stays true until it is committed.

    So no reply is forgotten between being looked up and being rated, and nothing is made twice.
    """
    with engine.begin() as connection:
        connection.exec_driver_sql(_LOCK[engine.dialect.name])
        yield connection
