"""Databases for tests of feedback, and short words for what is put into them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from rlhf_ray.serving import store as store_module
from rlhf_ray.serving.records import FeedbackItem, PreferenceItem, Reply, utc_seconds
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
