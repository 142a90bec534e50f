"""What every kind of run has: a model, adapters, DeepSpeed, a place."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from rlhf_ray.strict import Strict

Fraction = Annotated[float, Field(gt=0)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class ModelConfig(Strict):
    """A model: `smollm2-135m` (the embedded chat model), `minilm-l6` (the embedded encoder, for reward models), a local
    folder, or a hub id."""

    path: str = "smollm2-135m"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Compute type. `auto`: float32 on CPU, bfloat16 on GPU. Learners keep float32 master weights either way."""


class LoraConfig(Strict):
    """Low-rank adapters on every linear layer of the transformer blocks."""

    rank: PositiveInt = 16
    alpha: PositiveInt = 32


class DeepSpeedConfig(Strict):
    """How DeepSpeed shards a learner's state."""

    zero_stage: Literal[0, 1, 2, 3] = 0
    gradient_clipping: PositiveFloat = 1.0


class ServingGateConfig(Strict):
    """What a run's held-out figures must be before it is served. A figure that the run does not have does not count."""

    min_gain: float = 0.0
    """The lower end of the held-out reward gain's 95 % interval must be above this."""
    max_kl_per_token: PositiveFloat = 1.0
    """Nats, to the reference."""
    max_perplexity_ratio: PositiveFloat = 3.0
    """Perplexity of the answers under the reference, after training over before."""
    min_accuracy: Annotated[float, Field(ge=0, le=1)] = 0.5
    """The lower end of the interval of the share of held-out pairs ranked right must be above this (preference)."""
    needs_evaluation: bool = True
    """Whether a run without any held-out figure is refused."""


class PlacementConfig(Strict):
    """Where roles live."""

    mode: Literal["colocated", "separate"] = "colocated"
    """`colocated`: roles take turns on the same cores or GPUs. `separate`: each role has bundles of its own."""
    strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    address: str | None = None
    """A Ray cluster to join. null: the one in RAY_ADDRESS, or a cluster started for this run."""
    threads: PositiveInt | None = None
    """CPU threads of each role. null: all cores when colocated, `cpus` when separate."""
