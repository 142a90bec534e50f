"""Every policy-gradient method by a name, as the tests make them."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from rlhf_ray.algorithms.policy_gradient import PolicyGradient
from rlhf_ray.config.online import AlgorithmConfig

ADAPTER: TypeAdapter[AlgorithmConfig] = TypeAdapter(AlgorithmConfig)
METHODS: dict[str, dict[str, Any]] = {
    "ppo": {"type": "ppo"},
    "ppo_lagrangian": {"type": "ppo_lagrangian", "cost_budget": 0.4},
    "grpo": {"type": "grpo"},
    "dr_grpo": {"type": "grpo", "scale_by_std": False, "aggregation": "constant", "aggregation_length": 20},
    "dapo": {"type": "grpo", "clip_range_high": 0.28, "aggregation": "token_mean", "kl_coef": 0.0},
    "rloo": {"type": "rloo"},
    "reinforce": {"type": "reinforce"},
    "reinforce_pp": {"type": "reinforce_pp"},
    "reinforce_pp_baseline": {"type": "reinforce_pp_baseline"},
    "gspo": {"type": "gspo", "clip_range": 0.1, "clip_range_high": 0.2},
    "cispo": {"type": "cispo"},
}


def method(name: str, **changes: Any) -> PolicyGradient[Any]:
    """The algorithm of this name with changed settings."""
    found = ADAPTER.validate_python({**METHODS[name], **changes}).make()
    assert isinstance(found, PolicyGradient)
    return found
