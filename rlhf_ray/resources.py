"""What each role of a run asks for, and whether a cluster has it."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_ray.config import AnyConfig, RunConfig
from rlhf_ray.errors import UserError
from rlhf_ray.models.folder import count_parameters, resolve_model
from rlhf_ray.rewards.base import ModelRewardConfig

GIB = 2**30
_WEIGHTS, _GRADIENTS, _ADAM = 4, 4, 8  # bytes a parameter in float32


@dataclass(frozen=True, slots=True)
class RoleRequest:
    """The resources of one role: `actors` processes of `cpus` CPUs and `gpus` GPUs each."""

    role: str
    actors: int
    cpus: float
    gpus: float

    @property
    def total_cpus(self) -> float:
        """CPUs of all actors of the role."""
        return self.actors * self.cpus

    @property
    def total_gpus(self) -> float:
        """GPUs of all actors of the role."""
        return self.actors * self.gpus


def requests(config: AnyConfig) -> list[RoleRequest]:
    """One entry a role, in the order of the loop; a run on fixed data has its worker group only. The controller only
    waits and asks for nothing.

    `rollout.gpus` counts for each tensor-parallel rank, `rollout.cpus` for each engine.
    """
    if not isinstance(config, RunConfig):
        train = config.train
        return [RoleRequest(f"{config.kind} group", train.num_workers, train.cpus_per_worker, train.gpus_per_worker)]
    rollout = config.rollout
    return [
        RoleRequest("controller", 1, 0.0, 0.0),
        RoleRequest("rollout", rollout.engines, rollout.cpus, rollout.gpus * rollout.tensor_parallel),
        RoleRequest("reward", config.reward.replicas, config.reward.cpus, config.reward.gpus),
        RoleRequest("reference", config.reference.replicas, config.reference.cpus, config.reference.gpus),
        *(
            RoleRequest(name, learner.num_workers, learner.cpus_per_worker, learner.gpus_per_worker)
            for name, learner in config.learners.items()
        ),
    ]


def total_cpus(config: AnyConfig) -> float:
    """CPUs of all roles together."""
    return sum(role.total_cpus for role in requests(config))


def feasible(config: AnyConfig, cpus: float, gpus: float, memory_gib: float) -> None:
    """Raises `UserError` naming everything that a cluster of `cpus`, `gpus` and `memory_gib` lacks, by role."""
    roles = requests(config)
    lacking = []
    for unit, has, asked in (
        ("CPUs", cpus, {role.role: role.total_cpus for role in roles}),
        ("GPUs", gpus, {role.role: role.total_gpus for role in roles}),
        ("GiB of memory", memory_gib, least_memory_gib(config)),
    ):
        total = sum(asked.values())
        if total > has + 1e-6:
            parts = ", ".join(f"{role} {amount:.3g}" for role, amount in asked.items() if amount)
            least = "at least " if unit.startswith("GiB") else ""
            lacking.append(f"this run asks for {least}{total:.3g} {unit} ({parts}), the cluster has {has:.3g}")
    if lacking:
        raise UserError(
            "; ".join(lacking) + ". Lower the workers, replicas, engines or their cpus and gpus, or join a larger "
            "cluster with placement.address"
        )


def least_memory_gib(config: AnyConfig) -> dict[str, float]:
    """A lower bound of the main memory of each role that runs on CPU, in GiB: weights, gradients, Adam, KV cache.

    Activations, the libraries and the reference of a run on fixed data come on top. A hub model that is not downloaded
    yet counts as nothing.
    """
    if not isinstance(config, RunConfig):
        train, lora = config.train, config.lora is not None
        size = _learner_bytes(train.num_workers, train.deepspeed.zero_stage, lora, parameters(config.model.path)) / GIB
        return {} if train.gpus_per_worker else {f"{config.kind} group": size}
    policy, cache = parameters(config.model.path), config.rollout.kv_cache_gib if config.rollout.engine == "vllm" else 0
    rewards = sum(parameters(s.path) for s in config.reward.sources if isinstance(s, ModelRewardConfig))
    asked: dict[str, float] = {}
    if not config.rollout.gpus:
        asked["rollout"] = config.rollout.engines * (_WEIGHTS * policy / GIB + cache)
    if not config.reward.gpus:
        asked["reward"] = config.reward.replicas * _WEIGHTS * rewards / GIB
    if not config.reference.gpus:
        asked["reference"] = config.reference.replicas * _WEIGHTS * policy / GIB
    return asked | {
        role: _learner_bytes(
            learner.num_workers,
            learner.deepspeed.zero_stage,
            learner.lora is not None,
            learner_parameters(config, role),
        )
        / GIB
        for role, learner in config.learners.items()
        if not learner.gpus_per_worker
    }


def checkpoint_gib(config: AnyConfig) -> float:
    """An estimate of one checkpoint in GiB: the model whole, and float32 weights with Adam's state of what trains. Of
    adapters, which are small, nothing is counted."""
    model = parameters(config.model.path)
    if isinstance(config, RunConfig):
        sizes = [learner_parameters(config, role) for role, learner in config.learners.items() if not learner.lora]
    else:
        sizes = [] if config.lora else [model]
    return (_WEIGHTS * model + (_WEIGHTS + _ADAM) * sum(sizes)) / GIB


def learner_parameters(config: RunConfig, role: str) -> int:
    """Weights of the policy, or of the critic's backbone: those of the model that it starts from."""
    source = next((s for s in config.reward.sources if isinstance(s, ModelRewardConfig)), None)
    from_reward = role == "critic" and config.critic.init == "reward" and source is not None
    return parameters(source.path if from_reward and source else config.model.path)


def parameters(path: str) -> int:
    """Weights of a model that is on this machine; 0 for one that is not."""
    try:
        folder = resolve_model(path, download=False)
    except UserError:
        return 0
    return count_parameters(folder)


def _learner_bytes(ranks: int, stage: int, lora: bool, size: int) -> int:
    """Over all ranks. ZeRO 1-3 share out Adam's state, 2-3 the gradients, 3 the weights; LoRA trains few."""
    weights = _WEIGHTS * (1 if stage == 3 else ranks)
    if lora:
        return size * weights
    return size * (weights + _GRADIENTS * (1 if stage >= 2 else ranks) + _ADAM * (1 if stage >= 1 else ranks))
