"""DeepSpeed under one small roof: accumulate, guard, step, export. Only this module and its state import deepspeed.

One `Engine` is one rank of a learner. Gradients are summed, not averaged: the caller's token weights already hold the
global denominator, so a loss is multiplied by the world size before DeepSpeed divides by it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_ray.config import LearnerConfig
from rlhf_ray.models.device import backend
from rlhf_ray.models.gradient_guard import GradientGuard
from rlhf_ray.models.sharded_state import ShardedState


@dataclass(frozen=True, slots=True)
class StepReport:
    """What one optimizer step did."""

    applied: bool
    """False if a gradient was not finite on any rank: the weights are then untouched."""
    grad_norm: float
    """Global norm before clipping."""
    missing: tuple[str, ...]
    """Trainable parameters that no backward pass reached."""


class Engine:
    """A module, its AdamW and DeepSpeed's ZeRO around them."""

    def __init__(self, module: nn.Module, config: LearnerConfig, dtype: torch.dtype) -> None:
        deepspeed = import_deepspeed()
        if not torch.distributed.is_initialized():
            raise RuntimeError("torch.distributed must be initialised before an Engine is made")
        deepspeed.init_distributed(dist_backend=backend(), auto_mpi_discovery=False)
        without_dropout(module)
        module.train()
        if config.gradient_checkpointing:
            enable_gradient_checkpointing(module)
        self.config = config
        self.world_size = torch.distributed.get_world_size()
        self.steps = 0
        self.zero_stage = config.deepspeed.zero_stage
        self._trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._guard = GradientGuard(self._trainable)
        optimizer = torch.optim.AdamW(
            self._trainable.values(),
            lr=config.learning_rate,
            betas=config.adam_betas,
            weight_decay=config.weight_decay,
        )
        self._optimizer = optimizer
        self._grad_norm = 0.0
        if self.zero_stage == 0:
            optimizer.register_step_pre_hook(self._clip)
        self._engine, *_ = deepspeed.initialize(
            model=module, optimizer=optimizer, config=deepspeed_config(config, dtype), dist_init_required=False
        )
        self._state = ShardedState(self._engine, optimizer, self.zero_stage, self._trainable)

    def __call__(self, *args: Tensor) -> Any:
        """The module's forward pass, through DeepSpeed."""
        return self._engine(*args)

    @property
    def module(self) -> nn.Module:
        """The wrapped module."""
        module: nn.Module = self._engine.module
        return module

    @property
    def trainable(self) -> Mapping[str, nn.Parameter]:
        """The parameters that are trained, by name."""
        return self._trainable

    def set_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Makes `weights`, the whole tensors of all trainable parameters, the current ones. All ranks must call it."""
        self._state.restore(weights, {}, 0)

    def forget_gradients(self) -> None:
        """After gradients were taken without `backward`: they count for no step."""
        self._guard.forget()

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of `loss`; losses of all calls and ranks before `step` are summed."""
        self._engine.backward(loss * self.world_size)

    def step(self) -> StepReport:
        """One AdamW update with warm-up and clipping, unless a gradient is not finite on any rank."""
        missing, healthy = self._guard.missing(), self._guard.healthy()
        warm = min(1.0, (self.steps + 1) / max(1, self.config.warmup_steps))
        for group in self._optimizer.param_groups:
            group["lr"] = self.config.learning_rate * warm
        with contextlib.nullcontext() if healthy else self._frozen():
            self._engine.step()
        self.steps += int(healthy)
        norm = self._grad_norm if self.zero_stage == 0 else float(self._engine.get_global_grad_norm() or 0.0)
        return StepReport(applied=healthy, grad_norm=norm, missing=missing)

    def discard(self) -> None:
        """Throws away the gradients accumulated so far; the weights stay as they are."""
        self._guard.forget()
        with self._frozen():
            self._engine.step()

    @contextlib.contextmanager
    def gathered(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """Inside, `parameters` are whole on every rank (a no-op below ZeRO-3)."""
        with self._state.gathered(parameters):
            yield

    def trainable_state(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Whole float32 trainable weights and Adam moments; see `ShardedState.collect`. All ranks must call it."""
        return self._state.collect(with_moments=self.steps > 0)

    def load_trainable_state(self, weights: dict[str, Tensor], moments: dict[str, Tensor], steps: int) -> None:
        """Restores what `trainable_state` gave. A `KeyError` names a parameter that is missing."""
        self.steps = steps
        self._state.restore(weights, moments, steps)

    def _clip(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        # DeepSpeed clips plain float32 training without telling the norm.
        norm = nn.utils.clip_grad_norm_(self._trainable.values(), self.config.deepspeed.gradient_clipping)
        self._grad_norm = float(norm)

    @contextlib.contextmanager
    def _frozen(self) -> Iterator[None]:
        # DeepSpeed's step also reduces, clips and frees gradients; only the update itself must not happen.
        update = self._optimizer.step
        self._optimizer.step = lambda closure=None: None  # type: ignore[method-assign]  # for one call
        try:
            yield
        finally:
            self._optimizer.step = update  # type: ignore[method-assign]  # put back


def import_deepspeed() -> ModuleType:
    """DeepSpeed, told which device to use and not to compile anything.

    On a CPU its first use would build shared-memory collectives with g++ for a minute; gloo serves.
    """
    asked = os.environ.get("DS_ACCELERATOR")
    os.environ["DS_ACCELERATOR"] = asked or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        import deepspeed
        import deepspeed.ops

        deepspeed.get_accelerator()  # reads it, once for the process
    finally:
        if asked is None:
            os.environ.pop("DS_ACCELERATOR", None)  # a cluster started from here would hand it to workers without a GPU

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    loaded: ModuleType = deepspeed
    return loaded


def deepspeed_config(config: LearnerConfig, dtype: torch.dtype) -> dict[str, object]:
    """DeepSpeed's own configuration for a learner.

    Low precision goes through `torch_autocast`, which leaves the parameters, and so the value head and the optimizer,
    in float32. The caller decides when a minibatch ends, hence `managed_gradient_accumulation: false`.
    """
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.deepspeed.gradient_clipping if config.deepspeed.zero_stage else 0.0,
        "zero_optimization": {"stage": config.deepspeed.zero_stage, "overlap_comm": False},
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "torch_autocast": {"enabled": dtype != torch.float32, "dtype": str(dtype).removeprefix("torch.")},
        "steps_per_print": 1_000_000_000,
    }


def without_dropout(module: nn.Module) -> None:
    """Sets every dropout probability to 0: old and new log-probabilities must differ by the update alone."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0
        if isinstance(getattr(part, "attention_dropout", None), float):
            part.attention_dropout = 0.0  # type: ignore[assignment]  # a float attribute of attention layers


def enable_gradient_checkpointing(module: nn.Module) -> None:
    """Recomputes activations in the backward pass, also where only adapters are trained."""
    for part in module.modules():
        if callable(getattr(part, "gradient_checkpointing_enable", None)):
            part.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]  # transformers method
            part.enable_input_require_grads()  # type: ignore[operator]  # transformers method
            return
    raise ValueError("gradient_checkpointing: the model does not support it")
