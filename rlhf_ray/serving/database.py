"""The service's database: a file for one node, PostgreSQL for several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from rlhf_ray.errors import UserError

_BUSY_S = 30


def open_database(url: str) -> Engine:
    """An engine for `sqlite:///FILE`, whose commits survive a crash of the machine, or for another URL of SQLAlchemy.

    `UserError` for what is no URL, or one of a database whose driver is not installed.
    """
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() != "sqlite":
            return create_engine(parsed, pool_pre_ping=True, hide_parameters=True)
    except (ArgumentError, ImportError) as error:
        raise UserError(
            f"store: {error}; give a file, or postgresql+psycopg://USER:PASSWORD@HOST/NAME with the extra [postgres]"
        ) from None
    if parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    # What people wrote does not belong into an error or a log.
    engine = create_engine(parsed, connect_args={"timeout": _BUSY_S}, hide_parameters=True)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _: object) -> None:
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    return engine
