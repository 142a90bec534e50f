"""The past of a run: a step done again from the books has the figures that were written, and a fork begins at it."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rlhf_ray import metrics as names
from rlhf_ray.actors.local import LocalRoles
from rlhf_ray.cli.main import main
from rlhf_ray.config import RunConfig
from rlhf_ray.config_file import dump_config, load_config
from rlhf_ray.data.prompts import ShuffledPrompts, load_prompts
from rlhf_ray.errors import UserError
from rlhf_ray.fork import fork
from rlhf_ray.loop import Progress, train
from rlhf_ray.models.reward_model import load_tokenizer
from rlhf_ray.models.tiny import tiny_model
from rlhf_ray.replay import replay
from rlhf_ray.rewards.functions import FunctionReward
from rlhf_ray.rewards.rubric import Rubric
from rlhf_ray.rundir.commit import newest_good
from rlhf_ray.rundir.journal import RunDirectory
from rlhf_ray.rundir.lines import read_lines
from tests.builders import run_config, share_of_vowels

STEPS, EVERY = 5, 2


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run of PPO with commits after the steps 2, 4 and 5; one answer of each step could not be scored."""
    folder = tmp_path_factory.mktemp("past")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": f"say {i}"}) + "\n" for i in range(6)))
    train_section = {"num_steps": STEPS, "checkpoint_every": EVERY, "prompts_per_step": 4, "keep_checkpoints": 3}
    algorithm = {"type": "ppo", "kl_target": 0.05, "num_epochs": 2, "num_minibatches": 2}
    config = run_config(tiny_model(folder / "tiny"), folder / "prompts.jsonl", algorithm=algorithm, train=train_section)
    books = RunDirectory.create(folder / "run", dump_config(config), {}, config.train.keep_checkpoints)
    tokenizer = load_tokenizer(Path(config.model.path))
    rubric = Rubric([("vowels", 1.0, FunctionReward(_fails_sometimes))])
    model = Path(config.model.path)
    local = LocalRoles(config, model, model, tokenizer, rubric, books.path)
    prompts, _, _ = load_prompts(config.prompts, tokenizer, 0)
    roles = replace(local.roles(ShuffledPrompts(prompts, 0)), journal=books)
    train(config, roles, config.algorithm.make(), tokenizer.pad_token_id or 0, Progress())
    books.close()
    yield books.path


def _fails_sometimes(prompt: str, response: str, reference: str | None) -> float:
    if prompt == "say 3":
        raise RuntimeError("not this one")
    return share_of_vowels(prompt, response, reference)


@pytest.mark.parametrize("step", [1, 4, 5])
def test_a_step_done_again_has_the_figures_that_were_written(run: Path, step: int) -> None:
    """From the untrained model, in the middle between two commits, and right after one."""
    figures = {one.name: one for one in replay(run, step)}
    assert {names.KL_COEF, names.REWARD_MEAN, names.POLICY_LOSS, names.CRITIC_LOSS} <= figures.keys()
    wrong = {name: one for name, one in figures.items() if one.written != pytest.approx(one.replayed, abs=1e-7)}
    assert wrong == {}


def test_the_step_that_failed_can_be_done_again(run: Path, tmp_path: Path) -> None:
    """It has answers and no figures."""
    target = tmp_path / "failed"
    shutil.copytree(run, target)
    lines = (target / "metrics.jsonl").read_text().splitlines(keepends=True)
    (target / "metrics.jsonl").write_text("".join(lines[:-1]))
    shutil.rmtree(target / "checkpoints" / "step-000005")
    failed = {one.name: one for one in replay(target, 5)}
    whole = {one.name: one for one in replay(run, 5)}
    assert {name: one.replayed for name, one in failed.items()} == {name: one.replayed for name, one in whole.items()}
    assert all(one.written is None for one in failed.values())


def test_another_state_would_have_other_figures(run: Path, tmp_path: Path) -> None:
    """The comparison can fail: without the commits, step 5 starts from the untrained model and skips nothing."""
    target = tmp_path / "fork"
    fork(run, target, 2, ["policy.learning_rate=0.01"])
    for table in (run / "rollouts").glob("step-*.parquet"):
        (target / "rollouts" / table.name).write_bytes(table.read_bytes())
    (target / "metrics.jsonl").write_text((run / "metrics.jsonl").read_text())
    figures = {one.name: one for one in replay(target, 4)}
    assert figures[names.POLICY_LOSS].written != pytest.approx(figures[names.POLICY_LOSS].replayed, abs=1e-7)


def test_the_debugger_is_asked_for_before_the_step(run: Path) -> None:
    asked: list[str] = []
    replay(run, 4, lambda: asked.append("now"))
    assert asked == ["now"]


def test_replay_on_the_command_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", str(run), "--step", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)[names.REWARD_MEAN]
    assert found["written"] == pytest.approx(found["replayed"])
    assert main(["replay", str(run), "--step", "9"]) == 2
    assert "has no answers of step 9, and figures of 1 to 5" in capsys.readouterr().err
    assert main(["replay", str(run.parent), "--step", "1"]) == 2


def test_a_fork_has_the_past_up_to_its_step_and_nothing_after(run: Path, tmp_path: Path) -> None:
    target = tmp_path / "fork"
    assert fork(run, target, 2, ["policy.learning_rate=0.002", "train.num_steps=9"]) == 2
    config = load_config(target / "config.yaml", [])
    assert isinstance(config, RunConfig)
    assert (config.policy.learning_rate, config.train.num_steps) == (0.002, 9)
    assert [line["step"] for line in read_lines(target / "metrics.jsonl")] == [1, 2]
    assert sorted(path.stem for path in (target / "rollouts").iterdir()) == ["step-000001", "step-000002"]
    commit, damaged = newest_good(target / "checkpoints")
    assert commit is not None and damaged == [] and commit.meta == newest_of(run, 2)
    manifest = json.loads((target / "manifest.json").read_text())
    assert (manifest["forked_from"], manifest["forked_at_step"]) == (str(run), 2)
    again = RunDirectory.open(target)
    assert again.committed_step == 2, "it can be resumed"


def test_a_fork_on_another_disk_is_a_copy(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", link)
    fork(run, tmp_path / "fork", 2, [])
    assert newest_good(tmp_path / "fork" / "checkpoints")[0] is not None


def newest_of(run: Path, step: int) -> dict[str, object]:
    manifest = json.loads((run / "checkpoints" / f"step-{step:06d}" / "manifest.json").read_text())
    meta: dict[str, object] = manifest["meta"]
    return meta


def test_fork_on_the_command_line_says_how_to_go_on(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "fork"
    assert main(["fork", str(run), str(target), "train.num_steps=7"]) == 0
    said = capsys.readouterr().out
    assert "after step 5" in said and f"rlhf-ray train {target}/config.yaml --run-dir {target} --resume" in said
    assert main(["fork", str(run), str(target)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_damaged_checkpoint_is_no_beginning(run: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(run, damaged)
    (damaged / "checkpoints" / "step-000005" / "policy" / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"step-000005 cannot be copied: .*choose another --step"):
        fork(damaged, tmp_path / "fork", 5, [])
    assert fork(damaged, tmp_path / "fork", None, []) == 4, "the newest good one"


@pytest.mark.parametrize(
    ("step", "override", "message"),
    [
        (3, "seed=1", "no checkpoint of step 3; choose --step from 2, 4, 5"),
        (2, "model.dtype=bfloat16", "model: a fork goes on with that of the run"),
        (2, "algorithm.type=trpo", "algorithm.type: a fork goes on"),
        (2, "policy.lora.rank=4", "policy.lora: a fork goes on with that of the run"),
        (2, "critic.lora.rank=4", "critic.lora: a fork goes on with that of the run"),
        (2, "policy.learning_rat=1", "learning_rat"),
    ],
)
def test_what_a_fork_cannot_be(run: Path, tmp_path: Path, step: int, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fork(run, tmp_path / "fork", step, [override])
    assert not (tmp_path / "fork").exists()
