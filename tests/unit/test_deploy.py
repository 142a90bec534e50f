"""deploy/Dockerfile, as far as it can be judged without building it."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

import pytest

from rlhf_ray.launching import manifests

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "deploy" / "Dockerfile").read_text()
LINES = re.sub(r"\\\n(\s*#.*\n)*", " ", TEXT).splitlines()


def _instructions(stage: str) -> list[str]:
    """Those of one stage, without its FROM."""
    starts = [i for i, line in enumerate(LINES) if line.startswith("FROM ")]
    (start,) = [i for i in starts if LINES[i].endswith(f" AS {stage}")]
    end = next((i for i in starts if i > start), len(LINES))
    return [line for line in LINES[start + 1 : end] if line and not line.startswith("#")]


def _copied() -> list[str]:
    words = [line.split()[1:-1] for line in LINES if line.startswith("COPY ") and "--from=" not in line]
    return [source for sources in words for source in sources]


def test_what_it_copies_exists_and_reaches_the_builder() -> None:
    ignore = (ROOT / "deploy" / "Dockerfile.dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignore if line.startswith("!")}
    assert "*" in ignore, "everything else stays out: runs, data, files with tokens"
    for source in _copied():
        assert (ROOT / source).exists(), source
        assert source.rstrip("/") in allowed, source
    assert {source.rstrip("/") for source in _copied()} == allowed


def test_it_installs_as_the_makefile_does() -> None:
    (command,) = [line for line in _instructions("build-cpu") if "make install" in line]
    assert command == "RUN make install PYTHON=python3.11"
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^install:", makefile, re.MULTILINE) and "$(or $(PYTHON)" in makefile
    assert "--require-hashes" in makefile
    for file in re.findall(r"requirements/[\w.]+", makefile.split(".venv/.stamp:", 1)[1]):
        assert (ROOT / file).is_file()


@pytest.mark.parametrize("stage", ["cpu", "gpu"])
def test_the_images_run_as_the_user_of_the_manifests(stage: str) -> None:
    users = [line.split()[1] for line in _instructions(stage) if line.startswith("USER ")]
    assert users == [f"{manifests._USER}:{manifests._USER}"]
    assert _instructions(stage)[-1] == f"WORKDIR {manifests.DATA}"
    assert f"useradd --uid {manifests._USER}" in TEXT


def test_the_base_is_pinned_and_of_the_locks_python() -> None:
    bases = [line.split()[1] for line in LINES if line.startswith("FROM ")]
    outside = [base for base in bases if base not in ("base", "build-cpu", "build-gpu")]
    assert outside and all(re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", base) for base in outside)


def test_it_takes_no_secret() -> None:
    names = re.findall(r"^(?:ARG|ENV) +(\w+)", TEXT, re.MULTILINE)
    assert not [name for name in names if re.search("TOKEN|SECRET|PASSWORD|KEY", name)]
    assert "--mount=type=secret" not in TEXT and "http" not in re.sub("docker/dockerfile", "", TEXT)


def test_its_commands_name_the_images_of_the_manifests() -> None:
    version = metadata.version("rlhf-ray")
    for target in ("cpu", "gpu"):
        assert f"--target {target} -t rlhf-ray:{version}-{target} ." in TEXT
