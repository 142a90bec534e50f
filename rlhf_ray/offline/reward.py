"""Reward models: Bradley-Terry on preference pairs, by TRL's RewardTrainer inside a Ray Train worker group."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import cast

from rlhf_ray.config import RewardModelConfig
from rlhf_ray.data.preferences import PreferencePair, read_preferences, split_by_prompt
from rlhf_ray.errors import RunError, UserError

PROGRESS_FILE = "progress.log"
Data = tuple[list[PreferencePair], list[PreferencePair]]
"""Training pairs and held-out pairs."""


def train_reward_model(config: RewardModelConfig, run_dir: Path) -> dict[str, object]:
    """Trains the reward model of `config` into `run_dir/model` and returns what `run_dir/summary.json` holds.

    That is: rm_heldout_accuracy (fraction of held-out pairs whose chosen answer scores higher), its 95 % interval
    rm_heldout_accuracy_ci95, pairs_train, pairs_heldout, truncated_answers, seconds_total and model_dir. With more
    than one node, `run_dir` must be on a shared file system. Ray must be up (`cluster.connected`). Raises `UserError`
    for bad data or a folder that is already in use, `RunError` if the training fails.
    """
    started = time.monotonic()
    run_dir = run_dir.expanduser().resolve()
    model_dir = run_dir / "model"
    if model_dir.exists():
        raise UserError(f"{model_dir} already holds a model; choose another name or delete the folder {run_dir}")
    train, heldout = split_by_prompt(read_preferences(config.data.path), config.data.heldout_fraction, config.seed)
    print(f"reward: {len(train)} pairs to train on, {len(heldout)} held out (no prompt in both)", flush=True)

    run_dir.mkdir(parents=True, exist_ok=True)
    measured = _run(config, run_dir, (train, heldout))

    right = round(measured["right"])
    summary: dict[str, object] = {
        "rm_heldout_accuracy": right / len(heldout),
        "rm_heldout_accuracy_ci95": [round(bound, 4) for bound in wilson_interval(right, len(heldout))],
        "pairs_train": len(train),
        "pairs_heldout": len(heldout),
        "truncated_answers": round(measured["truncated"]),
        "seconds_total": round(time.monotonic() - started, 1),
        "model_dir": str(model_dir),
    }
    (run_dir / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    return summary


def wilson_interval(successes: int, trials: int, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of a proportion, 95 % by default (Wilson 1927; Brown, Cai and DasGupta 2001)."""
    p, z2 = successes / trials, z * z
    centre = (p + z2 / (2 * trials)) / (1 + z2 / trials)
    half = z / (1 + z2 / trials) * math.sqrt(p * (1 - p) / trials + z2 / (4 * trials * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def _run(config: RewardModelConfig, run_dir: Path, data: Data) -> dict[str, float]:
    """Rank 0's figures. Prints the worker's progress lines meanwhile.

    Ray Train's watchdog finds its cluster as the Ray command line does, by RAY_ADDRESS or by searching the machine, and
    removes the workers if it hits upon another one. Hence a task with the right address in its environment, which
    everything that it starts inherits.
    """
    import ray
    from ray.exceptions import RayTaskError

    environment = {"env_vars": {"RAY_ADDRESS": ray.get_runtime_context().gcs_address}}
    progress, shown, running = run_dir / PROGRESS_FILE, 0, True
    progress.unlink(missing_ok=True)
    answer = ray.remote(num_cpus=0, max_retries=0, runtime_env=environment)(_fit).remote(config, run_dir, data)
    while running:
        running = not ray.wait([answer], timeout=1.0)[0]
        lines = progress.read_text(encoding="utf-8").splitlines() if progress.exists() else []
        for line in lines[shown:]:
            print(line, flush=True)
        shown = len(lines)
    try:
        figures: dict[str, float] = ray.get(answer)
    except RayTaskError as error:
        if isinstance(error.cause, UserError | RunError):
            raise error.cause from None  # the rest of the chain is another process's
        raise
    return figures


def _fit(config: RewardModelConfig, run_dir: Path, data: Data) -> dict[str, float]:
    """Runs the worker group on `data` and returns rank 0's figures."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError, WorkerGroupError
    from ray.train.v2.api.result import Result

    from rlhf_ray.offline.reward_worker import train_worker

    gpu = config.gpus_per_worker > 0
    resources = {"CPU": config.cpus_per_worker}
    if gpu:
        resources["GPU"] = config.gpus_per_worker
    trainer = TorchTrainer(
        train_worker,  # type: ignore[arg-type]  # Ray returns rank 0's value; its annotation is older
        train_loop_config={
            "config": config,
            "model_dir": str(run_dir / "model"),
            "progress": str(run_dir / PROGRESS_FILE),
            "data": ray.put(data),
        },
        scaling_config=ScalingConfig(
            num_workers=config.num_workers,
            use_gpu=gpu,
            resources_per_worker=resources,
            placement_strategy=config.placement.strategy,
        ),
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        run_config=RunConfig(name="ray_train", storage_path=str(run_dir)),
    )
    try:
        result = cast(Result, trainer.fit())
    except WorkerGroupError as error:
        rank, cause = min(error.worker_failures.items(), key=lambda item: item[0])
        kind = UserError if isinstance(cause, UserError) else RunError
        raise kind(f"reward model worker {rank}: {type(cause).__name__}: {cause}") from error
    except TrainingFailedError as error:
        raise RunError(f"reward model training could not run: {error}") from error
    if not isinstance(result.return_value, dict):
        raise RunError("reward model worker 0 ended without its figures; the log above says why")
    return {str(key): float(value) for key, value in result.return_value.items()}
