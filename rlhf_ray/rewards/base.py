"""What a reward source is: a config with a `type`, and a class with `score`. Add one by adding it to the union."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from rlhf_ray.strict import Strict


class ModelRewardConfig(Strict):
    """A learned reward model: a folder with a sequence classifier of one label, its tokenizer and chat template."""

    type: Literal["model"] = "model"
    name: str = "model"
    path: str
    weight: float = 1.0


class FunctionRewardConfig(Strict):
    """A Python function `f(prompt: str, response: str, reference: str | None) -> float`, as `package.module:name`."""

    type: Literal["function"]
    name: str = "function"
    path: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
    weight: float = 1.0


RewardSourceConfig = Annotated[ModelRewardConfig | FunctionRewardConfig, Field(discriminator="type")]


class TruncatedConfig(Strict):
    """What happens to a response that the token limit cut off. Always explicit, always reported."""

    mode: Literal["penalize", "mask", "score"] = "penalize"
    """`penalize`: score it and subtract `penalty`. `mask`: leave it out of the loss. `score`: treat it as complete."""
    penalty: Annotated[float, Field(ge=0)] = 1.0
