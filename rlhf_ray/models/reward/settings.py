"""What the Python API lets people say about a reward model, besides its base model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveInt, ValidationError

from rlhf_ray.config import LoraConfig
from rlhf_ray.config.offline import EnsembleConfig, GateConfig, JointConfig, SeparateConfig, WeightedConfig
from rlhf_ray.errors import UserError
from rlhf_ray.evidence import OVERALL
from rlhf_ray.models.reward.build import backbone_kind
from rlhf_ray.models.reward.spec import RatingScale, RewardSpec
from rlhf_ray.strict import Strict


class RewardModelSettings(Strict):
    """The config of a reward model in a flat form, without what belongs to a run."""

    architecture: Literal["joint", "separate"] = "joint"
    shared: bool = False
    """Separate: one set of weights for both sides."""
    objectives: tuple[str, ...] = Field((OVERALL,), min_length=1)
    weights: dict[str, float] | None = None
    """Of the objectives in the total; None: all equal."""
    gate: bool = False
    """Learn the weights from the prompt instead."""
    members: PositiveInt = 1
    ensemble_of: Literal["heads", "models"] = "heads"
    sigma: NonNegativeFloat = 1.0
    max_tokens: PositiveInt = 256
    num_layers: PositiveInt | None = None
    lora: LoraConfig | None = None
    ties: bool = False
    """Learn from ties too (Davidson's model of pairs instead of Bradley and Terry's)."""
    rating: RatingScale = RatingScale()
    seed: int = Field(0, ge=0)

    def spec(self, folder: Path) -> RewardSpec:
        """The make of the model on the base model in `folder`; `UserError` for settings that contradict each other."""
        if self.gate and self.weights is not None:
            raise UserError("reward model: weights are fixed, and gate = true learns them; give one of the two")
        if self.shared and self.architecture == "joint":
            raise UserError("reward model: shared = true is about two sides; it needs architecture = separate")
        apart = SeparateConfig(type="separate", shared=self.shared)
        try:
            return RewardSpec(
                backbone=backbone_kind(folder),
                architecture=apart if self.architecture == "separate" else JointConfig(),
                objectives=self.objectives,
                combine=GateConfig(type="gate") if self.gate else WeightedConfig(weights=self.weights),
                ensemble=EnsembleConfig(members=self.members, of=self.ensemble_of, sigma=self.sigma),
                max_tokens=self.max_tokens,
                ties=self.ties,
                rating=self.rating,
                thumbs=True,
            )
        except ValidationError as error:
            raise UserError(f"reward model: {first_mistake(error)}") from None


def read_settings(settings: Mapping[str, object]) -> RewardModelSettings:
    """`settings` checked; a `UserError` says what is wrong with the first that is not right."""
    try:
        return RewardModelSettings.model_validate(settings)
    except ValidationError as error:
        raise UserError(f"reward model: {first_mistake(error)}") from None


def first_mistake(error: ValidationError) -> str:
    """The first mistake in words: which key, and what is wrong with it."""
    mistake = error.errors()[0]
    return f"{'.'.join(map(str, mistake['loc']))}: {mistake['msg']}".removeprefix(": ")
