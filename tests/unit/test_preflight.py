"""Everything that must be refused before an actor starts."""

from __future__ import annotations

import contextlib
import shutil
import socket
from pathlib import Path

import pytest
from tiny_folders import model_folder, reward_folder, run_config

from rlhf_ray.config import RewardModelConfig, RunConfig, SFTConfig
from rlhf_ray.errors import UserError
from rlhf_ray.models.tiny import tiny_model
from rlhf_ray.preflight import _check_disk, check_function, feasible, memory_finding, preflight
from rlhf_ray.resources import checkpoint_gib, least_memory_gib, requests
from rlhf_ray.rewards.base import FunctionRewardConfig


def refusal(config: RunConfig | RewardModelConfig, run_dir: Path, resume: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        preflight(config, run_dir, resume)
    return str(caught.value)


def test_a_good_run_passes_and_tells_its_arithmetic(tmp_path: Path) -> None:
    *notes, memory = preflight(run_config(tmp_path), tmp_path / "run", False)
    assert notes == [run_config(tmp_path).arithmetic(), "16 training prompts, 4 held out"]
    assert memory.startswith("memory at the peak: about ") and memory.endswith(")")
    assert not (tmp_path / "run").exists()


def test_run_directory(tmp_path: Path) -> None:
    config, run = run_config(tmp_path), tmp_path / "run"
    assert "holds no run" in refusal(config, run, resume=True)
    run.mkdir()
    assert "exists already; continue it with --resume" in refusal(config, run)
    (run / "config.yaml").write_text("")
    preflight(config, run, True)


def test_data_and_models_are_checked(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert "none.jsonl does not exist" in refusal(run_config(tmp_path, prompts={"path": "none.jsonl"}), run)
    (tmp_path / "policy" / "chat_template.jinja").unlink()
    assert "no chat template" in refusal(run_config(tmp_path), run)


def test_critic_from_the_reward_model_needs_the_policys_tokenizer(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    reward_folder(tmp_path / "reward", extra="é")
    assert "tokenizers of" in refusal(config, tmp_path / "run")
    preflight(run_config(tmp_path, critic={"init": "policy"}), tmp_path / "run", False)


def test_critic_from_the_reward_model_needs_a_reward_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rewards_for_test.py").write_text("def f(prompt, response, reference): return 0.0")
    monkeypatch.chdir(tmp_path)
    reward = {"sources": [{"type": "function", "path": "rewards_for_test:f"}]}
    assert "critic.init = reward needs" in refusal(run_config(tmp_path, reward=reward), tmp_path / "run")
    preflight(run_config(tmp_path, reward=reward, critic={"init": "policy"}), tmp_path / "run", False)


def test_sequences_must_fit_the_model(tmp_path: Path) -> None:
    config = run_config(tmp_path, rollout={"max_new_tokens": 400})
    assert "= 656 tokens, but" in refusal(config, tmp_path / "run")


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config(tmp_path)
    assert checkpoint_gib(config) * 2**30 == 20 * 4 + 2 * 20 * 12  # the policy; of two learners weights and moments
    monkeypatch.setattr("rlhf_ray.preflight.checkpoint_gib", lambda config: 1e6)
    assert "GiB of disk are free, but train.keep_checkpoints = 2" in refusal(config, tmp_path / "run")
    free = shutil.disk_usage(tmp_path).free / 2**30
    monkeypatch.setattr("rlhf_ray.preflight.checkpoint_gib", lambda config: 0.45 * free)
    for step in range(2):  # of which one that is resumed has some already
        with pytest.raises(UserError, match="GiB of disk are free"):
            _check_disk(config, tmp_path / "run")
        (tmp_path / "run" / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    _check_disk(config, tmp_path / "run")


def test_a_silent_ray_cluster(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: nobody answers
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        config = run_config(tmp_path, placement={"address": address})
        assert f"ray cluster: {address} does not answer" in refusal(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module_here:f", "cannot import no_such_module_here .*is it on PYTHONPATH"),
        ("math:no_such", "math has no no_such"),
        ("math:pi", "it is a float, not a function"),
        ("textwrap:dedent", "must accept"),
        ("exits:f", "importing exits failed: SystemExit: 0"),
        ("raises:f", "importing raises failed: ZeroDivisionError"),
        ("dies:f", r"the process of dies:f died \(SIGSEGV\)"),
        ("fine:f", ""),
    ],
)
def test_reward_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, message: str) -> None:
    """Nothing that their modules do harms the driver."""
    deaths = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
    bodies = {"exits": "raise SystemExit(0)", "raises": "1 / 0", "dies": deaths, "fine": "f = lambda p, r, ref: 1.0"}
    for name, body in bodies.items():
        (tmp_path / f"{name}.py").write_text(body)
    monkeypatch.chdir(tmp_path)
    source = FunctionRewardConfig(type="function", path=path)
    with pytest.raises(UserError, match=message) if message else contextlib.nullcontext():
        check_function(source)


def test_a_dry_run_notes_what_only_the_hub_has(tmp_path: Path) -> None:
    config = run_config(tmp_path, model={"path": "nobody/nothing"}, prompts={"path": "nobody/no-data"})
    notes = preflight(config, tmp_path / "run", False, download=False)
    assert "model nobody/nothing is not on this machine" in notes[1]
    assert "prompts of nobody/no-data are on the hub" in notes[2]


def test_the_scale_of_a_reward_model_is_told(tmp_path: Path) -> None:
    config = run_config(tmp_path)
    stats = tmp_path / "reward" / "reward_stats.json"
    stats.write_text(stats.read_text().replace("4096", "8"))
    assert any("trained on at most 8 tokens" in note for note in preflight(config, tmp_path / "run", False))
    stats.unlink()
    assert any("no reward_stats.json" in note for note in preflight(config, tmp_path / "run", False))


def test_reward_model_runs(tmp_path: Path) -> None:
    model = str(tiny_model(tmp_path / "tiny"))
    raw = {"kind": "reward", "name": "rm", "model": {"path": model}, "data": {"path": "none.jsonl"}}
    assert "none.jsonl" in refusal(RewardModelConfig.model_validate(raw), tmp_path / "run")


def test_what_a_cluster_lacks_is_named_by_role(tmp_path: Path) -> None:
    config = run_config(
        tmp_path,
        policy={"num_workers": 4, "gpus_per_worker": 1},
        rollout={"engines": 2, "cpus": 2, "tensor_parallel": 2, "gpus": 1},
        reference={"replicas": 2},
    )
    assert sum(role.total_cpus for role in requests(config)) == 4 + 1 + 2 + 1 + 4
    assert sum(role.total_gpus for role in requests(config)) == 4 + 4
    feasible(config, 12, 8, 64)
    with pytest.raises(UserError) as caught:
        feasible(config, 4, 2, 64)
    message = str(caught.value)
    assert "asks for 12 CPUs (rollout 4, reward 1, reference 2, policy 4, critic 1), the cluster has 4" in message
    assert "asks for 8 GPUs (rollout 4, policy 4), the cluster has 2" in message


def test_a_run_without_a_critic_asks_nothing_for_it(tmp_path: Path) -> None:
    """Neither of the cluster nor of the disk nor of the reward model's tokenizer."""
    changes = {"algorithm": {"type": "online_dpo"}, "rollout": {"samples_per_prompt": 2}}
    config = run_config(tmp_path, critic={"num_workers": 8, "gpus_per_worker": 1}, **changes)
    assert [role.role for role in requests(config)] == ["controller", "rollout", "reward", "reference", "policy"]
    assert checkpoint_gib(config) * 2**30 == 20 * 4 + 20 * 12
    assert "critic" not in least_memory_gib(config)
    reward_folder(tmp_path / "reward", extra="é")
    notes = preflight(config, tmp_path / "run", False)
    assert "= 32 rollouts a step = 16 pairs = 1 minibatches of 16 x 1 epochs, over 1 policy ranks" in notes[0]
    assert notes[1] == "critic is ignored: algorithm.type = online_dpo has none"
    without = preflight(run_config(tmp_path, **changes), tmp_path / "run", False)
    assert not [note for note in without if "critic" in note]


def test_memory_has_a_lower_bound(tmp_path: Path) -> None:
    config = run_config(tmp_path, rollout={"kv_cache_gib": 3})
    assert least_memory_gib(config)["policy"] * 2**30 == pytest.approx(20 * 16)
    with pytest.raises(UserError, match=r"at least 3 GiB of memory \(rollout 3"):
        feasible(config, 12, 0, 2.0)


def test_too_little_memory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = run_config(tmp_path)
    assert "more than" not in memory_finding(config).line
    monkeypatch.setattr("rlhf_ray.preflight.memory_gib", lambda: 1.0)
    assert "more than the 1.0 of this machine: lower microbatch_tokens" in memory_finding(config).line
    monkeypatch.setenv("RAY_ADDRESS", "somewhere")
    assert "more than" not in memory_finding(config).line, "the cluster has it"


def test_runs_on_fixed_data_need_room_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_folder(tmp_path / "policy")
    train = {"num_workers": 2, "gpus_per_worker": 1, "keep_checkpoints": 3}
    raw = {"name": "sft", "model": {"path": str(model)}, "data": {"path": "demo"}, "train": train}
    config = SFTConfig.model_validate(raw)
    assert checkpoint_gib(config) * 2**30 == 20 * 4 + 20 * 12
    assert checkpoint_gib(SFTConfig.model_validate(raw | {"lora": {"rank": 2}})) * 2**30 == 20 * 4
    assert least_memory_gib(config) == {}, "it is the GPU's"
    with pytest.raises(UserError, match=r"asks for 2 GPUs \(sft group 2\), the cluster has 1"):
        feasible(config, 2, 1, 64)
    on_cpu = SFTConfig.model_validate(raw | {"train": {"num_workers": 2, "deepspeed": {"zero_stage": 1}}})
    assert least_memory_gib(on_cpu)["sft group"] * 2**30 == pytest.approx(20 * (2 * 8 + 8))
    monkeypatch.setattr("rlhf_ray.preflight.checkpoint_gib", lambda config: 1e6)
    with pytest.raises(UserError, match=r"GiB of disk are free, but train\.keep_checkpoints = 3"):
        preflight(config, tmp_path / "run", False)
