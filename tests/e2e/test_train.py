"""Whole runs through the command line: Ray, Ray Train, DeepSpeed and vLLM for real, on a tiny model."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from rlhf_ray import metrics as names
from rlhf_ray.cli.main import main
from rlhf_ray.cluster import connected
from rlhf_ray.config import PlacementConfig, RunConfig
from rlhf_ray.config_file import dump_config, load_config
from rlhf_ray.models.reward.build import make_reward_network
from rlhf_ray.models.reward.saving import save_reward_model
from rlhf_ray.models.reward.spec import RewardSpec
from rlhf_ray.models.reward_model import RewardStats, load_tokenizer
from rlhf_ray.models.tiny import tiny_model
from rlhf_ray.rundir.commit import latest_commit, verify
from rlhf_ray.rundir.rollout_table import read_rollouts
from rlhf_ray.tags import run_id
from tests.builders import run_config

TOPICS = ("sun", "moon", "tree", "house", "cat", "dog", "book", "story", "city", "year", "good", "bad")
ROLES = ("controller-0", "policy", "critic", "reference-0", "reward-0", "rollout-0")
ROLLOUTS = 8
OVERRIDES = ("policy.num_workers=2", "policy.deepspeed.zero_stage=2")


@dataclass(frozen=True)
class Finished:
    """A run that is over."""

    path: Path
    config: RunConfig
    actors: dict[str, int]
    """Process ids of the actors that were alive while it ran, by name."""

    def lines(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in (self.path / "metrics.jsonl").read_text().splitlines()]

    def json(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.path / name).read_text())
        return found

    def events(self, kind: str) -> list[str]:
        file = self.path / "events.jsonl"  # appears with the first event
        lines = file.read_text().splitlines() if file.exists() else []
        return [record["sentence"] for record in map(json.loads, lines) if record["kind"] == kind]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy, an untrained reward model and 24 prompts."""
    folder = tmp_path_factory.mktemp("e2e")
    tiny = tiny_model(folder / "tiny")
    spec, stats = RewardSpec(backbone="decoder", max_tokens=512), RewardStats(mean=0, std=1, answers=1, max_tokens=512)
    save_reward_model(folder / "judge", make_reward_network(tiny, spec, 1), load_tokenizer(tiny), stats)
    questions = [f"{verb} the {topic}" for verb in ("tell me about", "explain") for topic in TOPICS]
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"prompt": q}) + "\n" for q in questions))
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """One Ray for all runs of this file: `launch` uses the one that is there."""
    with connected(PlacementConfig(), cpus=8):
        yield


def _watch(run: str, found: dict[str, int], over: threading.Event) -> None:
    """Looks at the cluster as `ray list actors` does, until the run is over."""
    import ray
    from ray.util.state import list_actors

    address = ray.get_runtime_context().gcs_address  # there may be other clusters on this machine
    while not over.wait(1.0):
        for actor in list_actors(address=address, filters=[("state", "=", "ALIVE")], limit=1000):
            if actor.name and actor.name.endswith(f":{run}"):
                found[actor.name.removesuffix(f":{run}")] = actor.pid


def _train(folder: Path, config: RunConfig, run: str, *words: str) -> Finished:
    """`rlhf-ray train` in this process; it must exit with 0."""
    file, path = folder / f"{run}.yaml", folder / "runs" / run
    file.write_text(dump_config(config))
    found: dict[str, int] = {}
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(run_id(path), found, over))
    watcher.start()
    try:
        code = main(["train", str(file), *words, "--run-dir", str(path)])
    finally:
        over.set()
        watcher.join()
    assert code == 0
    overrides = [word for word in words if "=" in word]
    loaded = load_config(file, overrides)
    assert isinstance(loaded, RunConfig)
    return Finished(path, loaded, found)


@pytest.fixture(scope="module")
def first(folder: Path, cluster: None) -> Finished:
    """Two policy ranks with ZeRO-2, full fine-tuning, a learned reward model, a critic made from it."""
    config = run_config(
        folder / "tiny",
        folder / "prompts.jsonl",
        critic={"init": "reward"},
        reward={"sources": [{"type": "model", "path": str(folder / "judge")}]},
        algorithm={"num_minibatches": 2, "num_epochs": 2},
        train={"eval_prompts": 4},
    )
    return _train(folder, config, "first", *OVERRIDES)


def test_every_role_is_an_actor_of_its_own(first: Finished) -> None:
    assert set(ROLES) <= first.actors.keys()
    assert len({first.actors[role] for role in ROLES}) == len(ROLES), "each role has its own process"


def test_the_written_config_runs_again(first: Finished) -> None:
    assert load_config(first.path / "config.yaml") == first.config
    assert first.config.policy.num_workers == 2


def test_every_step_has_all_phases_and_finite_numbers(first: Finished) -> None:
    lines = first.lines()
    assert [line["step"] for line in lines] == [1, 2]
    for line in lines:
        assert all(value is not None and math.isfinite(value) for value in line.values()), line
        assert line["time/step"] >= line["time/overhead"]
        assert line["policy/updates"] == line["critic/updates"] == 4.0
        assert line["policy/grad_norm"] > 0 and line["critic/grad_norm"] > 0
        assert line[names.CHECKSUM_BUCKETS] >= 1
    phases = {names.TIME_PHASE.format(phase=phase) for phase in names.PHASES}
    assert phases - lines[0].keys() == {"time/commit"} and phases <= lines[1].keys()


def test_the_sentinels_are_quiet_and_far_from_their_bounds(first: Finished) -> None:
    """Two ranks, three log-prob implementations (vLLM, DeepSpeed, plain transformers), one answer in float32."""
    for line in first.lines():
        assert line[names.FIRST_RATIO] <= 1e-3
        assert line[names.DRIFT_MEAN] < 1e-3
        for role in ("policy", "critic"):
            assert line[f"{role}/parameters_without_gradient"] == line[f"{role}/skipped_updates"] == 0.0
    assert first.lines()[0][names.REFERENCE_GAP] < 1e-3
    assert first.events("sentinel") == first.events("non_finite_metric") == []


def test_the_rollouts_are_on_record(first: Finished) -> None:
    for step in (1, 2):
        rows = read_rollouts(first.path / "rollouts" / f"step-{step:06d}.parquet")
        assert len(rows) == ROLLOUTS
        assert {row["policy_version"] for row in rows} == {step - 1}
        assert all(row["error"] is None and row["breakdown"] != "{}" for row in rows)
    for name in ("before", "after"):
        assert len(read_rollouts(first.path / "eval" / f"{name}.parquet")) == 4


def test_the_summary_the_report_and_tensorboard(first: Finished) -> None:
    summary = first.json("summary.json")
    wanted = {
        "reward_before", "reward_after", "reward_gain_ci95", "kl_to_reference_per_token", "rm_heldout_accuracy",
        "steps", "rollouts", "seconds_total", "seconds_by_phase", "peak_rss_gib", "policy_dir", "report", "command",
    }  # fmt: skip
    assert wanted <= summary.keys()
    assert (summary["steps"], summary["rollouts"], summary["finished"]) == (2, 2 * ROLLOUTS, True)
    assert 0.1 < summary["peak_rss_gib"] < 20 and summary["seconds_total"] > 1
    assert summary["command"].startswith("rlhf-ray train ") and OVERRIDES[0] in summary["command"]
    assert Path(summary["report"]) == first.path / "report.html"
    page = Path(summary["report"]).read_text()
    assert "plotly" in page.lower() and "explain the city" in page
    assert list((first.path / "tensorboard").glob("events.out.tfevents*"))
    assert {"versions", "hardware", "command"} <= first.json("manifest.json").keys()


def test_the_checkpoint_verifies_and_its_policy_loads_as_it_stands(first: Finished, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    commits = sorted(path.name for path in (first.path / "checkpoints").glob("step-*"))
    assert commits == ["step-000001", "step-000002"]
    for name in commits:
        assert verify(first.path / "checkpoints" / name) == []
    policy = Path(first.json("summary.json")["policy_dir"])
    assert policy == first.path / "checkpoints" / "step-000002" / "policy"
    trained, base = (AutoModelForCausalLM.from_pretrained(path) for path in (policy, folder / "tiny"))
    moved = [bool((a != b).any()) for a, b in zip(trained.parameters(), base.parameters(), strict=True)]
    assert moved and all(moved), "full fine-tuning changes every tensor"
    tokenizer = AutoTokenizer.from_pretrained(policy)
    assert tokenizer.chat_template == load_tokenizer(folder / "tiny").chat_template
    card = (policy / "README.md").read_text()
    assert card.startswith("---\n") and "base_model:" in card and "rlhf" in card


def test_a_resumed_run_goes_on(first: Finished, folder: Path) -> None:
    """Without --resume the directory is refused; with it the third step follows the second."""
    words = ["train", str(folder / "first.yaml"), *OVERRIDES, "--run-dir", str(first.path)]
    assert main(words) == 2
    again = _train(folder, first.config, "first", "train.num_steps=3", "--resume")
    lines = again.lines()
    assert [line["step"] for line in lines] == [1, 2, 3]
    last = lines[-1]
    assert last[names.FIRST_RATIO] <= 1e-3 and last[names.DRIFT_MEAN] < 1e-3
    assert last[names.KL_PER_TOKEN] != 0.0, "the policy must not be the reference again"
    rows = read_rollouts(again.path / "rollouts" / "step-000003.parquet")
    assert {row["policy_version"] for row in rows} == {2}
    asked = [{row["prompt_id"] for row in read_rollouts(path)} for path in sorted((again.path / "rollouts").iterdir())]
    assert not asked[0] & asked[2] and not asked[1] & asked[2], "20 prompts, 4 a step: none comes twice so early"
    commit = latest_commit(again.path / "checkpoints")
    assert commit is not None and (commit.meta["step"], commit.meta["version"]) == (3, 3)
    steps = json.loads((commit.path / "state" / "policy" / "optimizer.json").read_text())["steps"]
    assert steps == 3 * 4, "the optimizer goes on counting"
    assert again.events("resume") == ["Continuing after step 2."]


def test_zero_3_with_adapters_and_a_reward_function_that_fails_for_one_prompt(folder: Path, cluster: None) -> None:
    """Two ranks each for policy and critic. There are 4 prompts, so the faulty one comes every step."""
    learner = {"num_workers": 2, "cpus_per_worker": 0.5, "lora": {"rank": 4}, "deepspeed": {"zero_stage": 3}}
    prompts = folder / "four.jsonl"
    prompts.write_text("".join((folder / "prompts.jsonl").read_text().splitlines(keepends=True)[:4]))
    config = run_config(
        folder / "tiny",
        prompts,
        policy=learner,
        critic=learner,
        reward={"sources": [{"type": "function", "path": "tests.fakes:fails_on_the_moon"}]},
        train={"checkpoint_every": 2},
    )
    done = _train(folder, config, "adapters")
    lines = done.lines()
    assert [line[names.QUARANTINED] for line in lines] == [2.0, 2.0]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert all(line[names.DRIFT_MEAN] < 1e-3 and line[names.FIRST_RATIO] <= 1e-3 for line in lines)
    for step, sentence in enumerate(done.events("quarantine"), start=1):
        assert sentence.startswith(f"Step {step}: 2 of 8 rollouts") and "nothing is known about the moon" in sentence
    assert len(done.events("quarantine")) == 2
    rows = read_rollouts(done.path / "rollouts" / "step-000001.parquet")
    faulty = [row for row in rows if row["error"]]
    assert len(rows) == ROLLOUTS and all("moon" in str(row["prompt"]) and row["reward"] is None for row in faulty)
    assert len(faulty) == 2

    from transformers import AutoModelForCausalLM

    policy = Path(done.json("summary.json")["policy_dir"])
    assert not [file.name for file in policy.iterdir() if "adapter" in file.name], "adapters are merged"
    trained, base = (AutoModelForCausalLM.from_pretrained(path) for path in (policy, folder / "tiny"))
    moved = {name for (name, a), b in zip(trained.named_parameters(), base.parameters(), strict=True) if (a != b).any()}
    assert moved == {name for name, _ in base.named_parameters() if "proj" in name}
