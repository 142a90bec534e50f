"""Each thing that a machine may lack is found, with its fix; and stops a run, or is told, before anything starts."""

from __future__ import annotations

import resource
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_folders import run_config

from rlhf_ray import machine_checks
from rlhf_ray.errors import UserError
from rlhf_ray.machine_checks import cluster, open_files, own_address, own_ports, shared_memory, versions
from rlhf_ray.preflight import preflight

SECRET = "a-token-of-a-cluster"


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def test_this_machine_lacks_nothing() -> None:
    assert own_ports().ok and own_address().count(".") == 3


def test_too_few_open_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 2048))
    assert open_files().found == "at most 2048" and "--ulimit nofile" in open_files().fix
    with pytest.raises(UserError, match=r"open files: at most 2048; let it be 4096 at least"):
        preflight(run_config(tmp_path), tmp_path / "run", resume=False)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 20_000))
    assert open_files().ok, "Ray raises the soft limit, which is 1024 on most machines"
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert open_files().ok


def test_ports_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine_checks, "own_address", lambda: "192.0.2.7")  # nobody's
    assert "192.0.2.7 cannot be reached from here" in own_ports().found and "allow connections" in own_ports().fix
    with pytest.raises(UserError, match=r"own ports: 192\.0\.2\.7"):
        preflight(run_config(tmp_path), tmp_path / "run", resume=False)


def test_little_shared_memory_is_told_and_stops_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = shutil.disk_usage
    little = SimpleNamespace(free=64 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: little if Path(path) == Path("/dev/shm") else real(path))
    assert "--shm-size" in shared_memory().fix
    notes = preflight(run_config(tmp_path), tmp_path / "run", resume=False)
    assert any("shared memory: 0.1 GiB free" in note for note in notes)


def test_versions_that_nobody_has_tried_are_told_and_stop_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert all(finding.ok for finding in versions())
    real = machine_checks.installed
    monkeypatch.setattr(machine_checks, "installed", lambda name: "1.2.3" if name == "trl" else real(name))
    (note,) = [note for note in preflight(run_config(tmp_path), tmp_path / "run", resume=False) if "trl" in note]
    assert note.startswith("trl: 1.2.3; tested with ") and "pip install trl==" in note


def test_a_missing_token(monkeypatch: pytest.MonkeyPatch, no_token: None, tmp_path: Path) -> None:
    (answer, token) = cluster("auto", "RAY_ADDRESS")
    assert answer.ok and "RAY_AUTH_TOKEN" in token.fix
    config = run_config(tmp_path, placement={"address": "auto"})
    with pytest.raises(UserError, match="ray token: RAY_AUTH_MODE=token, but there is none"):
        preflight(config, tmp_path / "run", resume=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN", SECRET)
    (_, token) = cluster("auto", "RAY_ADDRESS")
    assert token.ok and SECRET not in token.found
    assert len(list(cluster(None, "RAY_ADDRESS"))) == 1, "a run's own cluster makes its own"


@pytest.mark.parametrize("where", ["home", "path"])
def test_a_token_in_a_file(monkeypatch: pytest.MonkeyPatch, no_token: None, tmp_path: Path, where: str) -> None:
    file = tmp_path / ".ray" / "auth_token" if where == "home" else tmp_path / "token"
    file.parent.mkdir(exist_ok=True)
    file.write_text(SECRET)
    if where == "path":
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(file))
    assert all(finding.ok for finding in cluster("auto", "RAY_ADDRESS"))
