"""A policy's weights as engines and disk want them: whole, merged, under Hugging Face names, bucket by bucket."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from rlhf_ray.models.causal_lm import CausalLM, unwrapped
from rlhf_ray.weight_sync.bucket import Bucket, TensorSpec, plan_buckets


class Gathering(Protocol):
    """A causal model whose parameters may be sharded: `models.engine.Engine`, or what TRL's trainers wrap."""

    @property
    def module(self) -> nn.Module: ...
    def gathered(self, parameters: Sequence[nn.Parameter]) -> AbstractContextManager[None]: ...


@dataclass(frozen=True, slots=True)
class _Source:
    """Where one exported tensor comes from: a parameter, and the adapter layer that changes it, if any."""

    parameter: nn.Parameter
    layer: nn.Module | None


class WeightExport:
    """Reads merged weights out of an engine, one bucket at a time (gathered a bucket at a time under ZeRO-3)."""

    def __init__(self, engine: Gathering, dtype: torch.dtype, bucket_bytes: int) -> None:
        module = engine.module
        self._engine = engine
        self._dtype = dtype
        self._sources = dict(_sources(unwrapped(module.model if isinstance(module, CausalLM) else module)))
        specs = [
            TensorSpec(name, tuple(getattr(s.parameter, "ds_shape", s.parameter.shape)), str(dtype)[6:])
            for name, s in self._sources.items()
        ]
        self.buckets: tuple[Bucket, ...] = plan_buckets(specs, bucket_bytes)

    def __iter__(self) -> Iterator[tuple[Bucket, list[Tensor]]]:
        """Each bucket with its tensors. Every rank must exhaust it: the gathering is collective."""
        for bucket in self.buckets:
            sources = [self._sources[spec.name] for spec in bucket.specs]
            with self._engine.gathered(_parameters(sources)), torch.no_grad():
                yield bucket, [_merged(source).to(self._dtype) for source in sources]


def _sources(causal: nn.Module) -> Iterator[tuple[str, _Source]]:
    from peft.tuners.lora import LoraLayer

    adapted: dict[str, nn.Module] = {name: m for name, m in causal.named_modules() if isinstance(m, LoraLayer)}  # type: ignore[misc]  # peft's mixin of modules
    for name, parameter in causal.named_parameters():
        owner, _, rest = name.partition(".base_layer.")
        if rest:
            yield f"{owner}.{rest}", _Source(parameter, adapted[owner] if rest == "weight" else None)
        elif not any(name.startswith(f"{prefix}.lora_") for prefix in adapted):
            yield name, _Source(parameter, None)


def _parameters(sources: Sequence[_Source]) -> list[nn.Parameter]:
    layers = [source.layer for source in sources if source.layer is not None]
    adapters = [p for layer in layers for name, p in layer.named_parameters() if "lora_" in name]
    return [source.parameter for source in sources] + adapters


def _merged(source: _Source) -> Tensor:
    weight = source.parameter.detach()
    if source.layer is None:
        return weight
    delta: Tensor = source.layer.get_delta_weight("default")  # type: ignore[operator]  # peft's method
    return weight + delta.to(weight.dtype)
