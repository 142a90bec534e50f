"""The command line: exit codes, messages on stderr, JSON on stdout, and nothing started by mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from tiny_folders import run_config

from rlhf_ray.cli.doctor import diagnose_run
from rlhf_ray.cli.main import main
from rlhf_ray.config import RunConfig
from rlhf_ray.config_file import dump_config
from rlhf_ray.errors import RunError

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config file that passes every check, in the current directory; it runs a fake launch."""

    config = run_config(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_text(dump_config(config))
    return tmp_path / "run.yaml"


def fake_launch(monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None) -> list[tuple[object, ...]]:
    calls: list[tuple[object, ...]] = []

    def launch(config: RunConfig, run_dir: Path, resume: bool, command: str) -> dict[str, object]:
        calls.append((config.name, run_dir, resume, command))
        if error:
            raise error
        return {"reward_after": 1.0}

    module = types.ModuleType("rlhf_ray.cluster")
    module.launch = launch  # type: ignore[attr-defined]  # a stand-in for the module that starts actors
    monkeypatch.setitem(sys.modules, "rlhf_ray.cluster", module)
    return calls


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from rlhf_ray.cli.main import main; main(['--help']); "
        "heavy = {'torch', 'ray', 'transformers', 'vllm', 'pydantic'} & set(sys.modules); "
        "sys.exit(str(heavy or '') or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "train" in done.stdout and "doctor" in done.stdout


@pytest.mark.parametrize("verb", ["demo", "train", "doctor", "compare", "report"])
def test_every_verb_has_an_example(verb: str, capsys: Captured) -> None:
    assert main([verb, "--help"]) == 0
    assert f"Example: rlhf-ray {verb}" in " ".join(capsys.readouterr().out.split())


def test_version(capsys: Captured) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("rlhf-ray 0.")


def test_wrong_usage_is_2(capsys: Captured) -> None:
    assert main(["train"]) == 2
    assert main(["nonsense"]) == 2
    assert main(["report", "nowhere"]) == 2
    assert "error: nowhere holds no run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["policy.num_worker=2"], "policy.num_worker: unknown key; did you mean num_workers?"),
        (["prompts.path=none.jsonl"], "file none.jsonl does not exist"),
        (["prompts.path=bad.jsonl"], "bad.jsonl row 1: not a JSON object"),
        (["prompts.max_prompt_tokens=20"], "20 of 20 prompts are longer than prompts.max_prompt_tokens = 20"),
        (["model.path=./gone"], "model folder ./gone does not exist"),
        (["algorithm.num_minibatches=5"], "do not divide into algorithm.num_minibatches = 5"),
        (["--run-dir", "policy"], "run directory policy exists already"),
        (["--resume"], "holds no run"),
    ],
)
def test_bad_input_is_one_clear_error_and_starts_nothing(
    good: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured, words: list[str], message: str
) -> None:
    (good.parent / "bad.jsonl").write_text("oops")
    calls = fake_launch(monkeypatch)
    assert main(["train", str(good), *words]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and message in captured.err
    assert "Traceback" not in captured.err and calls == []


def test_train_launches_with_the_exact_command(good: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    calls = fake_launch(monkeypatch)
    assert main(["train", "run.yaml", "seed=3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"reward_after": 1.0}
    command = "rlhf-ray train run.yaml seed=3 --run-dir runs/test"
    assert calls == [("test", Path("runs/test"), False, command)]


@pytest.mark.parametrize(
    ("error", "code"),
    [(RunError("policy rank 1 died"), 1), (KeyboardInterrupt(), 130)],
)
def test_exit_codes_of_a_run(
    good: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured, error: BaseException, code: int
) -> None:
    fake_launch(monkeypatch, error)
    assert main(["train", "run.yaml"]) == code
    if isinstance(error, RunError):
        assert "error: policy rank 1 died" in capsys.readouterr().err


def test_a_termination_signal_ends_a_run_like_an_interrupt(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupted = []

    def launch(*_: object) -> dict[str, object]:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except KeyboardInterrupt:
            interrupted.append(True)
            raise
        return {}

    fake_launch(monkeypatch)
    monkeypatch.setattr(sys.modules["rlhf_ray.cluster"], "launch", launch)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["train", "run.yaml"]) == 143
    assert interrupted and signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_ends_a_run_at_once_and_an_echo_of_the_first_does_not(
    good: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's service signals each process of a job, so a driver gets what its supervisor passes on a second time."""
    seen: list[str] = []

    def launch(*_: object) -> dict[str, object]:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        except KeyboardInterrupt:
            seen.append("first")
        os.kill(os.getpid(), signal.SIGTERM)
        seen.append("committing")
        time.sleep(1.1)
        os.kill(os.getpid(), signal.SIGTERM)
        seen.append("too late")
        return {}

    fake_launch(monkeypatch)
    monkeypatch.setattr(sys.modules["rlhf_ray.cluster"], "launch", launch)
    assert main(["train", "run.yaml"]) == 143
    assert seen == ["first", "committing"]


def test_traceback_on_request(good: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    fake_launch(monkeypatch, RunError("[bold] is not markup"))
    monkeypatch.setenv("RLHF_RAY_TRACEBACK", "1")
    assert main(["train", "run.yaml"]) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown and "error: [bold] is not markup" in shown


def test_dry_run_prints_everything_and_starts_nothing(
    good: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    calls = fake_launch(monkeypatch)
    assert main(["train", "run.yaml", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    for part in ("16 prompts x 1 samples = 16 rollouts", "rollout", "critic", "gae_lambda", "nothing was started"):
        assert part in shown
    assert calls == [] and not (good.parent / "runs").exists()


def test_the_gpu_recipe_passes_a_dry_run_without_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rlhf_ray.cli.train._visible_gpus", lambda: 0)
    assert main(["train", "ppo_8gpu.yaml", "--dry-run", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert any("this machine lacks 8 GPUs" in note for note in shown["notes"])
    assert sum(role["actors"] * role["gpus_each"] for role in shown["roles"]) == 8
    assert RunConfig.model_validate(shown["config"]).policy.deepspeed.zero_stage == 3


def test_doctor_names_the_fix(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert main(["doctor"]) == 1
    assert "does not answer" in capsys.readouterr().out
    monkeypatch.delenv("RAY_ADDRESS")
    main(["doctor", "--json"])
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert {"python", "torch", "memory", "embedded model"} <= {finding["name"] for finding in findings}


def test_doctor_checks_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is well, a lack of memory with its fix, and all that is in the way of a start, not only the first of it."""
    config = run_config(tmp_path)
    (tmp_path / "run.yaml").write_text(dump_config(config))
    monkeypatch.chdir(tmp_path)
    *notes, memory = diagnose_run("run.yaml", [], None)
    assert memory.name == "memory at the peak" and memory.ok and all(note.ok for note in notes)
    found = {note.name: note.found for note in notes}
    assert found["steps"] == config.arithmetic() and found["prompts"] == "16 training prompts, 4 held out"
    assert found["policy"] == found["critic"] == found["disk"] == found["run directory"] == "checked"
    monkeypatch.setattr("rlhf_ray.preflight.memory_gib", lambda: 1.0)
    *_, memory = diagnose_run("run.yaml", [], None)
    assert "more than the 1.0 of this machine" in memory.fix
    (tmp_path / "policy" / "chat_template.jinja").unlink()
    (tmp_path / "taken").mkdir()
    bad = diagnose_run("run.yaml", ["prompts.path=none.jsonl", "rollout.max_new_tokens=400"], tmp_path / "taken")
    lacks = {finding.name: finding.fix for finding in bad if finding.found == "cannot start"}
    assert lacks.keys() == {"run directory", "policy", f"reward {tmp_path / 'reward'}", "prompts"}
    assert "exists already" in lacks["run directory"] and "no chat template" in lacks["policy"]
    assert "656 tokens" in lacks[f"reward {tmp_path / 'reward'}"] and "none.jsonl does not" in lacks["prompts"]
    weights = tmp_path / "policy" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:40])
    lacks = {finding.name: finding.fix for finding in diagnose_run("run.yaml", [], None) if not finding.ok}
    assert "model.safetensors" in lacks["policy"] and "cannot be read" in lacks["disk"]


@pytest.mark.parametrize(
    ("more", "message"),
    [(["--fixed-data", "dpo"], "--soak and --fixed-data: choose one"), ([], "--soak 1: nobody would be killed in it")],
)
def test_a_soak_that_proves_nothing(tmp_path: Path, capsys: Captured, more: list[str], message: str) -> None:
    assert main(["chaos", "--soak", "1", "--out", str(tmp_path / "out"), *more]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
