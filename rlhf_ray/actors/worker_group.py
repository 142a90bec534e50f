"""Ray Train's side of a learner: how many ranks, with what, where; and what becomes of it when its controller dies."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlhf_ray.config import LearnerConfig, OfflineTrainConfig
from rlhf_ray.tags import tags


@dataclass(frozen=True, slots=True)
class WorkerGroup:
    """A group of one role. `name` tells those of one role apart, `storage` is where Ray Train keeps its books, and
    `threads` are those of a rank."""

    role: str
    name: str
    config: LearnerConfig | OfflineTrainConfig
    storage: Path
    threads: int
    placement_strategy: str
    environment: Mapping[str, str] = field(default_factory=dict)

    def fit(self, inbox: Any) -> None:
        """Blocks until the ranks, which take commands from `inbox`, an actor, have been told to stop. A rank that dies
        is Ray Train's to replace, with all others; if its controller dies, so do the ranks, and this raises."""
        from ray.train import FailureConfig, RunConfig, ScalingConfig  # takes seconds, and an inbox answers meanwhile
        from ray.train.torch import TorchConfig, TorchTrainer

        from rlhf_ray.actors.introduction import Introduction
        from rlhf_ray.actors.rank import train_loop

        config = self.config
        trainer = TorchTrainer(
            train_loop,
            train_loop_config={"inbox": inbox, "threads": self.threads},
            scaling_config=ScalingConfig(
                num_workers=config.num_workers,
                use_gpu=config.gpus_per_worker > 0,
                resources_per_worker=_resources(config),
                placement_strategy=self.placement_strategy,
            ),
            torch_config=TorchConfig(backend="nccl" if config.gpus_per_worker else "gloo"),
            run_config=RunConfig(  # type: ignore[call-arg]  # annotated as its predecessor
                name=f"{self.role}-{time.time_ns()}",
                storage_path=str(self.storage),
                failure_config=FailureConfig(max_failures=-1),  # the inbox says when it is enough
                callbacks=[Introduction(inbox)],  # type: ignore[list-item]  # the stub knows those of Tune only
                worker_runtime_env={"env_vars": {**self.environment, **tags(self.name, f"{self.role} rank")}},
            ),
        )
        trainer.fit()


def _resources(config: LearnerConfig | OfflineTrainConfig) -> dict[str, float]:
    resources = {"CPU": config.cpus_per_worker}
    return resources | {"GPU": config.gpus_per_worker} if config.gpus_per_worker else resources
