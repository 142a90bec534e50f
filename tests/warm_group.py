"""One worker group for all the runs on fixed data of a test module: starting one takes longer than a run of the tests.

It is how a sweep's trials run. Runs that start a group of their own are in tests/ray_cpu and tests/e2e/test_sweep.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.train.v2._internal import constants

from rlhf_ray import cluster
from rlhf_ray.config import AnyOfflineConfig, PlacementConfig
from rlhf_ray.sweep.learners import GroupRun, end_groups, groups_for


@contextmanager
def warm_group(folder: Path) -> Iterator[None]:
    """Inside, Ray is up, and each run of this process trains in the worker group of the one before."""
    alone = cluster.run_offline

    def run_offline(
        config: AnyOfflineConfig, run_dir: Path, resume: bool, command: str, tell: Callable[..., None]
    ) -> dict[str, Any]:
        start = partial(GroupRun, groups_for(config, folder)["group"])
        try:
            return alone(config, run_dir, resume, command, tell, start=start)
        except Exception:
            end_groups()
            raise

    with cluster.connected(PlacementConfig(), cpus=2), pytest.MonkeyPatch.context() as patch:
        # Ray Train's cleaner would search the machine for its cluster, and may find another one.
        patch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
        patch.setattr(constants, "ENV_VARS_TO_PROPAGATE", {*constants.ENV_VARS_TO_PROPAGATE, "RAY_ADDRESS"})
        patch.setattr(cluster, "run_offline", run_offline)
        yield
        end_groups()
