"""Runs on fixed data: reward models, supervised fine-tuning, and the DPO family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from rlhf_ray.config.common import (  # fmt: skip
    LoraConfig,
    ModelConfig,
    Name,
    PlacementConfig,
    ServingGateConfig,
)
from rlhf_ray.config.offline_train import OfflineTrainConfig
from rlhf_ray.data.feedback import FeedbackConfig
from rlhf_ray.evidence import KINDS, OVERALL, Kind
from rlhf_ray.strict import Strict


class OfflineConfig(Strict):
    """What all runs on fixed data have."""

    kind: str
    name: Name
    seed: Annotated[int, Field(ge=0)] = 0
    model: ModelConfig = ModelConfig()
    data: FeedbackConfig
    lora: LoraConfig | None = None
    """Adapters, or null for full fine-tuning."""
    train: OfflineTrainConfig = OfflineTrainConfig()
    placement: PlacementConfig = PlacementConfig()


class JointConfig(Strict):
    """Prompt and answer together in one backbone, and one head on it."""

    type: Literal["joint"] = "joint"


class SeparateConfig(Strict):
    """Prompt and answer each in a backbone of their own, and a head on both and their interaction."""

    type: Literal["separate"]
    shared: bool = False
    """One set of weights for both sides."""


class WeightedConfig(Strict):
    """The total is a fixed weighted sum of the objectives."""

    type: Literal["weights"] = "weights"
    weights: dict[str, float] | None = None
    """By objective; null: all equal, adding up to 1."""


class GateConfig(Strict):
    """The total weighs the objectives by a softmax of the prompt's representation, learned from evidence that names
    no objective (Wang et al. 2024, arXiv 2406.12845)."""

    type: Literal["gate"]


class EnsembleConfig(Strict):
    """Several members whose disagreement is the uncertainty of a score (Coste et al. 2023, arXiv 2310.02743)."""

    members: PositiveInt = 1
    of: Literal["heads", "models"] = "heads"
    """Heads on one shared backbone, or whole models."""
    sigma: NonNegativeFloat = 1.0
    """The score is the members' mean minus this many of their standard deviations."""


class RewardModelConfig(OfflineConfig):
    """A reward model from pairs, rankings, ratings and thumbs together."""

    kind: Literal["reward"] = "reward"
    num_layers: PositiveInt | None = None
    """Keep only the first N transformer layers as the backbone (null: all). A third of a small model is often enough
    to judge form, and costs a third."""
    architecture: Annotated[JointConfig | SeparateConfig, Field(discriminator="type")] = JointConfig()
    objectives: Annotated[tuple[str, ...], Field(min_length=1)] = (OVERALL,)
    combine: Annotated[WeightedConfig | GateConfig, Field(discriminator="type")] = WeightedConfig()
    ensemble: EnsembleConfig = EnsembleConfig()
    loss_weights: dict[Kind, NonNegativeFloat] = Field(default_factory=lambda: dict.fromkeys(KINDS, 1.0))
    """How much an item of each kind counts in the loss."""
    center_coef: NonNegativeFloat = 0.01
    """Weight of the squared mean score of an item's answers, which keeps rewards around zero
    (Eisenstein et al. 2023, arXiv 2312.09244)."""

    @model_validator(mode="after")
    def _objectives(self) -> RewardModelConfig:
        if len(set(self.objectives)) < len(self.objectives):
            raise ValueError(f"objectives = {list(self.objectives)} names one twice")
        if isinstance(self.combine, GateConfig) and len(self.objectives) < 2:
            raise ValueError("combine.type = gate needs at least two objectives")
        weights = self.combine.weights if isinstance(self.combine, WeightedConfig) else None
        if weights is not None and set(weights) != set(self.objectives):
            raise ValueError(f"combine.weights must name exactly the objectives {', '.join(self.objectives)}")
        return self


class SFTConfig(OfflineConfig):
    """Supervised fine-tuning on prompts with answers; the loss counts the answer's tokens only."""

    kind: Literal["sft"] = "sft"
    packing: bool = False
    """Fill rows of `data.max_tokens` with several conversations; each attends to itself alone."""


DPOLoss = Literal[
    "sigmoid", "cdpo", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip


_SMOOTHED = {"cdpo", "robust", "exo_pair", "aot", "aot_unpaired"}
_SORTING = {"aot", "aot_unpaired"}
_DIVERGENT = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "cdpo", "discopop", "sft"}
"""A term of the f-divergence cancels in the difference of chosen and rejected only, which these losses are made of."""


class KLTargetConfig(Strict):
    """Beta follows the measured KL to the reference: raised above the target, lowered below it.

    Take it with a loss whose optimum is finite: `cdpo`, `robust` or `ipo`. On preferences without contradictions the
    plain `sigmoid` loss has none, so that a large beta stops the policy but never pulls it back.
    """

    type: Literal["kl"]
    target_kl: PositiveFloat
    """Nats per sequence: the exact KL of the next-token distributions, summed over the tokens of an answer, mean over
    the batch's answers, chosen and rejected."""
    gain: PositiveFloat = 0.5
    """Beta changes by a factor of exp(gain * relative error) in one step."""
    horizon: NonNegativeFloat = 20.0
    """The error is that of the KL predicted this many steps ahead, from its trend; 0: of the KL now."""
    band: NonNegativeFloat = 0.1
    """No change while the predicted KL is within this fraction of the target (hysteresis)."""
    smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Of the exponential averages over steps, of level and trend, that the controller reads."""
    max_change: Annotated[float, Field(gt=1)] = 2.0
    """Largest factor on beta in one step, up or down."""
    beta_range: tuple[PositiveFloat, PositiveFloat] | None = None
    """Null: from a quarter of method.beta to 200 times it. A wide lower end lets beta fall far while the KL is still
    small at the start, and it must climb back before it brakes."""


class RewardGapConfig(Strict):
    """Beta of a batch follows its implicit reward gap: beta * (1 + alpha * (gap - running mean))
    (Wu et al. 2024, beta-DPO, arXiv 2407.08639, section 4)."""

    type: Literal["gap"]
    alpha: PositiveFloat = 0.6
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    beta_range: tuple[PositiveFloat, PositiveFloat] = (1e-3, 10.0)


class DPOConfig(Strict):
    """Direct preference optimization and its relatives (Rafailov et al. 2023, arXiv 2305.18290)."""

    type: Literal["dpo"] = "dpo"
    loss: DPOLoss | tuple[DPOLoss, ...] = "sigmoid"
    loss_weights: tuple[float, ...] | None = None
    """One for each loss of a combination; null: 1 each."""
    beta: PositiveFloat = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """The probability that a label is flipped: of `cdpo` (conservative), `robust` (unbiased), `aot` and `exo_pair`."""
    reference: Literal["initial", "none", "synced"] = "initial"
    """The policy before training; nothing (reference-free); or a copy that follows the policy (TR-DPO, full only)."""
    precompute_reference: bool = False
    """Compute the reference's log-probabilities once, before training."""
    sync_every: PositiveInt = 64
    sync_mix: Annotated[float, Field(gt=0, le=1)] = 0.6
    f_divergence: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = "reverse_kl"
    alpha: float = 0.5
    """Of the alpha divergence."""
    discopop_tau: PositiveFloat = 0.05
    length_desensitization: Annotated[float, Field(ge=0, le=1)] | None = None
    """LD-DPO's alpha (arXiv 2409.06411)."""
    weighting: bool = False
    """Weigh pairs by how likely the policy is to write them (WPO, arXiv 2406.11827)."""
    adaptive_beta: Annotated[KLTargetConfig | RewardGapConfig, Field(discriminator="type")] | None = None

    @property
    def losses(self) -> tuple[str, ...]:
        """The loss, or all of a combination."""
        return (self.loss,) if isinstance(self.loss, str) else self.loss

    @model_validator(mode="after")
    def _fits(self) -> DPOConfig:
        if self.loss_weights is not None and len(self.loss_weights) != len(self.losses):
            raise ValueError(f"loss_weights has {len(self.loss_weights)} numbers for {len(self.losses)} losses")
        smoothed = _SMOOTHED.intersection(self.losses)
        if bool(smoothed - {"aot", "aot_unpaired"}) and self.label_smoothing == 0:
            raise ValueError(f"loss {min(smoothed)} needs label_smoothing above 0")
        if self.label_smoothing > 0 and not smoothed:
            raise ValueError(f"label_smoothing is used by the losses {', '.join(sorted(_SMOOTHED))} only")
        if "cdpo" in self.losses and len(smoothed) > 1:
            raise ValueError("loss cdpo cannot be combined with another loss that reads label_smoothing")
        if self.f_divergence != "reverse_kl" and not _DIVERGENT.issuperset(self.losses):
            fitting = ", ".join(sorted(_DIVERGENT))
            raise ValueError(f"f_divergence = {self.f_divergence} works with the losses {fitting} only")
        if self.weighting and _SORTING.intersection(self.losses):
            raise ValueError("weighting weighs pairs, and the losses aot and aot_unpaired take pairs apart")
        if self.reference == "synced" and self.precompute_reference:
            raise ValueError("reference = synced changes while training, so precompute_reference must be false")
        if self.adaptive_beta is not None and (self.precompute_reference or self.reference == "none"):
            raise ValueError(
                "adaptive_beta measures the reference while training: set precompute_reference: false and a reference"
            )
        return self


class KTOConfig(Strict):
    """Kahneman-Tversky optimization of single answers, good or bad (Ethayarajh et al. 2024, arXiv 2402.01306)."""

    type: Literal["kto"]
    loss: Literal["kto", "apo_zero_unpaired"] = "kto"
    beta: PositiveFloat = 0.1
    desirable_weight: PositiveFloat = 1.0
    undesirable_weight: PositiveFloat = 1.0


class ORPOConfig(Strict):
    """Odds-ratio preference optimization: fine-tuning and preference in one, no reference (arXiv 2403.07691)."""

    type: Literal["orpo"]
    beta: PositiveFloat = 0.1
    """Weight of the odds ratio (lambda in the paper)."""


class CPOConfig(Strict):
    """Contrastive preference optimization (arXiv 2401.08417), and with `loss: simpo` SimPO (arXiv 2405.14734)."""

    type: Literal["cpo"]
    loss: Literal["sigmoid", "hinge", "ipo", "simpo", "alphapo"] = "sigmoid"
    beta: PositiveFloat = 0.1
    sft_weight: NonNegativeFloat = 1.0
    """Weight of the chosen answer's negative log-likelihood; 0 for SimPO as published."""
    simpo_gamma: NonNegativeFloat = 0.5
    """Target margin of SimPO."""
    alpha: float = 0.0
    """AlphaPO's reward shape (arXiv 2501.03884)."""


def _dpo_unless_said(section: object) -> object:
    return {"type": "dpo", **section} if isinstance(section, Mapping) else section


Method = Annotated[
    DPOConfig | KTOConfig | ORPOConfig | CPOConfig, Field(discriminator="type"), BeforeValidator(_dpo_unless_said)
]


class PreferenceConfig(OfflineConfig):
    """A policy aligned directly on preferences."""

    kind: Literal["preference"] = "preference"
    method: Method = DPOConfig()
    gate: ServingGateConfig = ServingGateConfig()

    @model_validator(mode="after")
    def _synced_is_full(self) -> PreferenceConfig:
        if isinstance(self.method, DPOConfig) and self.method.reference == "synced" and self.lora is not None:
            raise ValueError("method.reference = synced needs full fine-tuning: remove lora")
        return self
