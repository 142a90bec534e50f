"""The commands and the Python of docs/preferences.md, run as they stand, on tiny models and few rows."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_ray.cli.main import main
from rlhf_ray.config import RunConfig
from rlhf_ray.config_file import load_config
from rlhf_ray.models.tiny import tiny_encoder, tiny_model
from tests.warm_group import warm_group

GUIDE = Path(__file__).parents[2] / "docs" / "preferences.md"
SMALL = ["train.max_steps=2", "train.batch_size=4", "train.cpus_per_worker=0.5", "data.max_tokens=500"]


def _blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module", autouse=True)
def _ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with warm_group(tmp_path_factory.mktemp("group")):
        yield


def _smaller(words: list[str], models: dict[str, Path]) -> list[str]:
    """The same `train` command on a tiny model; a resumed run keeps the config that it began with."""
    if "--resume" in words:
        return words
    config = load_config(words[1])
    assert not isinstance(config, RunConfig)
    layers = ["num_layers=1"] if config.kind == "reward" else []
    return [*words, f"model.path={models[config.model.path]}", *SMALL, *layers]


def test_the_commands_of_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = {"smollm2-135m": tiny_model(tmp_path / "decoder"), "minilm-l6": tiny_encoder(tmp_path / "encoder")}
    monkeypatch.chdir(tmp_path)
    lines = [line for block in _blocks("bash") for line in block.splitlines() if line.strip()]
    assert len(lines) >= 10
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "rlhf-ray"
        if words[0] == "train":
            words = _smaller(words, models)
        elif words[1] == "check":
            words += ["--model", str(models["smollm2-135m"])]
        assert main(words) == 0, line
    runs = {line.split("--run-dir ")[1].split()[0] for line in lines if "--run-dir" in line}
    assert all((tmp_path / run / "report.html").is_file() for run in runs)


def test_the_python_of_the_guide(tmp_path: Path) -> None:
    (source,) = _blocks("python")
    assert main(["data", "make", str(tmp_path / "clean.jsonl"), "--kind", "mixed", "--samples", "60"]) == 0
    tiny = tiny_model(tmp_path / "tiny")
    small = source.replace('"smollm2-135m"', repr(str(tiny)))
    assert small.count(str(tiny)) == 2
    done = subprocess.run(
        [sys.executable, "-c", small], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "RankedResponse" in done.stdout
    assert (tmp_path / "my-policy" / "config.json").is_file() and (tmp_path / "my-reward-model").is_dir()
