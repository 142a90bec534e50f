"""Whether the gradients of a step are finite, on all ranks and at any ZeRO stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rlhf_ray.models.device import device


class GradientGuard:
    """Sees the whole local gradients of `trainable` in each backward pass, before DeepSpeed reduces and partitions
    them."""

    def __init__(self, trainable: Mapping[str, nn.Parameter]) -> None:
        self._trainable = trainable
        self._squared_norms: dict[str, Tensor] = {}
        for name, parameter in trainable.items():
            parameter.register_hook(self._watch(name))

    def missing(self) -> tuple[str, ...]:
        """Parameters that no backward pass has reached since `forget`."""
        return tuple(name for name in self._trainable if name not in self._squared_norms)

    def healthy(self) -> bool:
        """Whether all gradients since `forget` are finite, on all ranks; then forgets them. All ranks must call it."""
        finite = all_finite(self._squared_norms.values())
        self.forget()
        return agree(finite)

    def forget(self) -> None:
        """The gradients so far count for no step."""
        self._squared_norms.clear()

    def _watch(self, name: str) -> Any:
        def hook(grad: Tensor) -> None:
            self._squared_norms[name] = self._squared_norms.get(name, 0.0) + grad.detach().float().square().sum()

        return hook


def all_finite(values: Any) -> bool:
    """True if every tensor in `values` is finite (and if there are none)."""
    tensors = [torch.as_tensor(v) for v in values]
    return not tensors or bool(torch.isfinite(torch.stack(tensors)).all())


def agree(flag: bool) -> bool:
    """True only if `flag` is true on every rank."""
    vote = torch.tensor([1.0 if flag else 0.0], device=device())
    torch.distributed.all_reduce(vote, op=torch.distributed.ReduceOp.MIN)
    return bool(vote.item())
