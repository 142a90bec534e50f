"""What a service remembers beside feedback: its keys and its traffic, in the same database."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from sqlalchemy import Column, Connection, Float, MetaData, String, Table, delete, insert, select, update

from rlhf_ray.errors import UserError
from rlhf_ray.serving.database import open_database, writing
from rlhf_ray.serving.keys import SCOPES, Key, new_key
from rlhf_ray.serving.traffic import Traffic

_TABLES = MetaData()
_KEYS = Table(
    "api_keys",
    _TABLES,
    Column("id", String(16), primary_key=True),
    Column("salt", String(64), nullable=False),
    Column("digest", String(64), nullable=False),
    Column("scopes", String(64), nullable=False),
    Column("name", String(128), nullable=False),
    Column("created", Float, nullable=False),
)
_TRAFFIC = Table(
    "traffic",
    _TABLES,
    Column("service", String(64), primary_key=True),
    Column("deployment", String(64), nullable=False),  # what was asked for at the start
    Column("traffic", String, nullable=False),  # JSON
    Column("since", Float, nullable=False),
)


class ServiceState:
    """Keys and traffic of the services that share a database. Safe for several processes."""

    def __init__(self, url: str) -> None:
        self._engine = open_database(url)
        with writing(self._engine) as connection:
            _TABLES.create_all(connection)

    def keys(self) -> list[Key]:
        """All keys that are not revoked."""
        with self._engine.connect() as connection:
            rows = connection.execute(select(_KEYS)).all()
        return [Key(row.id, row.salt, row.digest, frozenset(row.scopes.split(",")), row.name) for row in rows]

    def add_key(self, scopes: Collection[str], name: str) -> str:
        """Makes a key and returns its text, which is kept nowhere. `UserError` for an unknown scope."""
        unknown = sorted(set(scopes) - set(SCOPES))
        if unknown or not scopes:
            raise UserError(f"scopes {', '.join(unknown) or '(none)'}: give some of {', '.join(SCOPES)}")
        text, key = new_key(scopes, name)
        with writing(self._engine) as connection:
            connection.execute(
                insert(_KEYS).values(
                    id=key.id, salt=key.salt, digest=key.digest, scopes=",".join(sorted(scopes)), name=name,
                    created=time.time(),
                )
            )  # fmt: skip
        return text

    def revoke(self, key_id: str) -> None:
        """Deletes a key; services forget it within seconds. `UserError` if there is none."""
        with writing(self._engine) as connection:
            if not connection.execute(delete(_KEYS).where(_KEYS.c.id == key_id)).rowcount:
                raise UserError(f"there is no key {key_id}; `rlhf-ray keys list` shows them")

    def traffic(self, service: str, deployment: str) -> Traffic | None:
        """The traffic of `service`, if it was last started as this `deployment`."""
        with self._engine.connect() as connection:
            return _traffic(connection, service, deployment)

    def start(self, service: str, deployment: str, start: Traffic) -> Traffic:
        """The traffic of `service` as it was left, if it was started as this `deployment`; `start` otherwise."""
        with writing(self._engine) as connection:
            if (found := _traffic(connection, service, deployment)) is not None:
                return found
            fresh = Traffic(**(asdict(start) | {"salt": secrets.token_hex(16)}))
            connection.execute(delete(_TRAFFIC).where(_TRAFFIC.c.service == service))
            connection.execute(insert(_TRAFFIC).values(service=service, deployment=deployment, **_columns(fresh)))
        return fresh

    def set_traffic(self, service: str, traffic: Traffic) -> None:
        """Other gateways follow within seconds."""
        with writing(self._engine) as connection:
            connection.execute(update(_TRAFFIC).where(_TRAFFIC.c.service == service).values(**_columns(traffic)))


def _traffic(connection: Connection, service: str, deployment: str) -> Traffic | None:
    of_it = (_TRAFFIC.c.service == service, _TRAFFIC.c.deployment == deployment)
    text = connection.execute(select(_TRAFFIC.c.traffic).where(*of_it)).scalar_one_or_none()
    return None if text is None else Traffic(**json.loads(text))


def _columns(traffic: Traffic) -> dict[str, Any]:
    return {"traffic": json.dumps(asdict(traffic)), "since": time.time()}
