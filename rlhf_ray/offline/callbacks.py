"""Between TRL's trainers and the run directory: metrics, stopping, evaluation, the best weights."""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from rlhf_ray import metrics as names
from rlhf_ray.config import OfflineTrainConfig
from rlhf_ray.offline.committed import LOGGED, Committed
from rlhf_ray.offline.launch import STOP_FILE
from rlhf_ray.rundir.commit import commit_directory, prune
from rlhf_ray.rundir.journal import RunDirectory

_BEST = "best"


class Journalist(TrainerCallback):
    """One line of `metrics.jsonl` a step, with the held-out metrics of the step if it was evaluated."""

    def __init__(self, trainer: Committed, journal: RunDirectory | None) -> None:
        self._trainer, self._journal = trainer, journal
        self._pending: tuple[int, dict[str, float]] | None = None
        self._last = time.monotonic()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The order of rows is that of the epoch, on a resumed run too."""
        if self._trainer.sampler is not None:
            self._trainer.sampler.set_epoch(int((state.epoch or 0.0) + 1e-6))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Collects what the step and its evaluation say; tokens a second are counted on all ranks."""
        found = {LOGGED[key]: float(value) for key, value in (logs or {}).items() if key in LOGGED}
        if "loss" in (logs or {}):
            now, tokens = time.monotonic(), self._trainer.take_tokens()
            found[names.TOKENS_PER_SECOND] = tokens / max(1e-9, now - self._last)
            found[names.TIME_STEP] = now - self._last
            self._last = now
            norm = self._trainer.take_norm()
            found |= {} if norm is None else {names.TRAIN_GRAD_NORM: norm}
            for controller in self._trainer.setup.controllers.values():
                found |= controller.metrics()
            self.flush()
        if found:
            before = self._pending[1] if self._pending and self._pending[0] == state.global_step else {}
            self._pending = (state.global_step, before | found)

    def flush(self) -> None:
        """Writes the line that waits for its evaluation."""
        if self._journal is not None and self._pending is not None:
            self._journal.metrics(*self._pending)
        self._pending = None


class Steering(TrainerCallback):
    """Decides, alike on all ranks: commit now, stop now, and which weights were best on held-out rows."""

    def __init__(self, trainer: Committed, config: OfflineTrainConfig, run_dir: Path) -> None:
        self._trainer, self._config, self._run_dir = trainer, config, run_dir
        self.best_loss, self.best_step, self.bad_evaluations = math.inf, 0, 0
        self.evaluated: tuple[int, float] = (-1, math.nan)
        """The step of the last evaluation, and its held-out loss."""
        self.stopped = False
        """Somebody asked the run to end before it was complete."""

    def metrics(self) -> dict[str, float]:
        """Nothing for the step's line: what it decides shows in the held-out loss."""
        return {}

    def state_dict(self) -> dict[str, object]:
        """What a resumed run must know of the evaluations so far."""
        best = self.best_loss if math.isfinite(self.best_loss) else None
        return {"best_loss": best, "best_step": self.best_step, "bad_evaluations": self.bad_evaluations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from `state_dict()`; forgets a best whose weights a crash has taken."""
        self.best_loss = math.inf if state["best_loss"] is None else float(state["best_loss"])
        self.best_step, self.bad_evaluations = int(state["best_step"]), int(state["bad_evaluations"])
        if self.best_step and not self._best_file().is_file():
            self.best_loss, self.best_step = math.inf, 0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A stop file ends the run after this step, with a commit; else commits are regular."""
        asked = torch.tensor([float((self._run_dir / STOP_FILE).exists())], device=args.device)
        if float(self._trainer.accelerator.reduce(asked, "sum").item()) > 0:
            control.should_training_stop = self.stopped = True
            return
        every = self._config.checkpoint_every
        if every and state.global_step % every == 0 and state.global_step < state.max_steps:
            control.should_save = True

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        """Keeps the weights of the lowest held-out loss, and ends a run that no longer improves."""
        loss = (metrics or {}).get("eval_loss")
        if loss is None:
            return
        self.evaluated = (int(state.global_step), float(loss))
        if self._config.patience is None:
            return
        if loss < self.best_loss:
            self.best_loss, self.best_step, self.bad_evaluations = float(loss), int(state.global_step), 0
            self._keep_best()
        else:
            self.bad_evaluations += 1
            if self.bad_evaluations >= self._config.patience:
                control.should_training_stop = True

    def restore_best(self) -> bool:
        """Puts the best weights back if they are not the last ones; returns whether it did. Collective."""
        if not self.best_step or self.best_step == int(self._trainer.state.global_step):
            return False
        self._trainer.load_weights(self._best_file())
        return True

    def _best_file(self) -> Path:
        return self._run_dir / _BEST / f"step-{self.best_step:06d}" / "trainable.safetensors"

    def _keep_best(self) -> None:
        zero = self._trainer.state.is_world_process_zero
        holder = self._run_dir / ".best-unfinished"
        if zero:
            shutil.rmtree(holder, ignore_errors=True)
            shutil.rmtree(self._best_file().parent, ignore_errors=True)  # of a run that was killed and came here again
            holder.mkdir()
        self._trainer.save_weights(holder)
        if zero:
            parent = self._run_dir / _BEST
            file = holder / "trainable.safetensors"
            name, meta = f"step-{self.best_step:06d}", {"step": self.best_step}
            prune(parent, keep=2, sealed=commit_directory(parent, name, lambda to: _move(file, to), meta))
            shutil.rmtree(holder)


def _move(file: Path, folder: Path) -> None:
    file.rename(folder / file.name)
