"""Tells an inbox which actor controls its worker group, so that it can be asked whether it lives."""

from __future__ import annotations

from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback  # the public ones say nothing at a start


class Introduction(ControllerCallback):
    """Runs in Ray Train's controller."""

    def __init__(self, inbox: Any) -> None:
        self._inbox = inbox

    def after_controller_start(self, train_run_context: object) -> None:
        """Before the first group is started."""
        self._inbox.controlled_by.remote(ray.get_runtime_context().current_actor)
