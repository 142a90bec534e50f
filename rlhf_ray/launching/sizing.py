"""How large the pods of a run or of a service are: its actors shared out over equal nodes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_ray.config import AnyConfig, AnyOfflineConfig, RunConfig
from rlhf_ray.errors import UserError
from rlhf_ray.resources import GIB, learner_parameters, least_memory_gib, parameters, requests
from rlhf_ray.rewards.base import ModelRewardConfig
from rlhf_ray.serving.config import ServingConfig

_PROCESS_GIB = 2.0
"""Of an actor beside its weights: libraries and activations."""
_HEADROOM = 1.5
_WEIGHTS, _TRAINING = 4, 20
"""Bytes a parameter: float32 weights on their way to a GPU; weights, gradients, Adam and a frozen reference."""


@dataclass(frozen=True, slots=True)
class Need:
    """What one actor, or one pod, has: CPUs, GPUs, and main memory in GiB."""

    cpus: float
    gpus: float
    memory_gib: float


HEAD = Need(2, 0, 6)
"""The driver and Ray's own processes; no role of a run goes there."""


def run_needs(config: AnyConfig) -> list[Need]:
    """One entry an actor of the run."""
    if not isinstance(config, RunConfig):
        return _offline_needs(config)
    on_cpu, needs = least_memory_gib(config), []
    for role in requests(config):
        total = on_cpu.get(role.role) or role.actors * _WEIGHTS * _role_parameters(config, role.role) / GIB
        needs += [Need(role.cpus, role.gpus, _PROCESS_GIB + total / role.actors)] * role.actors
    return needs


def service_needs(config: ServingConfig) -> list[Need]:
    """One entry an engine, of the canary too, and one a gateway."""
    engine = config.engine
    sources = [source for source in (config.model, config.canary) if source is not None]
    engines = [
        Need(engine.cpus, engine.gpus, _PROCESS_GIB + engine.kv_cache_gib + _WEIGHTS * parameters(source) / GIB)
        for source in sources
        for _ in range(engine.replicas)
    ]
    return engines + [Need(0.1, 0, _PROCESS_GIB / 2)] * config.gateways


def equal_pods(needs: Sequence[Need], nodes: int) -> Need:
    """The pod of which `nodes` hold all `needs`: the largest first, each where least is; memory with headroom."""
    pods = [Need(0, 0, 0)] * nodes
    for need in sorted(needs, key=lambda need: (need.gpus, need.cpus, need.memory_gib), reverse=True):
        place = min(range(nodes), key=lambda i: (pods[i].gpus, pods[i].cpus, pods[i].memory_gib))
        has = pods[place]
        pods[place] = Need(has.cpus + need.cpus, has.gpus + need.gpus, has.memory_gib + need.memory_gib)
    return Need(
        max(1, math.ceil(max(pod.cpus for pod in pods))),
        math.ceil(max(pod.gpus for pod in pods)),
        math.ceil(_HEADROOM * max(pod.memory_gib for pod in pods)),
    )


def check_strategy(config: AnyConfig, nodes: int) -> None:
    """`UserError` if `placement.strategy` cannot be kept on `nodes` worker pods."""
    if config.placement.strategy == "STRICT_PACK" and nodes > 1:
        raise UserError(f"placement.strategy = STRICT_PACK puts a group on one node, but --nodes = {nodes}; use PACK")
    if config.placement.strategy == "STRICT_SPREAD":
        learners = config.learners.values() if isinstance(config, RunConfig) else [config.train]
        widest = max(learner.num_workers for learner in learners)
        if widest > nodes:
            raise UserError(
                f"placement.strategy = STRICT_SPREAD puts each of {widest} workers on a node of its own, but --nodes = "
                f"{nodes}; give more, or use SPREAD"
            )


def unknown_models(config: AnyConfig | ServingConfig) -> list[str]:
    """The models that are not on this machine, of which no weights were counted."""
    if isinstance(config, ServingConfig):
        paths = [source for source in (config.model, config.canary) if source is not None]
    else:
        paths = [config.model.path]
    if isinstance(config, RunConfig):
        paths += [source.path for source in config.reward.sources if isinstance(source, ModelRewardConfig)]
    return [path for path in dict.fromkeys(paths) if not parameters(path)]


def _offline_needs(config: AnyOfflineConfig) -> list[Need]:
    train, size = config.train, parameters(config.model.path)
    need = Need(train.cpus_per_worker, train.gpus_per_worker, _PROCESS_GIB + _TRAINING * size / GIB)
    return [need] * train.num_workers


def _role_parameters(config: RunConfig, role: str) -> int:
    """Weights that an actor of `role` loads."""
    if role == "controller":
        return 0
    if role == "reward":
        return sum(parameters(s.path) for s in config.reward.sources if isinstance(s, ModelRewardConfig))
    return learner_parameters(config, role) if role in config.learners else parameters(config.model.path)
