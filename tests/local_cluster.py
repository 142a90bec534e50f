"""A Ray cluster of several nodes on this machine, with token authentication, in processes of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

TOKEN = "a-token-of-the-tests-that-is-long-enough"


@dataclass(frozen=True)
class LocalCluster:
    """Where its dashboard is, and the process of each node's raylet by node id."""

    dashboard: str
    raylets: dict[str, int]
    head: str
    """The head's node id."""


def token_environment(token: str | None = TOKEN) -> dict[str, str]:
    """The environment of a process that shows `token` to Ray, or of one that has none."""
    dropped = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    own = {name: value for name, value in os.environ.items() if name not in dropped}
    own["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), own["PATH"]])
    return own | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token} if token else own


@contextmanager
def local_cluster(cpus: list[int]) -> Iterator[LocalCluster]:
    """A head with `cpus[0]` logical CPUs and a worker node for each further number.

    Its files are in a folder of a short name: paths of sockets have at most 107 characters.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray-"))
    command = [sys.executable, "-m", "tests.local_cluster", str(folder), *map(str, cpus)]
    root = Path(__file__).parents[1]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root, env=token_environment()
    )
    assert process.stdin is not None and process.stdout is not None
    try:
        line = next((line for line in process.stdout if line.startswith('{"dashboard"')), "")
        assert line, "the cluster did not start"
        yield LocalCluster(**json.loads(line))
    finally:
        process.stdin.close()
        process.wait(60)
        shutil.rmtree(folder, ignore_errors=True)


def _run(folder: str, cpus: list[int]) -> None:
    """Starts the nodes, says where they are, and stops them when nobody listens any more."""
    import ray._private.utils as utils
    from ray.cluster_utils import Cluster

    # Jobs find their cluster by a file in its folder; the one in Ray's usual folder would be found by everybody else.
    utils.write_ray_address = partial(utils.write_ray_address, temp_dir=folder)
    cluster = Cluster()
    nodes = [cluster.add_node(num_cpus=count, **_node(i, folder)) for i, count in enumerate(cpus)]
    raylets = {node.node_id: node.all_processes["raylet"][0].process.pid for node in nodes}
    where = {"dashboard": f"http://{cluster.webui_url}", "raylets": raylets, "head": nodes[0].node_id}
    print(json.dumps(where), flush=True)
    sys.stdin.read()
    cluster.shutdown()


def _node(number: int, folder: str) -> dict[str, Any]:
    """What a node gets. On one machine all share a folder, where one would unpack a job's files over another's."""
    own = {"object_store_memory": 2**28, "runtime_env_dir_name": f"runtime_resources_{number}"}
    head = {
        "include_dashboard": True,
        "dashboard_port": 0,
        "dashboard_agent_listen_port": None,  # any: another cluster of this machine may have the usual one
        "temp_dir": folder,
        "_system_config": {"worker_niceness": 0},
    }
    return own if number else {**own, **head}


if __name__ == "__main__":
    _run(sys.argv[1], [int(count) for count in sys.argv[2:]])
