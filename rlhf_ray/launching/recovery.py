"""What a driver that cannot go on by itself has lost: then it is worth starting it again."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_ray.cluster import check_room, connected
from rlhf_ray.config import AnyConfig
from rlhf_ray.errors import LostError, RunError, UserError
from rlhf_ray.launching.supervise import started_again
from rlhf_ray.resources import total_cpus
from rlhf_ray.rundir.lines import append_line

_NOTICED_S = 30.0
"""Ray declares a node dead some 15 s after it has stopped to answer; what it ran fails before."""
_REPLACED_S = 900.0
_POLL_S = 1.0
_LOSSES = frozenset({"WORKER_DIED", "NODE_DIED"})
"""Of Ray's reasons for an actor's death. The others are errors of its constructor, and ends on purpose."""
_REPLACED = frozenset({"RayTrainWorker", "Controller"})
"""Within a try Ray Train starts its workers again by itself, and a driver its controller."""


def noticing_losses(launch: Callable[[], dict[str, object]], config: AnyConfig, run_dir: Path) -> dict[str, object]:
    """What `launch` returns. `LostError` if it failed because an actor or a node was lost; the other errors of code
    and config are raised as they are.
    """
    from ray.exceptions import RayError

    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(connected(config.placement, total_cpus(config)))
        except LostError as error:
            _note(run_dir, f"{error}.")
            raise
        if started_again():
            _await_room(config)
        nodes = _alive()
        try:
            return launch()
        except LostError:
            raise
        except (RunError, RayError) as error:
            lost = _lost(nodes, _NOTICED_S if len(nodes) > 1 else 0.0)  # one node is this one
            if lost is None:
                raise
            reason = f"lost {lost}: " + f"{error}".partition("\n")[0].rstrip(".:")
            _note(run_dir, f"L{reason[1:]}.")
            raise LostError(reason) from error


def _note(run_dir: Path, sentence: str) -> None:
    if run_dir.is_dir():
        append_line(run_dir / "events.jsonl", {"time": time.time(), "kind": "lost", "sentence": sentence})


def _alive() -> set[str]:
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _lost(nodes: set[str], patience_s: float) -> str | None:
    """What of this try was lost: those of `nodes` that are dead, and actors that died; None if nothing was."""
    deadline = time.monotonic() + patience_s
    while not (nodes - _alive() or _lost_actors()):
        if time.monotonic() >= deadline:
            return None
        time.sleep(_POLL_S)
    time.sleep(_POLL_S)  # the actors of a node are written off one by one
    return ", ".join([f"node {node[:8]}" for node in sorted(nodes - _alive())] + _lost_actors())


def _lost_actors() -> list[str]:
    """This driver's actors that died, but for Ray Train's own, which have no names, and those that are replaced."""
    import ray
    from ray.util.state import list_actors
    from ray.util.state.exception import RayStateApiException

    context = ray.get_runtime_context()
    ours: list[tuple[str, str, str | bool | int | float]] = [
        ("job_id", "=", context.get_job_id()),
        ("state", "=", "DEAD"),
    ]
    try:
        dead = list_actors(address=context.gcs_address, filters=ours, detail=True, limit=1000)
    except RayStateApiException:  # the dashboard is away, and perhaps the head with it
        return []
    lost = [actor for actor in dead if _is_loss(actor.death_cause or {})]
    return sorted(f"actor {each.name}" for each in lost if each.name and each.class_name not in _REPLACED)


def _is_loss(death_cause: dict[str, Any]) -> bool:
    """Also one that Ray's own memory monitor has killed."""
    return death_cause.get("actor_died_error_context", {}).get("reason") in _LOSSES or "oom_context" in death_cause


def _await_room(config: AnyConfig) -> None:
    """Waits until the cluster has what the run asks for: a lost node may be replaced. `UserError` if it does not
    come."""
    deadline = time.monotonic() + _REPLACED_S
    while True:
        try:
            return check_room(config)
        except UserError:
            if time.monotonic() > deadline:
                raise
        time.sleep(_POLL_S)
