"""What each Ray Train worker of an offline run executes: resume, train, commit, measure."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import ray.train
import torch
import torch.distributed as dist

from rlhf_ray.config import AnyOfflineConfig, RewardModelConfig
from rlhf_ray.data.feedback import Feedback
from rlhf_ray.machine import cpu_cores
from rlhf_ray.models.device import device
from rlhf_ray.models.engine import import_deepspeed
from rlhf_ray.offline.callbacks import Journalist, Steering
from rlhf_ray.offline.committed import STATE
from rlhf_ray.offline.launch import FAILURE_FILE, STOP_FILE
from rlhf_ray.rundir.journal import RunDirectory


class Kind(Protocol):
    """What differs between kinds of offline runs."""

    def encode(self, feedback: Feedback) -> tuple[dict[str, object], list[str]]:
        """Before the group starts: token ids to disk; returns counts, and notes for people."""

    def trainer(self, journal: RunDirectory | None) -> Any:
        """This rank's trainer, a class with `Committed`."""

    def measure(self, step: int) -> dict[str, object]:
        """On rank 0, after the last commit: figures of the saved model for the summary."""


def kind_of(config: AnyOfflineConfig, folder: Path, run_dir: Path) -> Kind:
    """The kind of `config`."""
    if isinstance(config, RewardModelConfig):
        from rlhf_ray.offline.reward_kind import RewardKind

        return RewardKind(config, folder, run_dir)
    from rlhf_ray.offline.policy_kind import PolicyKind

    return PolicyKind(config, folder, run_dir)


def train_worker(loop: Mapping[str, Any]) -> dict[str, object]:
    """Runs this rank; rank 0 returns the figures of the summary, the others nothing.

    `loop` holds the config, the model's folder and the run directory: `Any`, because Ray Train hands over a plain
    dictionary.
    """
    config, run_dir = cast(AnyOfflineConfig, loop["config"]), Path(str(loop["run_dir"]))
    try:
        return _run_rank(config, Path(str(loop["folder"])), run_dir)
    except Exception:
        rank = ray.train.get_context().get_world_rank()
        (run_dir / FAILURE_FILE.format(rank=rank)).write_text(traceback.format_exc(), encoding="utf-8")
        raise


class SuccessiveRuns:
    """A rank that trains one run after another, as the learner of an inbox: the trials of a sweep."""

    def __init__(self, state: Path | None) -> None:
        """There is no state but that of the runs, which they commit themselves."""

    def train(self, config: AnyOfflineConfig, folder: Path, run_dir: Path) -> dict[str, object]:
        """Trains the run at `run_dir` to its end, from its newest commit if it has one; rank 0 returns its figures."""
        from accelerate.state import AcceleratorState  # type: ignore[import-untyped]  # ships no types

        AcceleratorState._reset_state(reset_partial_state=True)  # it would keep the last run's DeepSpeed settings
        gc.collect()
        return train_worker({"config": config, "folder": str(folder), "run_dir": str(run_dir)})


def _run_rank(config: AnyOfflineConfig, folder: Path, run_dir: Path) -> dict[str, object]:
    context = ray.train.get_context()
    torch.set_num_threads(config.placement.threads or max(1, cpu_cores() // context.get_local_world_size()))
    import_deepspeed()
    first = context.get_world_rank() == 0
    journal = RunDirectory.open(run_dir, config.train.keep_checkpoints) if first else None
    step, final = _agreed(journal)
    kind = kind_of(config, folder, run_dir)
    figures: dict[str, object] = {}
    if not final:
        step, final, figures = _train(config, kind, run_dir, journal, step)
    if journal is None:
        return {}
    journal.close()
    torch.set_num_threads(config.placement.threads or cpu_cores())  # the other ranks are done
    return {"finished": final, "steps": step, **figures, **(kind.measure(step) if final else {})}


def _agreed(journal: RunDirectory | None) -> tuple[int, bool]:
    """The newest good commit's step (-1: none) and whether it ended the run, as rank 0 found it."""
    told = torch.zeros(2, dtype=torch.long, device=device())
    if journal is not None and journal.committed is not None:
        told[0], told[1] = journal.committed_step + 1, int(bool(journal.committed.meta["final"]))
    dist.broadcast(told, src=0)
    return int(told[0]) - 1, bool(told[1])


def _train(
    config: AnyOfflineConfig, kind: Kind, run_dir: Path, journal: RunDirectory | None, step: int
) -> tuple[int, bool, dict[str, object]]:
    """Trains from the commit of `step`; returns the last step, whether the run is complete, and the step
    of the best weights if they are not the last."""
    from transformers import PrinterCallback, set_seed
    from transformers.utils import logging

    logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # transformers is partly untyped
    set_seed(config.seed)  # adapters start from random numbers
    trainer = kind.trainer(journal)
    journalist = Journalist(trainer, journal)
    steering = Steering(trainer, config.train, run_dir)
    trainer.before_commit = journalist.flush
    trainer.setup.controllers["steering"] = steering
    trainer.remove_callback(PrinterCallback)
    for callback in (journalist, steering):
        trainer.add_callback(callback)
    resume = str(run_dir / "checkpoints" / f"step-{step:06d}" / STATE) if step >= 0 else None
    trainer.train(resume_from_checkpoint=resume)

    reached = int(trainer.state.global_step)
    stopped = steering.stopped
    figures: dict[str, object] = {}
    if not stopped:
        restored = steering.restore_best()
        if restored or steering.evaluated[0] != reached:
            trainer.evaluate()
        figures |= {"best_step": steering.best_step} if restored else {}
    journalist.flush()
    if not stopped or reached != step:
        trainer.commit(final=not stopped)
    if stopped and journal is not None:
        (run_dir / STOP_FILE).unlink(missing_ok=True)
    return reached, not stopped, figures
