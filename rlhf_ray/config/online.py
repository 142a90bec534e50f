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
from rlhf_ray.algorithms.reinforce import REINFORCEConfig
from rlhf_ray.algorithms.reinforce_pp import REINFORCEPlusPlusBaselineConfig, REINFORCEPlusPlusConfig
from rlhf_ray.algorithms.rloo import RLOOConfig
from rlhf_ray.algorithms.trpo import TRPOConfig
from rlhf_ray.config.common import DeepSpeedConfig, Fraction, LoraConfig, ModelConfig, Name, PlacementConfig
from rlhf_ray.data.prompts import PromptsConfig
from rlhf_ray.rewards.base import RewardSourceConfig, TruncatedConfig
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
    """Where rewards come from. The reward is the weighted sum of the sources."""

    sources: Annotated[tuple[RewardSourceConfig, ...], Field(min_length=1)]
    truncated: TruncatedConfig = TruncatedConfig()


class RolloutConfig(Strict):
    """The vLLM engines and how they sample. top-p and top-k are absent on purpose: they bias the log-probabilities."""

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


class TrainConfig(Strict):
    """The size of a run."""

    num_steps: PositiveInt = 10
    prompts_per_step: PositiveInt = 16
    checkpoint_every: PositiveInt = 10
    """Steps between commits; the last step always commits."""
    keep_checkpoints: PositiveInt = 2
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
    def _arithmetic(self) -> RunConfig:
        problems = self._size_problems()
        for role, learner in self.learners.items():
            if learner.num_workers > 1 and learner.gpus_per_worker % 1:
                problems.append(
                    f"{role}.gpus_per_worker = {learner.gpus_per_worker}: ranks cannot share a GPU; use 0 or 1"
                )
        if self.rollout.tensor_parallel > 1 and self.rollout.gpus != 1:
            problems.append("rollout.tensor_parallel above 1 needs rollout.gpus = 1: one whole GPU for each rank")
        if (self.rollout.gpus > 0) != (self.policy.gpus_per_worker > 0):
            problems.append("rollout.gpus and policy.gpus_per_worker must both be 0 or both be above 0")
        if self.algorithm.needs_whole_weights and self.policy.deepspeed.zero_stage == 3:
            problems.append(f"algorithm.type = {self.algorithm.type} needs policy.deepspeed.zero_stage 0, 1 or 2")
        if self.algorithm.needs_whole_weights and self.policy.gradient_checkpointing:
            problems.append(f"algorithm.type = {self.algorithm.type} needs policy.gradient_checkpointing: false")
        if self.policy_freeze_steps >= self.train.num_steps:
            problems.append("critic.policy_freeze_steps must be smaller than train.num_steps")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _size_problems(self) -> list[str]:
        problems, algorithm = [], self.algorithm
        rollouts, units, of_what = self.rollouts_per_step, self.units_per_step, self.algorithm.unit_name
        if self.rollout.samples_per_prompt < algorithm.min_samples:
            problems.append(
                f"rollout.samples_per_prompt = {self.rollout.samples_per_prompt}: algorithm.type = {algorithm.type} "
                f"compares answers to the same prompt and needs at least {algorithm.min_samples}"
            )
        if units % algorithm.num_minibatches:
            samples = " x rollout.samples_per_prompt" if algorithm.unit == 1 else ""
            problems.append(
                f"train.prompts_per_step{samples} = {units} {of_what} do not divide into "
                f"algorithm.num_minibatches = {algorithm.num_minibatches} equal minibatches"
            )
        else:
            problems += [
                f"a minibatch of {self.minibatch_size} {of_what} does not divide over "
                f"{role}.num_workers = {learner.num_workers} ranks"
                for role, learner in self.learners.items()
                if self.minibatch_size % learner.num_workers
            ]
        if algorithm.kl_target is not None and 0.2 * rollouts >= algorithm.kl_horizon:
            problems.append(
                f"algorithm.kl_horizon = {algorithm.kl_horizon} sequences is too short for {rollouts} rollouts a "
                "step: the controller could reach 0 in one step; take some fifty times the rollouts"
            )
        return problems

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
