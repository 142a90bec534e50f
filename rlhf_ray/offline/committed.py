"""What TRL's trainers lack for an unkillable run: commits that verify, exact resumption, one journal.

`Committed` goes before a trainer class: `class X(Committed, DPOTrainer)`. Nothing that transformers or DeepSpeed would
pickle is written or read: the state is whole tensors in safetensors and JSON, as the learners of PPO keep it, and
resumes on another number of ranks or at another ZeRO stage.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhf_ray import metrics as names
from rlhf_ray.data.length_buckets import LengthBuckets
from rlhf_ray.errors import RunError
from rlhf_ray.models.gradient_guard import GradientGuard
from rlhf_ray.models.sharded_state import ShardedState
from rlhf_ray.offline.setup import TrainerSetup

STATE = "state/trainer"
_SKIPPED_IN_A_ROW = 3
"""So many steps without an update end a run."""


class TrainerEngine:
    """The DeepSpeed engine inside a trainer, as export and checkpoints see it."""

    def __init__(self, trainer: Any) -> None:
        wrapped = trainer.model_wrapped
        stage = int(wrapped.zero_optimization_stage())
        inner = wrapped.optimizer
        optimizer = inner if stage == 0 else inner.optimizer
        trainable = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
        self.module: nn.Module = trainer.model
        self.state = ShardedState(wrapped, optimizer, stage, trainable)

    def gathered(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[None]:
        """Inside, `parameters` are whole on every rank."""
        return self.state.gathered(parameters)


class Committed:
    """A mixin of transformers' `Trainer`. `setup` says what to commit, where, and what the run's kind adds."""

    # What the trainer classes behind it in the inheritance order bring along; they are untyped.
    args: Any
    state: Any
    control: Any
    lr_scheduler: Any
    optimizer: Any
    accelerator: Any
    train_dataset: Any
    model: Any
    model_wrapped: Any
    is_deepspeed_enabled: bool

    def __init__(self, *arguments: Any, setup: TrainerSetup, **keywords: Any) -> None:
        self.setup = setup
        self.sampler: LengthBuckets | None = None
        self.before_commit: Callable[[], None] = lambda: None
        self._tokens = 0
        self._norm: float | None = None
        self._skipped = 0
        super().__init__(*arguments, **keywords)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if "length" not in self.train_dataset.column_names:
            return super()._get_train_sampler(train_dataset)  # type: ignore[misc]  # Trainer's
        rows = self.args.per_device_train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size
        self.sampler = LengthBuckets(self.train_dataset["length"][:], rows, self.args.seed)
        return self.sampler

    def training_step(self, model: Any, inputs: Any, *arguments: Any) -> Tensor:
        """The trainer's, counting the tokens that are not padding."""
        self._tokens += self.count_tokens(inputs)
        loss: Tensor = super().training_step(model, inputs, *arguments)  # type: ignore[misc]  # Trainer's
        return loss

    def count_tokens(self, inputs: Any) -> int:
        """Of a batch, without padding."""
        masks = [int(value.sum()) for key, value in inputs.items() if key.endswith("attention_mask")]
        return sum(masks) if masks else int(inputs["position_ids"].numel())  # packed rows have no padding and no mask

    def take_tokens(self) -> int:
        """Tokens trained on since the last call, over all ranks; collective."""
        count = torch.tensor([self._tokens], device=self.args.device)
        self._tokens = 0
        return int(self.accelerator.reduce(count).item())

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if not self.control.should_training_stop:  # the last commit is made after training, with the best weights
            self.commit()

    def commit(self, final: bool = False) -> None:
        """Makes `checkpoints/step-N` durable: the model as users load it, and what a run resumes from. Collective."""
        engine, step = TrainerEngine(self), int(self.state.global_step)
        weights, moments = engine.state.collect(with_moments=step > 0 and not final)
        model = self.setup.export(engine, weights)
        self.before_commit()
        if self.state.is_world_process_zero:

            def save(folder: Path) -> None:
                self.setup.write_model(folder, model, step)
                self._write_state(folder / STATE, weights, moments)

            journal = self.setup.journal
            assert journal is not None  # rank 0 has it
            journal.commit(step, {"step": step, "final": final}, save)
        self.accelerator.wait_for_everyone()

    def _write_state(self, folder: Path, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor]) -> None:
        folder.mkdir(parents=True)
        save_file(dict(weights), folder / "trainable.safetensors")
        if moments:
            save_file(dict(moments), folder / "moments.safetensors")
        self.state.save_to_json(str(folder / "trainer_state.json"))
        controllers = {name: controller.state_dict() for name, controller in self.setup.controllers.items()}
        kept = {"scheduler": self.lr_scheduler.state_dict(), "controllers": controllers}
        (folder / "run_state.json").write_text(json.dumps(kept, default=float))
        for name, tensors in self.setup.tensors(self).items():
            save_file(dict(tensors), folder / f"{name}.safetensors")

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        # The library would load its own pickles; it is told of no checkpoint and ours is loaded afterwards.
        prepared = super()._prepare_for_training(max_steps, train_dataloader, None)  # type: ignore[misc]  # Trainer's
        if self.is_deepspeed_enabled:
            self._guard_updates()
        if resume_from_checkpoint is not None:
            self._restore(Path(resume_from_checkpoint))
        return prepared

    def _guard_updates(self) -> None:
        """A gradient that is not finite updates nothing: no weight, no moment."""
        outer = self.model_wrapped.optimizer
        if int(self.model_wrapped.zero_optimization_stage()) == 0:
            outer.register_step_pre_hook(self._clip)
            return
        guard = GradientGuard({name: p for name, p in self.model.named_parameters() if p.requires_grad})
        update = outer.step

        def step(closure: Any = None) -> None:
            healthy = guard.healthy()
            update(closure)  # it updates nothing then, by itself, and does not say so
            self._stepped(healthy)

        outer.step = step

    def _clip(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        # At ZeRO-0 DeepSpeed clips plain float32 training without telling the norm, so it is left to this hook. The
        # norm is alike on all ranks, whose gradients are.
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._norm = float(nn.utils.clip_grad_norm_(parameters, self.setup.clipping))
        healthy = math.isfinite(self._norm)
        for parameter in [] if healthy else parameters:
            parameter.grad = None  # torch leaves alone what has none
        self._stepped(healthy)

    def _stepped(self, healthy: bool) -> None:
        self._skipped = 0 if healthy else self._skipped + 1
        if healthy:
            return
        step = int(self.state.global_step) + 1
        told = f"Step {step}: a gradient was not finite, so nothing was updated."
        if self.setup.journal is not None:
            self.setup.journal.event("skipped_update", told, step=step)
        if self._skipped == _SKIPPED_IN_A_ROW:
            raise RunError(
                f"step {step}: a gradient was not finite, {_SKIPPED_IN_A_ROW} times in a row; lower train.learning_rate"
            )

    def take_norm(self) -> float | None:
        """The gradient's norm before clipping in the last step, where only this class saw it."""
        norm, self._norm = self._norm, None
        return norm

    def _restore(self, folder: Path) -> None:
        moments = folder / "moments.safetensors"
        steps = int(self.state.global_step) if moments.is_file() else 0
        weights = load_file(folder / "trainable.safetensors")
        TrainerEngine(self).state.restore(weights, load_file(moments) if steps else {}, steps)
        kept = json.loads((folder / "run_state.json").read_text())
        self._restore_schedule(kept["scheduler"])
        for name, controller in self.setup.controllers.items():
            controller.load_state_dict(kept["controllers"][name])
        counted = [entry["num_tokens"] for entry in self.state.log_history if "num_tokens" in entry]
        if counted:  # by TRL, which would begin at 0 again
            self._total_train_tokens = int(counted[-1])
        self.setup.load_tensors(self, folder)

    def _restore_schedule(self, saved: Mapping[str, Any]) -> None:
        """Its place, with the rates of this run's config: they may have been changed."""
        schedule = getattr(self.lr_scheduler, "scheduler", self.lr_scheduler)
        schedule.load_state_dict({key: value for key, value in saved.items() if key not in ("base_lrs", "_last_lr")})
        rates = [
            base * rule(schedule.last_epoch) for base, rule in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        ]
        schedule._last_lr = rates
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate  # the schedule touches the optimizer at its next step only

    def _load_rng_state(self, checkpoint: Any) -> None:
        """Nothing draws at random while training: no dropout, and the order of rows comes from seed and epoch."""

    def load_weights(self, file: Path) -> None:
        """Puts trainable weights back into a live trainer, moments untouched. Collective."""
        TrainerEngine(self).state.restore(load_file(file), {}, 0)

    def save_weights(self, folder: Path) -> None:
        """The trainable weights as `trainable.safetensors` in `folder`, written by rank 0. Collective."""
        weights, _ = TrainerEngine(self).state.collect(with_moments=False)
        if self.state.is_world_process_zero:
            save_file(weights, folder / "trainable.safetensors")
        self.accelerator.wait_for_everyone()


LOGGED = {
    "loss": names.TRAIN_LOSS,
    "grad_norm": names.TRAIN_GRAD_NORM,
    "learning_rate": names.LEARNING_RATE,
    "rewards/accuracies": names.TRAIN_ACCURACY,
    "accuracy": names.TRAIN_ACCURACY,
    "rewards/margins": names.TRAIN_MARGIN,
    "margin": names.TRAIN_MARGIN,
    "rewards/chosen": names.CHOSEN_REWARD,
    "rewards/rejected": names.REJECTED_REWARD,
    "mean_token_accuracy": names.TOKEN_ACCURACY,
    "eval_loss": names.HELDOUT_LOSS,
    "eval_rewards/accuracies": names.HELDOUT_ACCURACY,
    "eval_accuracy": names.HELDOUT_ACCURACY,
    "eval_rewards/margins": names.HELDOUT_MARGIN,
    "eval_margin": names.HELDOUT_MARGIN,
}
"""From the trainers' own names to those of `metrics.jsonl`."""
