"""Online DPO through the command line: Ray, Ray Train, DeepSpeed and vLLM for real, a tiny model, and no critic."""

from __future__ import annotations

import json
import math
import statistics
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray import metrics as names
from rlhf_ray.cli.main import main
from rlhf_ray.cluster import connected, launch
from rlhf_ray.config import PlacementConfig
from rlhf_ray.models.tiny import tiny_model
from rlhf_ray.rundir.commit import latest_commit, verify
from rlhf_ray.rundir.rollout_table import read_rollouts
from rlhf_ray.tags import run_id
from tests.builders import run_config

WORDS = ("sun", "moon", "tree", "house", "cat", "dog", "book", "story")
PROMPTS = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy and 16 prompts."""
    folder = tmp_path_factory.mktemp("online-dpo")
    tiny_model(folder / "tiny")
    rows = [{"prompt": f"{verb} {word}"} for verb in ("name", "find") for word in WORDS]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for all runs of this file: `launch` uses the one that is there."""
    with connected(PlacementConfig(), cpus=8):
        yield


def _lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def _watch(run: str, found: set[str], over: threading.Event) -> None:
    """The names of the run's actors while it lasts."""
    import ray
    from ray.util.state import list_actors

    address = ray.get_runtime_context().gcs_address  # there may be other clusters on this machine
    while not over.wait(1.0):
        for actor in list_actors(address=address, filters=[("state", "=", "ALIVE")], limit=1000):
            if actor.name and actor.name.endswith(f":{run}"):
                found.add(actor.name.removesuffix(f":{run}"))


def _recipe(folder: Path, *more: str) -> list[str]:
    """The words that run the bundled recipe small, on two policy ranks with ZeRO-2."""
    return [
        "train", "online_dpo.yaml", f"model.path={folder / 'tiny'}", f"prompts.path={folder / 'prompts.jsonl'}",
        "reward.sources=[{type: function, path: 'tests.builders:share_of_vowels'}]",
        "algorithm.kl_target=0.001", "algorithm.kl_horizon=100", "policy.num_workers=2",
        "policy.deepspeed.zero_stage=2", "rollout.max_new_tokens=12", f"train.prompts_per_step={PROMPTS}",
        "train.num_steps=3", "train.checkpoint_every=2", "train.eval_prompts=4",
        "critic.num_workers=7",  # ignored, as is that there is no reward model to make a critic from
        "--run-dir", str(folder / "runs" / "dpo"), *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(folder: Path, cluster: None) -> tuple[Path, set[str]]:
    """Three steps of the recipe, and the actors that were there."""
    actors, over = set[str](), threading.Event()
    watcher = threading.Thread(target=_watch, args=(run_id(folder / "runs" / "dpo"), actors, over))
    watcher.start()
    try:
        assert main(_recipe(folder)) == 0
    finally:
        over.set()
        watcher.join()
    return folder / "runs" / "dpo", actors


def test_there_is_no_critic_anywhere(run: tuple[Path, set[str]]) -> None:
    path, actors = run
    assert {"controller-0", "policy", "reference-0", "reward-0", "rollout-0"} <= actors and "critic" not in actors
    assert not [name for line in _lines(path) for name in line if "critic" in name]
    for commit in (path / "checkpoints").glob("step-*"):
        assert verify(commit) == [] and [part.name for part in (commit / "state").iterdir()] == ["policy"]


def test_every_step_trains_on_pairs_and_its_sentinels_are_quiet(run: tuple[Path, set[str]]) -> None:
    path, _ = run
    lines = _lines(path)
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert all(value is not None and math.isfinite(value) for value in line.values()), line
        assert line["policy/updates"] >= 1.0 and line["policy/grad_norm"] > 0
        assert line[names.FIRST_RATIO] <= 1e-3 and line[names.DRIFT_MEAN] < 1e-3
        assert line["policy/parameters_without_gradient"] == line["policy/skipped_updates"] == 0.0
        assert 0.0 <= line[names.TRAIN_ACCURACY] <= 1.0 and line[names.WITHOUT_PREFERENCE] < PROMPTS
    assert lines[0][names.REFERENCE_GAP] < 1e-3, "policy and reference, at one temperature"
    assert lines[0][names.POLICY_LOSS] == pytest.approx(math.log(2), abs=0.05)
    assert lines[0][names.BETA] == 0.1 != lines[2][names.BETA], "beta follows the KL"
    events = path / "events.jsonl"
    kinds = {json.loads(line)["kind"] for line in events.read_text().splitlines()} if events.exists() else set()
    assert not kinds & {"sentinel", "non_finite_metric", "quarantine"}


def test_the_policy_that_it_leaves_behind_is_another_one(run: tuple[Path, set[str]], folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    policy = Path(json.loads((run[0] / "summary.json").read_text())["policy_dir"])
    trained, base = (AutoModelForCausalLM.from_pretrained(path) for path in (policy, folder / "tiny"))
    moved = {name for (name, a), b in zip(trained.named_parameters(), base.parameters(), strict=True) if (a != b).any()}
    assert moved == {name for name, _ in base.named_parameters() if "proj" in name}, "the adapters, merged"
    assert "online-dpo" in (policy / "README.md").read_text()


def test_a_resumed_run_goes_on(run: tuple[Path, set[str]], folder: Path) -> None:
    path, _ = run
    before = latest_commit(path / "checkpoints")
    assert main(_recipe(folder, "train.num_steps=4", "--resume")) == 0
    lines = _lines(path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[3][names.DRIFT_MEAN] < 1e-3 and lines[3][names.FIRST_RATIO] <= 1e-3
    assert lines[3][names.KL_PER_TOKEN] != 0.0, "the policy must not be the reference again"
    after = latest_commit(path / "checkpoints")
    assert before is not None and after is not None and after.meta["step"] == 4
    assert before.meta["algorithm"] == {"beta": {"coef": lines[3][names.BETA]}}, "beta goes on where it stood"
    assert {row["policy_version"] for row in read_rollouts(path / "rollouts" / "step-000004.parquet")} == {3}
    updates = json.loads((after.path / "state" / "policy" / "optimizer.json").read_text())["steps"]
    assert updates == sum(line["policy/updates"] for line in lines), "the optimizer goes on counting"


def test_grpo_runs_by_its_recipe_without_a_critic(folder: Path, cluster: None) -> None:
    words = ["grpo.yaml" if word == "online_dpo.yaml" else word for word in _recipe(folder)]
    words[words.index("--run-dir") + 1] = str(folder / "runs" / "grpo")
    assert main(words) == 0
    lines = _lines(folder / "runs" / "grpo")
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert line["policy/updates"] >= 1.0 and line["policy/grad_norm"] > 0
        assert line[names.FIRST_RATIO] <= 1e-3 and line[names.DRIFT_MEAN] < 1e-3
    assert not [name for line in lines for name in line if "critic" in name]
    report = (folder / "runs" / "grpo" / "report.html").read_text()
    assert "grpo" in report
    policy = Path(json.loads((folder / "runs" / "grpo" / "summary.json").read_text())["policy_dir"])
    assert "grpo" in (policy / "README.md").read_text()


def test_online_dpo_teaches_a_tiny_model_to_write_vowels(folder: Path, cluster: None) -> None:
    """The reward is the share of vowels among the characters of an answer, 0 for an empty one."""
    config = run_config(
        folder / "tiny",
        folder / "prompts.jsonl",
        algorithm={"type": "online_dpo", "num_epochs": 2},
        policy={"learning_rate": 3e-3},
        reward={
            "sources": [{"type": "function", "path": "tests.builders:share_of_vowels"}],
            "truncated": {"mode": "score"},
        },
        rollout={"samples_per_prompt": 4, "max_concurrent": 32},
        train={"num_steps": 20, "prompts_per_step": 8, "checkpoint_every": 20},
    )
    launch(config, folder / "runs" / "vowels", resume=False, command="tests/e2e")
    rewards = [line[names.REWARD_MEAN] for line in _lines(folder / "runs" / "vowels")]
    print("mean reward of each step:", " ".join(f"{reward:.2f}" for reward in rewards))
    assert rewards[0] < 0.35, f"the toy task must start far from solved, not at {rewards[0]:.2f}"
    assert statistics.fmean(rewards[-3:]) > 0.6, rewards
