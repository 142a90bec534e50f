"""Sweeps for real: Ray Tune over Ray Train, vLLM and DeepSpeed, on a tiny model. Trials that share actors must be the
runs that they would have been alone, and a killed sweep must end as if nothing had happened."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import yaml

from rlhf_ray.cluster import connected, launch, launch_offline
from rlhf_ray.config import PlacementConfig, RunConfig
from rlhf_ray.config_file import load_config
from rlhf_ray.models.tiny import tiny_model
from rlhf_ray.rundir.lines import read_lines
from rlhf_ray.sweep.plan import FIGURES, load_sweep
from rlhf_ray.sweep.run import run_sweep, write_plan
from rlhf_ray.tags import run_id

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "sweeps.md"
TINY = ["rollout.max_new_tokens=12", "rollout.kv_cache_gib=0.25", "rollout.max_concurrent=16", "model.path=tiny"]
TINY += ["reward.sources.0={type: function, path: 'tests.builders:share_of_vowels'}", "prompts.max_prompt_tokens=256"]
TINY += ["train.prompts_per_step=4", "train.eval_prompts=6", "train.deadline_s=180", "policy.lora=null"]
FIXED = ["model.path=tiny", "lora=null", "data.limit=60", "data.max_tokens=120", "train.batch_size=4"]
FIXED += ["train.cpus_per_worker=0.5"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The current directory of all tests here, with a tiny model in it."""
    folder, before = tmp_path_factory.mktemp("sweeps"), Path.cwd()
    tiny_model(folder / "tiny")
    os.environ["PYTHONPATH"] = str(ROOT)  # for the reward function, in the actors
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def cluster(place: Path) -> Iterator[None]:
    with connected(PlacementConfig(), cpus=10):
        yield


def _comparable(run: Path) -> list[dict[str, object]]:
    """The metrics of each step without times."""
    clocks = ("time/", "busy/", "throughput/")
    return [{k: v for k, v in line.items() if not k.startswith(clocks)} for line in read_lines(run / "metrics.jsonl")]


def _state(folder: Path) -> dict[str, tuple[str, object]]:
    told = [json.loads(file.read_text()) for file in sorted(folder.glob("runs/*/trial.json"))]
    return {f"{one['values']} {one['seed']}": (one["state"], one["error"]) for one in told}


def test_a_trial_that_shares_is_the_run_that_it_would_be_alone(place: Path, cluster: None) -> None:
    """Two at a time take turns at one engine: each must push its weights again after the other."""
    space = "space={algorithm.clip_range: {grid: [0.1, 0.4]}, policy.learning_rate: {grid: [1.0e-3, 3.0e-3]}}"
    own = ["critic.lora=null", "critic.init=policy", "critic.learning_rate=1e-3", "train.num_steps=3"]
    overrides = [*TINY, *own, space, "scheduler=null", "trials=1", "concurrent=2", "algorithm.num_epochs=2"]
    plan = load_sweep(ROOT / "tune_configs" / "ppo_clip_kl.yaml", overrides)
    out = place / "shared"
    cost = run_sweep(plan, out, resume=False, command="test")
    assert cost["shared"] == ["rollout", "reference", "reward"] and cost["trials"] == 4 and not cost["failed"]
    assert {state for state, _ in _state(out).values()} == {"finished"}
    runs = sorted((out / "runs").iterdir())
    curves = [_comparable(run) for run in runs]
    assert len({json.dumps(curve) for curve in curves}) == 4, "what varies makes no difference"
    config = load_config(runs[3] / "config.yaml")
    assert isinstance(config, RunConfig)
    alone = launch(config, place / "alone", resume=False, command="test")
    assert curves[3] == _comparable(place / "alone")
    shared = json.loads((runs[3] / "summary.json").read_text())
    for figure in FIGURES["online"]:
        assert shared[figure] == alone[figure], figure


def test_asha_ends_trials_early(place: Path, cluster: None) -> None:
    """The shipped sweep of PPO. It goes by a number that says at the first step already which trial lags behind."""
    own = ["critic.lora=null", "critic.init=policy", "train.num_steps=2", "trials=1", "scheduler.grace=1"]
    own += ["scheduler.metric=kl/coef", "space.algorithm.kl_coef={grid: [0.3, 0.2, 0.1]}"]
    plan = load_sweep(ROOT / "tune_configs" / "ppo_clip_kl.yaml", [*TINY, *own])
    run_sweep(plan, place / "asha", resume=False, command="test")
    runs = sorted((place / "asha" / "runs").iterdir())
    states = [json.loads((run / "trial.json").read_text())["state"] for run in runs]
    assert states == ["finished", "stopped", "stopped"]
    assert [len(read_lines(run / "metrics.jsonl")) for run in runs] == [2, 1, 1]


def test_optuna_hears_the_mean_of_the_seeds_and_an_engine_that_dies_costs_no_trial(place: Path, cluster: None) -> None:
    """The shipped sweep of GRPO, with two seeds of each proposal. The shared engine is killed while the first trial
    trains, which goes on with the one that Ray has started again."""
    own = ["train.num_steps=6", "train.checkpoint_every=2", "trials=2", "seeds=2"]
    plan = load_sweep(ROOT / "tune_configs" / "grpo_lr_kl.yaml", [*TINY, *own])
    out, killed = place / "optuna", list[int]()
    first = out / "runs" / "00001"  # with Optuna Tune counts from 1

    def kill() -> None:
        lines = first / "metrics.jsonl"
        while not (lines.is_file() and len(read_lines(lines)) > 2):
            time.sleep(0.05)
        pid = ray.get(ray.get_actor(f"rollout-0:{run_id(out)}").__ray_call__.remote(lambda self: os.getpid()))
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    run_sweep(plan, out, resume=False, command="test")
    told = [json.loads(file.read_text()) for file in sorted(out.glob("runs/*/trial.json"))]
    assert {one["state"] for one in told} == {"finished"} and sorted(one["seed"] for one in told) == [0, 0, 1, 1]
    assert len({json.dumps(one["values"]) for one in told}) == 2, "each proposal is run with both seeds"
    for run in (out / "runs").iterdir():
        assert [line["step"] for line in read_lines(run / "metrics.jsonl")] == list(range(1, 7)), run
    assert killed and not [one for one in read_lines(first / "events.jsonl") if one["kind"] == "resume"]


def test_a_population_copies_its_best(place: Path, cluster: None) -> None:
    """A learning rate that does nothing against one that learns: who lags behind takes the other's weights over."""
    rates = "space={policy.learning_rate: {choice: [1.0e-9, 3.0e-3]}}"
    own = ["train.num_steps=6", "trials=2", "concurrent=2", "search=random", "seed=1", "rollout.samples_per_prompt=8"]
    scheduler = "scheduler={type: pbt, metric: reward/mean, every: 2, quantile: 0.5}"
    plan = load_sweep(ROOT / "tune_configs" / "grpo_lr_kl.yaml", [*TINY, *own, rates, scheduler])
    run_sweep(plan, place / "population", resume=False, command="test")
    events = [one for run in (place / "population" / "runs").iterdir() for one in read_lines(run / "events.jsonl")]
    taken = [str(one["sentence"]) for one in events if one["kind"] == "population"]
    assert taken and all(re.match(r"Took the weights of \d{5} at step-\d+; goes on with policy", one) for one in taken)
    assert {state for state, _ in _state(place / "population").values()} == {"finished"}
    for run in (place / "population" / "runs").iterdir():
        assert [line["step"] for line in read_lines(run / "metrics.jsonl")] == list(range(1, 7)), run


def test_the_median_rule_and_trials_that_failed_are_tried_again(place: Path, cluster: None) -> None:
    """The shipped sweep of the adaptive beta, at first without its data."""
    data = place / "pairs.jsonl"
    own = [*FIXED, "train.max_steps=4", "train.eval_every=2", "scheduler.grace=2", "scheduler.min_trials=2"]
    own += ["space.method.adaptive_beta.gain={grid: [0.5]}", "train.epochs=1", f"data.path={data}"]
    plan = load_sweep(ROOT / "tune_configs" / "adaptive_beta.yaml", own)
    assert run_sweep(plan, place / "median", resume=False, command="test")["failed"] == 3
    rows = [{"prompt": f"is {i} a number?", "chosen": "yes, it is", "rejected": "who knows"} for i in range(60)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_sweep(plan, place / "median", resume=True, command="test")
    states = _state(place / "median")
    assert len(states) == 3 and {state for state, _ in states.values()} <= {"finished", "stopped"}, states


def _commands() -> list[list[str]]:
    blocks = re.findall(r"```bash\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    return [shlex.split(line)[1:] for block in blocks for line in block.splitlines() if line.strip()]


def _start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "rlhf_ray.cli.main", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def _table(folder: Path) -> dict[str, object]:
    """What the report would rank: every figure that is no time, by configuration and seed."""
    found: dict[str, object] = {}
    for run in sorted((folder / "runs").iterdir()):
        told, summary = (json.loads((run / name).read_text()) for name in ("trial.json", "summary.json"))
        figures = {name: summary.get(name) for name in FIGURES["preference"]}
        found[f"{told['values']} {told['seed']}"] = figures, _comparable(run)
    return found


def test_the_commands_of_the_guide_and_a_killed_sweep(place: Path, cluster: None) -> None:
    """The driver is killed while its second trial trains. Resumed, the sweep leaves the first alone and ends with the
    table of a sweep that was left alone."""
    (place / "tune_configs").symlink_to(ROOT / "tune_configs")
    smaller = [*FIXED, "seeds=1", "train.max_steps=6", "train.checkpoint_every=2"]
    smaller += ["space.method.beta={grid: [0.1, 1.0, 3.0]}"]
    dry, run, resume, report, train = _commands()
    done = _start([*dry, *smaller])
    assert done.wait(120) == 0 and "3 trials" in done.communicate()[1]
    out = place / "runs" / "sweep-dpo-beta"
    killed = _start([*run, *smaller])
    second, first = out / "runs" / "00001" / "metrics.jsonl", out / "runs" / "00000" / "summary.json"
    limit = time.monotonic() + 300
    while not (second.is_file() and len(read_lines(second)) > 1):
        assert time.monotonic() < limit and killed.poll() is None, killed.communicate()
        time.sleep(0.1)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    made = first.stat().st_mtime_ns
    resumed = _start([*resume, *smaller])
    said, heard = resumed.communicate(timeout=400)
    assert resumed.returncode == 0, heard
    assert first.stat().st_mtime_ns == made and {state for state, _ in _state(out).values()} == {"finished"}
    assert "recommended.yaml" in said and yaml.safe_load((out / "recommended.yaml").read_text())["kind"] == "preference"
    run_sweep(load_sweep(Path(run[1]), smaller), place / "undisturbed", resume=False, command="test")
    assert _table(out) == _table(place / "undisturbed")
    last = out / "runs" / "00002"
    config = load_config(last / "config.yaml")
    assert not isinstance(config, RunConfig)
    launch_offline(config, place / "single", resume=False, command="test")
    assert _comparable(last) == _comparable(place / "single"), "the third trial in its worker group is the run alone"
    tables = list((out / "data").iterdir())
    assert len(tables) == 1 and (out / "runs" / "00002" / "data").resolve() == tables[0], "one set of token ids"
    assert len(list(tables[0].glob("cache-*"))) == 2, "reference log-probs of training and held-out pairs, once"
    (out / "report.html").unlink()
    assert _start(report).wait(60) == 0 and (out / "report.html").is_file()
    checked = _start([*train, "--dry-run"])
    assert checked.wait(120) == 0, checked.communicate()


def test_more_trials_at_a_time_than_the_cluster_holds(place: Path, cluster: None) -> None:
    plan = load_sweep(ROOT / "tune_configs" / "ppo_clip_kl.yaml", [*TINY, "critic.init=policy", "concurrent=9"])
    with pytest.raises(Exception, match=r"concurrent = 9: a trial asks for 2 CPUs .* lower concurrent"):
        run_sweep(plan, place / "too-many", resume=False, command="test")
    assert not (place / "too-many").exists()


def test_another_sweep_cannot_be_resumed(place: Path) -> None:
    from rlhf_ray.sweep.run import check_same

    file = ROOT / "tune_configs" / "dpo_beta.yaml"
    write_plan(load_sweep(file, FIXED), place / "planned", "test")
    check_same(load_sweep(file, [*FIXED, "placement.threads=1"]), place / "planned")
    with pytest.raises(Exception, match="seeds differ from the sweep"):
        check_same(load_sweep(file, [*FIXED, "seeds=3"]), place / "planned")
    with pytest.raises(Exception, match="train differ"):
        check_same(load_sweep(file, [*FIXED, "train.max_steps=3"]), place / "planned")
