"""An online run: roles, loop, rollouts. Composed from the parts that read it; every knob has one default."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt, model_validator

from rlhf_ray.algorithms.cispo import CISPOConfig
from rlhf_ray.algorithms.dpo import OnlineDPOConfig
from rlhf_ray.algorithms.grpo import GRPOConfig
from rlhf_ray.algorithms.gspo import GSPOConfig
from rlhf_ray.algorithms.ppo import PPOConfig
from rlhf_ray.algorithms.ppo_lagrangian import PPOLagrangianConfig
from rlhf_ray.algorithms.reinforce import REINFORCEConfig
from rlhf_ray.algorithms.reinforce_pp import REINFORCEPlusPlusBaselineConfig, REINFORCEPlusPlusConfig
from rlhf_ray.algorithms.rloo import RLOOConfig
from rlhf_ray.algorithms.trpo import TRPOConfig
from rlhf_ray.config.common import (
    DeepSpeedConfig,
    Fraction,
    LoraConfig,
    ModelConfig,
    Name,
    PlacementConfig,
    ServingGateConfig,
)
from rlhf_ray.config.online_checks import inconsistencies
from rlhf_ray.data.prompts import PromptsConfig
from rlhf_ray.rewards.base import ModelRewardConfig, RewardSourceConfig, TruncatedConfig
from rlhf_ray.strict import Strict


class LearnerConfig(Strict):
    """A Ray Train worker group that trains one model."""

    num_workers: PositiveInt = 1
    cpus_per_worker: Fraction = 1.0
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0.0
    learning_rate: PositiveFloat = 1e-5
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps of linear learning-rate warm-up."""
    adam_betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    lora: LoraConfig | None = None
    """Adapters, or null for full fine-tuning."""
    gradient_checkpointing: bool = False
    microbatch_tokens: PositiveInt = 2048
    """The most tokens, padding included, in one forward-backward."""
    deepspeed: DeepSpeedConfig = DeepSpeedConfig()


class CriticConfig(LearnerConfig):
    """The value function: a backbone and a value head in float32."""

    init: Literal["reward", "policy"] = "reward"
    """Start from the reward model's backbone and head, or from the policy's backbone with a zero head."""
    policy_freeze_steps: Annotated[int, Field(ge=0)] = 0
    """Steps at the start in which only the critic learns (its warm-up)."""


class FrozenConfig(Strict):
    """Replicas of a frozen model; requests are sharded over them."""

    replicas: PositiveInt = 1
    cpus: Fraction = 1.0
    gpus: Annotated[float, Field(ge=0)] = 0.0


class RewardConfig(FrozenConfig):
    """Where rewards come from. The reward is the weighted sum of the sources that are no costs."""

    sources: Annotated[tuple[RewardSourceConfig, ...], Field(min_length=1)]
    truncated: TruncatedConfig = TruncatedConfig()

    @model_validator(mode="after")
    def _sound(self) -> RewardConfig:
        names = [source.name for source in self.sources]
        if len(set(names)) < len(names):
            raise ValueError(f"two sources have the same name in {names}: give each its own `name`")
        if all(source.cost for source in self.sources):
            raise ValueError("every source is a cost: at least one must be a reward")
        models = [source for source in self.sources if isinstance(source, ModelRewardConfig)]
        if models and models[0].cost and not all(source.cost for source in models):
            raise ValueError("list the reward model before the cost model: a critic may start from the first one")
        return self


_BIASED = ("top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias")


class RolloutConfig(Strict):
    """The engines and how they sample: by temperature alone."""

    engine: Literal["vllm", "torch"] = "vllm"
    """`torch` starts in a second, samples slowly, and gives the same bits whatever is sampled beside an answer."""
    engines: PositiveInt = 1
    cpus: Fraction = 1.0
    gpus: Annotated[float, Field(ge=0)] = 0.0
    tensor_parallel: PositiveInt = 1
    samples_per_prompt: PositiveInt = 1
    max_new_tokens: PositiveInt = 64
    temperature: PositiveFloat = 1.0
    max_concurrent: PositiveInt = 64
    """Sequences decoded together in one engine."""
    kv_cache_gib: PositiveFloat = 1.0
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.5
    push_bucket_mib: PositiveInt = 32

    @model_validator(mode="before")
    @classmethod
    def _unbiased(cls, section: object) -> object:
        biased = [name for name in _BIASED if isinstance(section, Mapping) and name in section]
        if biased:
            raise ValueError(
                f"{biased[0]} would sample from another distribution than the one whose log-probabilities are trained; "
                "remove it, and shape sampling by temperature"
            )
        return section


class DynamicSamplingConfig(Strict):
    """Replace prompts whose answers all have the same reward, in at most `max_rounds` rounds of generation a step."""

    max_rounds: Annotated[int, Field(ge=2)] = 8


class TrainConfig(Strict):
    """The size of a run."""

    num_steps: PositiveInt = 10
    prompts_per_step: PositiveInt = 16
    max_lag: Annotated[int, Field(ge=0)] = 0
    """The most weight pushes between a response's first token and its use; 0: generation waits for every push."""
    dynamic_sampling: DynamicSamplingConfig | None = None
    checkpoint_every: PositiveInt = 10
    """Steps between commits; the last step always commits."""
    keep_checkpoints: PositiveInt = 2
    """The newest; the one with the highest mean reward since the one before it stays too."""
    eval_prompts: Annotated[int, Field(ge=0)] = 0
    """Held-out prompts answered before and after training, with the same seeds."""
    deadline_s: PositiveFloat = 1800.0
    """The longest one remote call may take before it is an error that names the role."""


class SentinelConfig(Strict):
    """Bounds of the always-on checks, and what a breach does."""

    on_breach: Literal["event", "abort"] = "event"
    first_ratio: PositiveFloat | None = None
    """Largest |ratio - 1| in the first minibatch. null: 1e-3 in float32, 0.2 in bfloat16."""
    reference_gap: PositiveFloat | None = None
    """Largest difference of log-probs at step 0, nats. null: 1e-3 in float32, 0.5 in bfloat16."""
    rollout_drift_mean: PositiveFloat = 0.02


def _ppo_unless_said(section: object) -> object:
    return {"type": "ppo", **section} if isinstance(section, Mapping) else section


AlgorithmConfig = Annotated[
    PPOConfig
    | PPOLagrangianConfig
    | TRPOConfig
    | GRPOConfig
    | RLOOConfig
    | REINFORCEConfig
    | REINFORCEPlusPlusConfig
    | REINFORCEPlusPlusBaselineConfig
    | GSPOConfig
    | CISPOConfig
    | OnlineDPOConfig,
    Field(discriminator="type"),
    BeforeValidator(_ppo_unless_said),
]


class RunConfig(Strict):
    """One online run, from one YAML file."""

    kind: Literal["online"] = "online"
    name: Name
    seed: Annotated[int, Field(ge=0)] = 0
    model: ModelConfig = ModelConfig()
    prompts: PromptsConfig
    algorithm: AlgorithmConfig = PPOConfig()
    policy: LearnerConfig = LearnerConfig()
    critic: CriticConfig = CriticConfig()
    reference: FrozenConfig = FrozenConfig()
    reward: RewardConfig
    rollout: RolloutConfig = RolloutConfig()
    train: TrainConfig = TrainConfig()
    sentinels: SentinelConfig = SentinelConfig()
    placement: PlacementConfig = PlacementConfig()
    gate: ServingGateConfig = ServingGateConfig()

    @property
    def rollouts_per_step(self) -> int:
        """Prompts x samples."""
        return self.train.prompts_per_step * self.rollout.samples_per_prompt

    @property
    def units_per_step(self) -> int:
        """What a step trains on: rollouts, or pairs of them (`algorithm.unit_name`)."""
        return self.algorithm.units_per_step(self.train.prompts_per_step, self.rollout.samples_per_prompt)

    @property
    def minibatch_size(self) -> int:
        """Rollouts or pairs in one optimizer step, over all ranks."""
        return self.units_per_step // self.algorithm.num_minibatches

    @property
    def learners(self) -> dict[str, LearnerConfig]:
        """The models that learn, by role: the policy, and a critic if the algorithm needs one. Otherwise `critic` is
        ignored."""
        policy: dict[str, LearnerConfig] = {"policy": self.policy}
        return policy | {"critic": self.critic} if self.algorithm.needs_critic else policy

    @property
    def policy_freeze_steps(self) -> int:
        """Steps at the start in which only the critic learns."""
        return self.critic.policy_freeze_steps if self.algorithm.needs_critic else 0

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        problems = inconsistencies(self)
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def arithmetic(self) -> str:
        """The derived sizes in one line, printed before anything starts."""
        algorithm = self.algorithm
        pairs = f" = {self.units_per_step} {algorithm.unit_name}" if algorithm.unit > 1 else ""
        ranks = " and ".join(f"{learner.num_workers} {role}" for role, learner in self.learners.items())
        return (
            f"{self.train.prompts_per_step} prompts x {self.rollout.samples_per_prompt} samples = "
            f"{self.rollouts_per_step} rollouts a step{pairs} = {algorithm.num_minibatches} minibatches of "
            f"{self.minibatch_size} x {algorithm.num_epochs} epochs, over {ranks} ranks; {self.train.num_steps} steps"
        )
