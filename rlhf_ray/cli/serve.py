"""`rlhf-ray serve`: a policy behind Ray Serve until it is interrupted; and what can be told to a running service."""

from __future__ import annotations

import importlib
import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from rlhf_ray.errors import RunError, UserError

if TYPE_CHECKING:  # loads pydantic and the like, which `--help` does not need
    from rlhf_ray.serving.config import ServingConfig

KEY_VARIABLE = "RLHF_RAY_KEY"
_APPLICATION = "rlhf-ray"
_ADMIN_S = 30.0


def serve_command(
    target: str | None, overrides: Sequence[str], options: dict[str, object], config_file: Path | None
) -> None:
    """Serves until it is interrupted. `UserError` and `GateError` before anything has started."""
    from rlhf_ray.cluster import connected
    from rlhf_ray.config import PlacementConfig
    from rlhf_ray.serving.app import application, find_policies

    began = time.monotonic()
    config = _config(target, overrides, options, config_file)
    _check_port(config)
    policies = find_policies(config)
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    for policy, part in zip(policies, ("stable", "canary"), strict=False):
        console.print(f"{part}: {policy.source}, version {policy.version} ({policy.gate})", markup=False)
    key = _first_key(config)
    logging.disable(logging.WARNING)  # what Ray Serve and vLLM say in this process; what matters is printed here
    # Ray Serve's LLM server imports vLLM, for seconds in which Ray can start.
    importing = threading.Thread(target=importlib.import_module, args=("rlhf_ray.serving.engine",), daemon=True)
    importing.start()
    cpus = len(policies) * config.engine.replicas * config.engine.cpus + 0.1 * config.gateways + 1
    with connected(PlacementConfig(), cpus):
        from ray import serve

        try:
            serve.start(http_options={"host": config.host, "port": config.port})
            importing.join()  # two threads that import the same circle of modules may find half of one
            serve.run(application(config, policies), name=_APPLICATION, route_prefix="/")
        except RuntimeError as error:
            raise RunError(f"the service did not start: {error}") from error
        try:
            _say(console, config, key, time.monotonic() - began)
            while True:
                time.sleep(3600)
        finally:
            serve.delete(_APPLICATION)


def admin_command(verb: str, url: str, key: str | None) -> dict[str, Any]:
    """`promote`, `rollback` or `status` of the service at `url`; its policies afterwards. `UserError` if it refuses,
    `RunError` if it does not answer."""
    import httpx

    key = key or os.environ.get(KEY_VARIABLE)
    if not key:
        raise UserError(f"give a key with the scope admin: --key KEY, or {KEY_VARIABLE} in the environment")
    method, path = ("GET", "/admin/policies") if verb == "status" else ("POST", f"/admin/{verb}")
    try:
        answer = httpx.request(
            method, url.rstrip("/") + path, headers={"Authorization": f"Bearer {key}"}, timeout=_ADMIN_S
        )
        body: dict[str, Any] = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        raise RunError(f"{url}: no answer of a service of rlhf-ray ({error}); is it running there?") from error
    if answer.status_code >= 400:
        raise UserError(f"{url}: {body['error']['message']}")
    return body


def _config(
    target: str | None, overrides: Sequence[str], options: dict[str, object], config_file: Path | None
) -> ServingConfig:
    from rlhf_ray.config_file import apply_override, read_tree
    from rlhf_ray.serving.app import serving_config

    tree: dict[object, object] = read_tree(config_file) if config_file else {}
    tree |= {key: value for key, value in options.items() if value is not None}
    if target is not None:
        tree["model"] = target
    for override in overrides:
        apply_override(tree, override)
    if "model" not in tree:
        raise UserError("say what to serve: a run directory, a model folder, or smollm2-135m")
    return serving_config({str(key): value for key, value in tree.items()})


def _check_port(config: ServingConfig) -> None:
    with socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise UserError(
                f"{config.host}:{config.port} cannot be listened on ({error.strerror}); give another --port"
            ) from None


def _first_key(config: ServingConfig) -> str | None:
    """A key for everything, if there is none yet."""
    from rlhf_ray.serving.keys import SCOPES
    from rlhf_ray.serving.state import ServiceState

    state = ServiceState(config.store_url)
    return None if state.keys() else state.add_key(SCOPES, "first")


def _metrics_addresses() -> list[str]:
    """Where each node of the cluster shows its metrics."""
    import ray

    return [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in ray.nodes() if node["Alive"]]


def _say(console: Console, config: ServingConfig, key: str | None, seconds: float) -> None:
    host = "127.0.0.1" if config.host in ("0.0.0.0", "::") else config.host
    address = f"http://{host}:{config.port}"
    lines = [f"serving {config.name} at {address} after {seconds:.0f} s; Ctrl-C stops it"]
    lines += [f"metrics for Prometheus: {metrics}" for metrics in _metrics_addresses()]
    if key is None:
        lines.append("keys: `rlhf-ray keys list`; another one: `rlhf-ray keys add --scopes chat,feedback`")
    else:
        lines.append(f"API key, shown only now (scopes chat, feedback, admin): {key}")
        lines.append(f"the page: {address}/#key={key}")
    if config.host not in ("127.0.0.1", "localhost", "::1"):
        lines.append("this is plain HTTP for other machines: put a proxy with TLS in front of it")
    for line in lines:
        console.print(line, markup=False)
