"""`rlhf-ray compare`: the runs that --recipe plans, which of them are made, and what the command prints."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from finished_runs import fill, finished_run
from tiny_folders import run_config

from rlhf_ray.algorithms.grpo import GRPOConfig
from rlhf_ray.algorithms.ppo import PPOConfig
from rlhf_ray.algorithms.reinforce import REINFORCEConfig
from rlhf_ray.algorithms.reinforce_pp import REINFORCEPlusPlusBaselineConfig
from rlhf_ray.algorithms.rloo import RLOOConfig
from rlhf_ray.algorithms.trpo import TRPOConfig
from rlhf_ray.cli.compare_plan import RunPlan, carried_over, known_algorithms, plan_runs
from rlhf_ray.cli.main import main
from rlhf_ray.config import RunConfig
from rlhf_ray.config_file import dump_config, load_config
from rlhf_ray.errors import RunError, UserError
from rlhf_ray.rundir.journal import write_summary

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A recipe that passes every check, in the current directory: PPO, 16 prompts of 1 sample."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(dump_config(run_config(tmp_path)))
    return "run.yaml"


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, bool, str]]:
    """What was launched: algorithm, seed, whether it was resumed, command. A stand-in leaves finished runs."""
    calls: list[tuple[str, int, bool, str]] = []

    def launch(config: RunConfig, run_dir: Path, resume: bool, command: str) -> dict[str, object]:
        calls.append((config.algorithm.type, config.seed, resume, command))
        fill(run_dir, config)
        return {}

    @contextlib.contextmanager
    def connected(*_: object) -> Iterator[None]:
        yield

    module = types.ModuleType("rlhf_ray.cluster")
    module.launch, module.connected = launch, connected  # type: ignore[attr-defined]  # a stand-in for the real one
    monkeypatch.setitem(sys.modules, "rlhf_ray.cluster", module)
    return calls


def plan(algorithms: str, *overrides: str, seeds: int = 1) -> RunPlan:
    return plan_runs("run.yaml", overrides, algorithms.split(","), seeds)


def test_every_algorithm_has_every_seed_and_the_same_budget(recipe: str) -> None:
    found = plan("ppo,grpo,rloo", "seed=5", "policy.learning_rate=3e-4", seeds=2)
    assert found.folders == [f"{name}-seed{seed}" for name in ("ppo", "grpo", "rloo") for seed in (5, 6)]
    assert len({config.name for config in found.configs}) == 6
    for config in found.configs:
        assert (config.train.prompts_per_step, config.rollout.samples_per_prompt) == (8, 2), "16 x 1 has no groups"
        assert config.policy.learning_rate == 3e-4
    shared = [config.model_dump(exclude={"algorithm", "seed", "name"}) for config in found.configs]
    assert all(one == shared[0] for one in shared)
    assert found.notes[0].startswith("samples_per_prompt is 2 instead of 1 in all runs")
    assert "prompts_per_step is 8 instead of 16, so that a step has 16 rollouts as before" in found.notes[0]
    alone = plan("ppo,reinforce")
    assert alone.configs[0].rollout.samples_per_prompt == 1 and "samples_per_prompt" not in alone.notes[0]


def test_what_the_recipe_says_of_its_algorithm_is_carried_over_where_it_means_the_same() -> None:
    ppo = PPOConfig(num_minibatches=2, kl_coef=0.2, gae_lambda=0.9, clip_range=0.1, aggregation="token_mean")
    assert carried_over(ppo, PPOConfig)[0] == {
        "type": "ppo", "num_minibatches": 2, "kl_coef": 0.2, "gae_lambda": 0.9, "clip_range": 0.1,
    }  # fmt: skip
    settings, note = carried_over(ppo, GRPOConfig)
    assert settings == {"type": "grpo", "num_minibatches": 2, "kl_coef": 0.2, "clip_range": 0.1}
    assert note == (
        "grpo: its own defaults, num_minibatches = 2, clip_range = 0.1, kl_coef = 0.2; "
        "not taken over from the recipe: gae_lambda"
    )
    assert GRPOConfig.model_validate(settings).aggregation == "length_normalised", "PPO's default is not a choice"
    assert carried_over(ppo, TRPOConfig)[0] == {
        "type": "trpo", "num_minibatches": 2, "kl_coef": 0.2, "gae_lambda": 0.9,
    }  # fmt: skip
    high = carried_over(PPOConfig(clip_range_high=0.3), REINFORCEConfig)[0]
    assert REINFORCEConfig.model_validate(high).clip_range_high is None, "it has no clipping to widen"
    in_loss = GRPOConfig(kl_estimator="k3")
    assert carried_over(in_loss, RLOOConfig)[0] == {"type": "rloo"}, "its KL is in the reward"
    assert carried_over(in_loss, REINFORCEPlusPlusBaselineConfig)[0]["kl_estimator"] == "k3", "in the loss as well"
    placed = PPOConfig(kl_placement="loss", kl_estimator="k3")
    assert carried_over(placed, RLOOConfig)[0] == {"type": "rloo", "kl_placement": "loss", "kl_estimator": "k3"}
    assert carried_over(RLOOConfig(), GRPOConfig) == ({"type": "grpo"}, "grpo: its own defaults")


def test_a_resolved_config_plans_the_same_runs_as_its_recipe(recipe: str) -> None:
    """Its defaults are written out, and are still no choices."""
    runs = plan("ppo,grpo,dpo").configs
    Path("resolved.yaml").write_text(dump_config(load_config(recipe)))
    again = plan_runs("resolved.yaml", [], ["ppo", "grpo", "dpo"], 1).configs
    assert again == runs and runs[2].algorithm.type == "online_dpo"


def test_a_critic_that_the_recipe_does_not_set_is_said(recipe: str) -> None:
    grpo = ["algorithm={type: grpo}", "rollout.samples_per_prompt=2"]
    said = "ppo: the recipe has no critic section"
    assert [note for note in plan("grpo,ppo", *grpo).notes if note.startswith(said)]
    assert not [note for note in plan("grpo,ppo", *grpo, "critic.lora={rank: 8}").notes if said in note]
    assert not [note for note in plan("grpo,ppo").notes if said in note], "a recipe of PPO means its critic"


@pytest.mark.parametrize("name", sorted(known_algorithms().keys() - {"ppo_lagrangian"}))
def test_every_algorithm_can_be_planned_from_a_recipe_of_ppo(recipe: str, name: str) -> None:
    settings = ["algorithm.num_minibatches=2", "algorithm.num_epochs=2", "algorithm.clip_range=0.1"]
    (config,) = plan(name, *settings).configs
    assert config.algorithm.type == name and config.rollouts_per_step == 16


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--algorithms", "ppo,gprs"], "there is no gprs; known: ppo, ppo_lagrangian, trpo, grpo, rloo, reinforce,"),
        (["--algorithms", "ppo,gprs"], "online_dpo, dpo (that is online_dpo)"),
        (["--algorithms", "ppo,"], "there is no algorithm without a name"),
        (["--algorithms", "dpo,online_dpo"], "--algorithms dpo,online_dpo names an algorithm twice"),
        (["--algorithms", "ppo,grpo", "--seeds", "0"], "--seeds 0: at least 1"),
        (["--algorithms", "grpo", "--set", "train.prompts_per_step=15"], "15 rollouts a step cannot be 2 samples"),
        (["--algorithms", "grpo,rloo", "--set", "train.eval_prompts=0"], "train.eval_prompts = 0"),
        (["--algorithms", "grpo", "--set", "train.nonsense=0"], "train.nonsense: unknown key"),
        (["--algorithms", "grpo", "--set", "prompts.path=gone.jsonl"], "file gone.jsonl does not exist"),
        (["--algorithms", "ppo,ppo_lagrangian"], "ppo_lagrangian with the settings of the recipe: "),
        (["--algorithms", "ppo,dpo", "--set", "algorithm.num_minibatches=16"], "online_dpo with the settings of"),
        ([], "--recipe, --algorithms and --set belong together"),
    ],
)
def test_mistakes_start_nothing(
    recipe: str, launched: Sequence[object], capsys: Captured, words: list[str], message: str
) -> None:
    assert main(["compare", "--recipe", recipe, *words]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and "Traceback" not in captured.err
    assert not launched and not Path("runs").exists()


def test_dynamic_sampling_has_no_fixed_budget(recipe: str) -> None:
    with pytest.raises(UserError, match="samples as many rollouts as it needs"):
        plan("grpo", "rollout.samples_per_prompt=2", "train.dynamic_sampling={max_rounds: 4}")


def test_runs_are_made_once_and_compared(
    recipe: str, launched: list[tuple[str, int, bool, str]], capsys: Captured
) -> None:
    words = ["compare", "--recipe", recipe, "--algorithms", "grpo,dpo", "--seeds", "2", "--set", "train.num_steps=4"]
    words += ["train.checkpoint_every=4", "--out", "out"]
    assert main(words) == 0
    command = (
        "rlhf-ray compare --recipe run.yaml --algorithms grpo,dpo --seeds 2 --set train.num_steps=4 "
        "--set train.checkpoint_every=4 --out out"
    )
    assert launched == [(name, seed, False, command) for name in ("grpo", "online_dpo") for seed in (0, 1)]
    captured = capsys.readouterr()
    for said in ("samples_per_prompt is 2 instead", "4 runs, 0 of them finished", "run 4 of 4: out/online_dpo-seed1"):
        assert said in captured.err, said
    assert "online_dpo" in captured.out and "out/comparison.html" in captured.out
    assert Path("out/comparison.html").is_file()

    launched.clear()
    write_summary(Path("out/online_dpo-seed0"), {"finished": False})
    assert main(words) == 0
    assert [call[:3] for call in launched] == [("online_dpo", 0, True)], "finished runs stay, an unfinished one goes on"
    assert "4 runs, 3 of them finished already" in capsys.readouterr().err

    launched.clear()
    assert main([*words, "policy.learning_rate=0.5"]) == 2
    shown = capsys.readouterr().err
    assert "out/grpo-seed0 holds a run with other settings (policy.learning_rate is 1e-05 there and 0.5 now)" in shown
    assert not launched


def test_a_folder_that_holds_something_else_is_left_alone(
    recipe: str, launched: Sequence[object], capsys: Captured
) -> None:
    Path("out/grpo-seed0").mkdir(parents=True)
    assert main(["compare", "--recipe", recipe, "--algorithms", "grpo", "--out", "out"]) == 2
    assert "out/grpo-seed0 exists and holds no run" in capsys.readouterr().err and not launched


def test_the_disk_must_hold_the_checkpoints_of_all_runs(
    recipe: str, launched: Sequence[object], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    """Each run alone passes: the runs before the last would fill the disk."""
    free = shutil.disk_usage(".").free / 2**30
    monkeypatch.setattr("rlhf_ray.cli.compare_plan.checkpoint_gib", lambda config: free / 3)
    assert main(["compare", "--recipe", recipe, "--algorithms", "grpo", "--seeds", "2"]) == 2
    assert "but the checkpoints of 2 runs need about" in capsys.readouterr().err and not launched


def test_a_run_that_fails_ends_the_command(
    recipe: str, launched: list[tuple[str, int, bool, str]], monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    def launch(*_: object) -> None:
        raise RunError("policy rank 1 died")

    monkeypatch.setattr(sys.modules["rlhf_ray.cluster"], "launch", launch)
    assert main(["compare", "--recipe", recipe, "--algorithms", "grpo,rloo"]) == 1
    shown = capsys.readouterr().err
    assert "error: policy rank 1 died" in shown and "run 2 of" not in shown


def test_finished_runs_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.chdir(tmp_path)
    finished_run(Path("one"), after=[1.0, 2.0, 3.0, 4.0])
    finished_run(Path("two"), algorithm={"type": "rloo"}, after=[2.0, 2.0, 4.0, 0.0])
    assert main(["compare", "one", "two"]) == 0
    shown = capsys.readouterr().out
    for part in ("grpo", "rloo", "baseline", "62% (", "+2.500 (", "runs/comparison/comparison.html"):
        assert part in shown, part
    assert main(["compare", "one", "two", "--out", "b", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(Path("b/comparison.json").read_text())
    assert [method["label"] for method in printed["methods"]] == ["grpo", "rloo"]
    assert main(["compare", "one"]) == main(["compare"]) == main(["compare", "one", "two", "--set", "seed=1"]) == 2
    finished_run(Path("three"), model={"path": "large"})
    capsys.readouterr()
    assert main(["compare", "one", "three"]) == 2
    assert "error: one and three cannot be compared: model.path is tiny and large" in capsys.readouterr().err
