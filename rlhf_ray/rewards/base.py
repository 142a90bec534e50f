"""What a reward source is: a config with a `type`, and a class with `score`. Add one by adding it to the union."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from rlhf_ray.strict import Strict


class ModelRewardConfig(Strict):
    """A learned reward model: a folder with a sequence classifier of one label, its tokenizer and chat template."""

    type: Literal["model"] = "model"
    name: str = "model"
    path: str
    weight: float = 1.0
    cost: bool = False
    """Whether this is a cost with a budget (`algorithm.type: ppo_lagrangian`) and no part of the reward."""


class FunctionRewardConfig(Strict):
    """A Python function `f(prompt: str, response: str, reference: str | None) -> float`, as `package.module:name`."""

    type: Literal["function"]
    name: str = "function"
    path: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
    timeout_s: PositiveFloat = 60.0
    """Of one call. A function that hangs is killed, and the answer quarantined."""
    memory_gib: PositiveFloat | None = 8.0
    """Of the function's own process; null: no limit."""
    weight: float = 1.0
    cost: bool = False


class OverlongRewardConfig(Strict):
    """A soft penalty of long responses (DAPO, arXiv 2503.14476, equation 13): 0 up to `max_tokens - buffer` tokens,
    from there falling in a straight line to -1 at `max_tokens`."""

    type: Literal["overlong"]
    name: str = "overlong"
    max_tokens: PositiveInt
    """At most `rollout.max_new_tokens`."""
    buffer: PositiveInt
    weight: float = 1.0
    cost: ClassVar[bool] = False

    @model_validator(mode="after")
    def _room(self) -> OverlongRewardConfig:
        if self.buffer > self.max_tokens:
            raise ValueError(f"buffer = {self.buffer} is longer than max_tokens = {self.max_tokens}: make it shorter")
        return self


RewardSourceConfig = Annotated[
    ModelRewardConfig | FunctionRewardConfig | OverlongRewardConfig, Field(discriminator="type")
]


class TruncatedConfig(Strict):
    """What happens to a response that the token limit cut off. Always explicit, always reported."""

    mode: Literal["penalize", "mask", "score"] = "penalize"
    """`penalize`: score it and subtract `penalty`. `mask`: leave it out of the loss. `score`: treat it as complete."""
    penalty: Annotated[float, Field(ge=0)] = 1.0
