"""What training changes, whole, out of and into DeepSpeed at any ZeRO stage: weights and Adam's moments."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_ray.models.device import device

_MOMENTS = ("exp_avg", "exp_avg_sq")


class ShardedState:
    """The trainable parameters of a DeepSpeed engine and the state of its torch AdamW, by parameter name.

    Independent of world size and ZeRO stage, so a run can resume on another number of ranks.
    """

    def __init__(
        self, engine: Any, optimizer: torch.optim.Optimizer, zero_stage: int, trainable: Mapping[str, nn.Parameter]
    ) -> None:
        self._engine = engine
        self._optimizer = optimizer
        self._zero_stage = zero_stage
        self._trainable = dict(trainable)

    def collect(self, with_moments: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Copies of float32 weights, and of moments as `name|exp_avg`, in main memory of rank 0; empty on the others.
        All ranks must call it."""
        weights: dict[str, Tensor] = {}
        moments: dict[str, Tensor] = {}
        keep = torch.distributed.get_rank() == 0
        if with_moments:
            self._link()
        for name, parameter in self._trainable.items():
            whole = self._full(parameter, None)
            if keep:
                weights[name] = whole.cpu()
            for key in _MOMENTS if with_moments else ():
                moment = self._full(parameter, key)
                if keep:
                    moments[f"{name}|{key}"] = moment.cpu()
        return weights, moments

    def restore(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor], steps: int) -> None:
        """Puts back what `collect` gave after `steps` optimizer steps (0: no moments). A `KeyError` names a parameter
        that is missing. All ranks must call it with the same tensors."""
        if steps:
            self._make_moments(steps)
        with torch.no_grad():
            for name, parameter in self._trainable.items():
                self._set_full(parameter, None, weights[name])
                if steps:
                    for key in _MOMENTS:
                        self._set_full(parameter, key, moments[f"{name}|{key}"])

    @contextlib.contextmanager
    def gathered(self, parameters: Sequence[nn.Parameter], write: bool = False) -> Iterator[None]:
        """Inside, `parameters` are whole on every rank (a no-op below ZeRO-3); with `write`, rank 0's values stay."""
        if self._zero_stage < 3:
            yield
            return
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters(list(parameters), modifier_rank=0 if write else None):
            yield

    def _make_moments(self, steps: int) -> None:
        # AdamW makes its state at the first step; a resumed one needs it before, to have something to fill.
        whole = [parameter for group in self._optimizer.param_groups for parameter in group["params"]]
        held = self._engine.optimizer.fp32_partitioned_groups_flat if self._zero_stage == 3 else whole
        for parameter in held:
            self._optimizer.state[parameter] = {
                "step": torch.tensor(float(steps)),
                "exp_avg": torch.zeros_like(parameter.data),
                "exp_avg_sq": torch.zeros_like(parameter.data),
            }
        self._link()

    def _link(self) -> None:
        # DeepSpeed links parameters to their moments once, after the first group's first step: those of further
        # parameter groups (transformers' trainers have one without weight decay) do not exist yet then.
        if self._zero_stage in (1, 2):
            self._engine.optimizer._hp_optimizer_states_linked = False
            self._engine.optimizer._lazy_init_hp_params_optimizer_state()

    def _full(self, parameter: nn.Parameter, key: str | None) -> Tensor:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if self._zero_stage == 0:
            tensor: Tensor = parameter.data if key is None else self._optimizer.state[parameter][key]
        elif key is None:
            tensor = safe_get_full_fp32_param(parameter)
        else:
            tensor = safe_get_full_optimizer_state(parameter, key)
        return tensor.detach().clone()

    def _set_full(self, parameter: nn.Parameter, key: str | None, value: Tensor) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        value = value.to(device())
        if self._zero_stage == 0:
            (parameter.data if key is None else self._optimizer.state[parameter][key]).copy_(value)
        elif key is None:
            safe_set_full_fp32_param(parameter, value)
            # That is the optimizer's copy; the module's own follows at the next step only.
            with self.gathered([parameter], write=True):
                parameter.data.copy_(value)
        else:
            safe_set_full_optimizer_state(parameter, value, key)
