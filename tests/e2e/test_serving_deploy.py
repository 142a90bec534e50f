"""The same application from Ray Serve's own command line: an import path with arguments, and deploy/serve.yaml."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml

from rlhf_ray.models.tiny import tiny_model
from rlhf_ray.serving.app import serving_config
from rlhf_ray.serving.state import ServiceState
from tests.builders import interruptible
from tests.ports import free_port

DEPLOY = Path(__file__).parents[2] / "deploy"
GUIDE = Path(__file__).parents[2] / "docs" / "serving.md"
START_S = 300


def _answers(folder: Path, port: int, *words: str) -> httpx.Response:
    """What the service that `serve run WORDS` starts in `folder` says to hello; it is stopped then."""
    key = ServiceState(serving_config({"model": "runs/demo"}).store_url).add_key(["chat"], "test")
    program = shutil.which("serve", path=str(Path(sys.executable).parent))
    assert program is not None
    with (folder / f"log-{port}").open("w") as log:
        process = subprocess.Popen(
            [program, "run", *words], cwd=folder, stdout=log, stderr=log, preexec_fn=interruptible
        )
    try:
        deadline = time.monotonic() + START_S
        while True:
            try:
                said = {"model": "policy", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
                address, headers = f"http://127.0.0.1:{port}/v1/chat/completions", {"Authorization": f"Bearer {key}"}
                answer = httpx.post(address, json=said, headers=headers, timeout=START_S)
                if answer.status_code not in (404, 503):  # not there yet
                    return answer
            except httpx.HTTPError:
                pass
            running = process.poll() is None and time.monotonic() < deadline
            assert running, (folder / f"log-{port}").read_text()[-4000:]
            time.sleep(0.5)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=120)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a model where the guide and the file have theirs."""
    tiny_model(tmp_path / "runs" / "demo")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_import_path_of_the_guide(folder: Path) -> None:
    command = "serve run rlhf_ray.serving.app:build model=runs/demo"
    assert command in GUIDE.read_text(encoding="utf-8")
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 8000)) == 0:
            pytest.skip("something listens on port 8000, and `serve run` has no option for another one")
    answer = _answers(folder, 8000, *command.split()[2:])
    assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] <= 3


def test_the_file_of_deploy(folder: Path) -> None:
    """As it is, but for the port."""
    shipped, port = yaml.safe_load((DEPLOY / "serve.yaml").read_text()), free_port()
    assert shipped["http_options"] == {"host": "127.0.0.1", "port": 8000}
    shipped["http_options"]["port"] = port
    (folder / "serve.yaml").write_text(yaml.safe_dump(shipped))
    answer = _answers(folder, port, "serve.yaml")
    assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] <= 3
