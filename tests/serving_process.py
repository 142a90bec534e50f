"""A service in a process of its own, as a user starts it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai

from tests.ports import free_port

START_S = 300
SMALL = ("engine.context=256", "engine.kv_cache_gib=0.25", "engine.threads=1", "limits.requests_per_minute=100000")


@dataclass
class Running:
    """Where it is, an all-powerful key, and its folder."""

    address: str
    key: str
    folder: Path
    session: Path
    """The logs of its Ray cluster."""

    def client(self, **settings: Any) -> openai.OpenAI:
        """OpenAI's own client."""
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=self.key, max_retries=0, **settings)

    def post(self, path: str, body: object, key: str | None = None) -> httpx.Response:
        """A POST with a key."""
        headers = {"Authorization": f"Bearer {key or self.key}"}
        return httpx.post(self.address + path, json=body, headers=headers, timeout=120)

    def summary(self) -> dict[str, Any]:
        """The figures of the feedback."""
        headers = {"Authorization": f"Bearer {self.key}"}
        found: dict[str, Any] = httpx.get(f"{self.address}/v1/feedback/summary", headers=headers, timeout=60).json()
        return found

    def command(self, *words: str, seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """`rlhf-ray` in its folder, with its key."""
        settings = {**os.environ, "RLHF_RAY_KEY": self.key}
        return subprocess.run(
            _program(*words),
            capture_output=True,
            text=True,
            timeout=seconds,
            env=settings,
            check=False,
            cwd=self.folder,
        )


@contextmanager
def serving(folder: Path, *words: str) -> Iterator[Running]:
    """`rlhf-ray serve WORDS` in `folder`, small, until the end of the block; it must then end as after SIGTERM."""
    port = free_port()
    log = folder / f"serve-{port}.log"
    command = _program("serve", *words, "--port", str(port), *SMALL)
    with log.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, text=True, cwd=folder)
    try:
        key = _await_start(process, log, folder / "key")
        session = Path("/tmp/ray/session_latest/logs").resolve()
        yield Running(f"http://127.0.0.1:{port}", key, folder, session)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=120)
    assert code == 143, log.read_text()


def _await_start(process: subprocess.Popen[str], log: Path, kept: Path) -> str:
    """The key that the first start printed; later ones print none."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        lines = log.read_text().splitlines()
        if any(line.startswith("serving ") for line in lines) and lines[-1].startswith(("the page:", "keys:")):
            found = [line.split()[-1] for line in lines if line.startswith("API key")]
            if found:
                kept.write_text(found[0])
            return kept.read_text()
        time.sleep(0.3)
    raise AssertionError(f"the service did not start:\n{log.read_text()[-4000:]}")


def _program(*words: str) -> list[str]:
    return [sys.executable, "-m", "rlhf_ray.cli.main", *words]
