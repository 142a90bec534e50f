"""The one typed tree of a run. Composed from the parts that read it; every knob has one default, here or there."""

from rlhf_ray.config.common import DeepSpeedConfig, LoraConfig, ModelConfig, PlacementConfig
from rlhf_ray.config.offline import (
    OfflineConfig,
    PreferenceConfig,
    RewardModelConfig,
    SFTConfig,
)
from rlhf_ray.config.offline_train import OfflineTrainConfig
from rlhf_ray.config.online import (
    CriticConfig,
    FrozenConfig,
    LearnerConfig,
    RewardConfig,
    RolloutConfig,
    RunConfig,
    SentinelConfig,
    TrainConfig,
)

AnyOfflineConfig = RewardModelConfig | SFTConfig | PreferenceConfig
AnyConfig = RunConfig | AnyOfflineConfig

__all__ = [
    "AnyConfig",
    "AnyOfflineConfig",
    "CriticConfig",
    "DeepSpeedConfig",
    "FrozenConfig",
    "LearnerConfig",
    "LoraConfig",
    "ModelConfig",
    "OfflineConfig",
    "OfflineTrainConfig",
    "PlacementConfig",
    "PreferenceConfig",
    "RewardConfig",
    "RewardModelConfig",
    "RolloutConfig",
    "RunConfig",
    "SFTConfig",
    "SentinelConfig",
    "TrainConfig",
]
