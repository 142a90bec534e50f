"""A small part of `rlhf-ray chaos`, as the guide calls it; and that its oracles see what they are there for."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rlhf_ray.chaos import oracles
from rlhf_ray.chaos.oracles import exactly_once, good_commits, no_orphans, plan_kept, same_bits, true_weights
from rlhf_ray.cli.main import main
from rlhf_ray.config import RunConfig
from rlhf_ray.config_file import load_config
from rlhf_ray.rundir.commit import newest_good, verify
from rlhf_ray.tags import Process

GUIDE = Path(__file__).parents[2] / "docs" / "reliability.md"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the guide's short command has left: a driver, a rank and an engine killed while the policy learns."""
    (line,) = re.findall(r"^rlhf-ray (chaos --seed 0 --role .*)$", GUIDE.read_text(encoding="utf-8"), re.MULTILINE)
    folder = tmp_path_factory.mktemp("chaos") / "out"
    assert main([*shlex.split(line), "--out", str(folder)]) == 0
    yield folder


def test_every_cell_is_survived_and_every_promise_kept(folder: Path) -> None:
    found = json.loads((folder / "chaos.json").read_text())
    assert found["cells_planned"] == found["cells_survived"] == 3
    (seed,) = found["seeds"]
    assert seed["violations"] == {} and {strike["cell"]["phase"] for strike in seed["strikes"]} == {"update"}
    assert set(found["recovery_s"]) == {"driver", "policy rank A", "rollout-1"}


def test_the_table_says_so(folder: Path) -> None:
    table = (folder / "chaos.md").read_text()
    assert table.count("1/1") == 3 and table.count("so for seed 0") == 6


@pytest.fixture
def runs(folder: Path, tmp_path: Path) -> tuple[RunConfig, Path, Path]:
    config = load_config(folder / "ppo-0" / "run.yaml", [])
    assert isinstance(config, RunConfig)
    shutil.copytree(folder / "ppo-0" / "killed-0", tmp_path / "killed-0")
    return config, folder / "ppo-0" / f"quiet-{config.train.num_steps}", tmp_path / "killed-0"


def _tables(run: Path) -> list[Path]:
    return sorted((run / "rollouts").glob("step-*.parquet"))


def _commit(run: Path) -> Path:
    commit, _ = newest_good(run / "checkpoints")
    assert commit is not None
    return commit.path


def _lose(run: Path) -> None:
    _tables(run)[3].unlink()


def _repeat(run: Path) -> None:
    shutil.copy(_tables(run)[2], _tables(run)[3])


def _skip_a_line(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines(True)
    (run / "metrics.jsonl").write_text("".join(lines[:2] + lines[3:]))


@pytest.mark.parametrize("damage", [_lose, _repeat, _skip_a_line])
def test_an_answer_that_is_lost_or_used_twice_is_seen(
    runs: tuple[RunConfig, Path, Path], damage: Callable[[Path], None]
) -> None:
    config, quiet, killed = runs
    steps = config.train.num_steps
    assert list(exactly_once(config, quiet, killed)) == [] == list(plan_kept(config, steps, killed))
    damage(killed)
    assert list(exactly_once(config, quiet, killed)) != []
    assert list(plan_kept(config, steps, killed)) != [], "also without the run that was left alone"


def test_another_bit_is_seen(runs: tuple[RunConfig, Path, Path]) -> None:
    _, quiet, killed = runs
    assert list(same_bits(quiet, killed)) == [] == list(good_commits(killed))
    file = next(_commit(killed).rglob("*.safetensors"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert verify(_commit(killed)) == [] and list(good_commits(killed)) != []
    assert any("state differs" in each or "no good" in each for each in same_bits(quiet, killed)), "an older commit"


def test_weights_that_are_not_the_learners_are_seen(runs: tuple[RunConfig, Path, Path]) -> None:
    _, _, killed = runs
    assert list(true_weights(killed)) == []
    lines = (killed / "metrics.jsonl").read_text()
    (killed / "metrics.jsonl").write_text(re.sub(r'("sentinel/rollout_drift_max": )[\d.e-]+', r"\g<1>0.01", lines))
    assert len(list(true_weights(killed))) == len(lines.splitlines())


def test_nothing_is_left_running(runs: tuple[RunConfig, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(no_orphans(runs[2])) == []
    living = [Process(1, 11, "policy inbox", "ray::_AutoscalingCoordinatorActor")]
    monkeypatch.setattr(oracles, "processes", lambda run: living)
    assert list(no_orphans(runs[2])) == [], "that is the cluster's"
    monkeypatch.setattr(oracles, "_ENDING_S", 0.5)
    living.append(Process(2, 12, "rollout-0", "ray::RolloutActor"))
    assert list(no_orphans(runs[2])) == ["process 12 (rollout-0) is left: ray::RolloutActor"]


def test_a_soak_says_how_much_of_the_time_was_training(tmp_path: Path) -> None:
    """A driver that is killed in the only minute takes most of it."""
    out = tmp_path / "out"
    assert main(["chaos", "--soak", "1", "--every", "60", "--out", str(out)]) == 3
    found = json.loads((out / "chaos.json").read_text())
    assert found["violations"] == {} and [strike["cell"]["role"] for strike in found["strikes"]] == ["driver"]
    assert found["effective"] == pytest.approx(
        found["steps"] * found["undisturbed_step_s"] / found["seconds"], abs=1e-4
    )
    assert 0.05 < found["effective"] < 0.9 and found["seconds"] >= 60
    assert f"{found['effective']:.1%} of the time was training" in (out / "chaos.md").read_text()
