"""What a reward model is made of, and how that is written beside its weights. No torch in here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, ValidationError, model_validator

from rlhf_ray.config.offline import EnsembleConfig, GateConfig, JointConfig, SeparateConfig, WeightedConfig
from rlhf_ray.errors import UserError
from rlhf_ray.evidence import OVERALL, Demonstration, Evidence, Item, Pair, PromptOnly, Rating, Thumb
from rlhf_ray.strict import Strict

SPEC_FILE = "reward_model.json"
HEADS_FILE = "heads.safetensors"
TOTAL = -1
"""The objective index of evidence about the answer as a whole, where a model has several objectives."""


class RatingScale(Strict):
    """Ratings lie on `low, low + step, ..., high`; those are the levels 0, 1, ... of the ordinal model."""

    low: float = 1.0
    high: float = 5.0
    step: PositiveFloat = 1.0

    @property
    def levels(self) -> int:
        """How many values the scale has."""
        return round((self.high - self.low) / self.step) + 1

    def level(self, value: float, where: str) -> int:
        """The level of `value`; a `UserError` that names `where` if it is not on the scale."""
        place = (value - self.low) / self.step
        # `not <=` and not `>`: NaN compares false with everything.
        if not -0.5 <= place <= self.levels - 0.5 or abs(place - round(place)) > 1e-6:
            raise UserError(
                f"{where}: rating {value:g} is not on the scale {self.low:g}, {self.low + self.step:g}, ..., "
                f"{self.high:g}; mend the row or set data.rating_scale and data.rating_step"
            )
        return round(place)

    @model_validator(mode="after")
    def _whole_steps(self) -> RatingScale:
        steps = (self.high - self.low) / self.step
        if not steps > 0.5 or abs(steps - round(steps)) > 1e-6:
            raise ValueError(f"step {self.step:g} does not divide the scale from {self.low:g} to {self.high:g}")
        return self


class RewardSpec(Strict):
    """A reward model without its weights. `reward_model.json` holds it."""

    version: Literal[1] = 1
    backbone: Literal["decoder", "encoder"]
    """A decoder is read at the last token, an encoder as the mean over tokens."""
    architecture: Annotated[JointConfig | SeparateConfig, Field(discriminator="type")] = JointConfig()
    objectives: Annotated[tuple[str, ...], Field(min_length=1)] = (OVERALL,)
    combine: Annotated[WeightedConfig | GateConfig, Field(discriminator="type")] = WeightedConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    max_tokens: PositiveInt
    """Of prompt and answer together; what is longer is cut."""
    ties: bool = False
    """Whether the model has a tie parameter: with none, pairs follow Bradley-Terry exactly."""
    rating: RatingScale | None = None
    """The scale of the ratings it can learn from; null: none."""
    thumbs: bool = False
    """Whether it can learn from thumbs."""

    @property
    def separate(self) -> bool:
        """True if prompt and answer are read each on its own."""
        return isinstance(self.architecture, SeparateConfig)

    @property
    def gated(self) -> bool:
        """True if the weights of the objectives depend on the prompt."""
        return isinstance(self.combine, GateConfig)

    @property
    def members(self) -> int:
        """Members of the ensemble; 1 is no ensemble."""
        return self.ensemble.members

    @property
    def backbones(self) -> int:
        """How many backbones read the answers, or prompt and answer."""
        return self.members if self.ensemble.of == "models" else 1

    @property
    def prompt_backbones(self) -> int:
        """How many read prompts alone; 0 unless prompt and answer are read by different ones."""
        apart = isinstance(self.architecture, SeparateConfig) and not self.architecture.shared
        return self.backbones if apart else 0

    @property
    def plain(self) -> bool:
        """True for one linear head on a decoder: what Hugging Face calls a sequence classifier of one label."""
        return self.backbone == "decoder" and not self.separate and self.members == len(self.objectives) == 1

    @property
    def scales(self) -> int:
        """How many things have thresholds and a thumb bias of their own: the objectives, and the total of several."""
        return len(self.objectives) + (len(self.objectives) > 1)

    def weights(self) -> tuple[float, ...]:
        """The fixed weight of each objective in the total; equal ones if a gate weighs them or nothing is said."""
        fixed = self.combine.weights if isinstance(self.combine, WeightedConfig) else None
        equal = 1.0 / len(self.objectives)
        return tuple(equal if fixed is None else fixed[name] for name in self.objectives)

    def objective_index(self, objective: str, where: str) -> int:
        """The place of `objective` in `objectives`, or `TOTAL`; a `UserError` naming `where` for an unknown one."""
        if objective in self.objectives:
            return self.objectives.index(objective)
        if objective == OVERALL:
            return TOTAL if len(self.objectives) > 1 else 0
        raise UserError(
            f"{where}: objective {objective} is not one of the model's ({', '.join(self.objectives)}); add it to "
            "objectives, or leave such rows out"
        )

    def check(self, item: Item) -> Evidence:
        """`item`, if a model of this make can learn from it; else a `UserError` that names the row."""
        if isinstance(item, Demonstration | PromptOnly):
            raise UserError(
                f"{item.where}: holds no judgement of an answer; a reward model learns from pairs, rankings, ratings "
                "and thumbs"
            )
        where = item.label.where
        self.objective_index(item.label.objective, where)
        if isinstance(item, Pair) and item.tie and not self.ties:
            raise UserError(f"{where}: a tie, but the model has no tie parameter; make it with ties = true")
        if isinstance(item, Thumb) and not self.thumbs:
            raise UserError(f"{where}: a thumb, but the model has no thumb bias; make it with thumbs = true")
        if isinstance(item, Rating):
            if self.rating is None:
                raise UserError(f"{where}: a rating, but the model has no thresholds; make it with a rating scale")
            self.rating.level(item.value, where)
        return item

    @model_validator(mode="after")
    def _objectives(self) -> RewardSpec:
        if self.gated and len(self.objectives) < 2:
            raise ValueError("a gate needs at least two objectives")
        fixed = self.combine.weights if isinstance(self.combine, WeightedConfig) else None
        if fixed is not None and set(fixed) != set(self.objectives):
            raise ValueError(f"weights must name exactly the objectives {', '.join(self.objectives)}")
        return self


def save_spec(folder: Path, spec: RewardSpec) -> None:
    """Writes `spec` into `folder`."""
    (folder / SPEC_FILE).write_text(spec.model_dump_json(indent=2) + "\n", encoding="utf-8")


def load_spec(folder: Path) -> RewardSpec | None:
    """The spec in `folder`; None for a plain sequence classifier, which needs none. `UserError` if it is damaged."""
    file = folder / SPEC_FILE
    if not file.exists():
        return None
    try:
        return RewardSpec.model_validate_json(file.read_text(encoding="utf-8"))
    except (ValidationError, OSError, UnicodeDecodeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise UserError(f"{file}: does not describe a reward model ({reason}); train the model again") from error


def backbone_folders(folder: Path, spec: RewardSpec) -> list[Path]:
    """Where a model of several parts keeps its backbones: `spec.backbones` of them, then the prompts' own."""
    prompts = [folder / f"prompt-{i}" for i in range(spec.prompt_backbones)]
    return [folder / f"backbone-{i}" for i in range(spec.backbones)] + prompts
