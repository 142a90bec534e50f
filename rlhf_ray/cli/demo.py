"""`rlhf-ray demo`: the whole way on two CPU cores, from preferences to an aligned chat model, offline."""

from __future__ import annotations

import itertools
import time
from pathlib import Path

from rich.console import Console

from rlhf_ray.cluster import launch, launch_offline
from rlhf_ray.config import RewardModelConfig, RunConfig
from rlhf_ray.config_file import load_config
from rlhf_ray.errors import UserError
from rlhf_ray.evaluation.memory import PeakMemory
from rlhf_ray.models.smollm2 import smollm2_folder
from rlhf_ray.preflight import preflight
from rlhf_ray.report.page import write_report
from rlhf_ray.rundir.journal import write_summary


def run_demo(run_dir: Path | None, *, as_json: bool) -> dict[str, object]:
    """Converts the embedded model, trains the reward model, runs PPO, writes the report; returns the summary."""
    began = time.monotonic()
    console = Console(stderr=as_json)
    run_dir = run_dir or _first_free(Path("runs"))
    rewards = _rewards(run_dir)
    for folder in (run_dir, rewards):
        if folder.exists():
            raise UserError(f"{folder} exists already: remove it, or give the demo another --run-dir")
    reward = load_config(Path("reward_demo.yaml"), [])
    assert isinstance(reward, RewardModelConfig)  # a recipe of the package, checked by a test

    console.rule("1/3  SmolLM2-135M-Instruct, from its Python package")
    smollm2_folder()
    with PeakMemory() as memory:
        config = load_config(Path("demo.yaml"), [f"reward.sources.0.path={rewards / 'model'}"])
        assert isinstance(config, RunConfig)  # likewise
        console.rule("2/3  a reward model from 300 preference pairs: short, complete, courteous answers")
        learned = launch_offline(reward, rewards, False, "rlhf-ray demo")
        console.print(f"held-out accuracy {learned['heldout_accuracy']:.1%}")
        console.rule("3/3  PPO: policy, critic, reference, reward and vLLM, each its own actor")
        for note in preflight(config, run_dir, resume=False):
            console.print(note, markup=False)
        summary = launch(config, run_dir, False, "rlhf-ray demo")
    summary |= {"seconds_total": time.monotonic() - began, "peak_rss_gib": memory.peak_gib}
    summary["seconds_by_phase"]["reward_model"] = learned["seconds_total"]
    write_summary(run_dir, summary)
    write_report(run_dir)
    if not as_json:
        _say(console, summary, run_dir)
    return summary


def _rewards(run_dir: Path) -> Path:
    return run_dir.with_name(f"{run_dir.name}-reward")


def _first_free(root: Path) -> Path:
    names = (root / (f"demo-{number}" if number > 1 else "demo") for number in itertools.count(1))
    return next(path for path in names if not path.exists() and not _rewards(path).exists())


def _say(console: Console, summary: dict[str, object], run_dir: Path) -> None:
    gain = summary["reward_gain_ci95"]
    assert isinstance(gain, list)  # two floats, made by `heldout.compare`
    low, high = gain
    console.rule("done")
    console.print(
        f"Held-out reward {summary['reward_before']:.2f} -> {summary['reward_after']:.2f} "
        f"(95 % interval of the gain {low:.2f} to {high:.2f}), "
        f"{summary['seconds_total']:.0f} s, {summary['peak_rss_gib']:.1f} GiB at most."
    )
    own = f"ppo_smollm2_cpu.yaml prompts.path=YOUR.jsonl reward.sources.0.path={_rewards(run_dir) / 'model'}"
    for line in (
        "Next:",
        f"  open {summary['report']}",
        f"  rlhf-ray serve {run_dir}",
        f"  rlhf-ray train {run_dir}/config.yaml train.num_steps=20 --run-dir {run_dir}-longer",
        f"  rlhf-ray train {own} --dry-run",
    ):
        console.print(line, markup=False, soft_wrap=True)
