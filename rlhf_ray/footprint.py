"""What a run will take of main memory, by role: weights, what training adds to them, activations, libraries."""

from __future__ import annotations

from rlhf_ray.config import RunConfig
from rlhf_ray.resources import least_memory_gib


def estimated_gib(config: RunConfig) -> dict[str, float]:
    """The peak of each role that computes on CPU."""
    return least_memory_gib(config)
