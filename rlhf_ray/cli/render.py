"""`rlhf-ray render`: manifests for KubeRay, sized from the config of a run or of a service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import yaml
from rich.console import Console

from rlhf_ray.config import AnyConfig
from rlhf_ray.config_file import apply_override, find_recipe, load_config, read_tree
from rlhf_ray.errors import UserError
from rlhf_ray.launching.crds import mistakes, read_crds
from rlhf_ray.launching.manifests import (
    Cluster,
    Manifest,
    kube_name,
    ray_cluster,
    ray_job,
    ray_service,
    serve_config,
)
from rlhf_ray.launching.sizing import HEAD, Need, check_strategy, equal_pods, run_needs, service_needs, unknown_models
from rlhf_ray.serving.app import serving_config
from rlhf_ray.serving.config import ServingConfig

Kind = Literal["job", "cluster", "service"]
_MAX_FAILURES = 3


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line says beside the config."""

    kind: Kind
    name: str | None
    image: str | None
    claim: str
    nodes: int
    token_auth: bool
    fields: Sequence[str]
    crds: Path | None


def render_command(path: str, overrides: Sequence[str], wanted: Wanted) -> None:
    """Prints the manifests, and on stderr what to know about them. `UserError` names what the CRDs do not know."""
    console = Console(stderr=True, highlight=False, soft_wrap=True, markup=False)
    manifests = (
        _service(path, overrides, wanted, console)
        if wanted.kind == "service"
        else _run(path, overrides, wanted, console)
    )
    resource: dict[Any, Any] = manifests[-1]
    for field in wanted.fields:
        apply_override(resource, field)
    if wanted.crds is None:
        console.print("fields were not checked against a CRD: give KubeRay's with --crds")
    elif wrong := mistakes(resource, read_crds(wanted.crds)):
        raise UserError("\n  ".join([f"{resource['kind']}, fields to mend:", *wrong]))
    print(yaml.dump_all(manifests, Dumper=_Dumper, sort_keys=False, allow_unicode=True), end="")


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as they are read."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _run(path: str, overrides: Sequence[str], wanted: Wanted, console: Console) -> list[Manifest]:
    config = load_config(path, overrides)
    if config.placement.address:
        raise UserError("placement.address: the run joins the cluster that its manifest makes; leave it out")
    check_strategy(config, wanted.nodes)
    cluster = _cluster(config.name, run_needs(config), wanted)
    _say(config, cluster, console)
    if wanted.kind == "cluster":
        return [ray_cluster(cluster)]
    tree = read_tree(find_recipe(path))
    for override in overrides:
        apply_override(tree, override)
    return ray_job(cluster, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True), _MAX_FAILURES)


def _service(path: str, overrides: Sequence[str], wanted: Wanted, console: Console) -> list[Manifest]:
    """The values stay as they were given: defaults such as the path of the store are filled in where it runs."""
    tree = read_tree(Path(path))
    for override in overrides:
        apply_override(tree, override)
    args = {str(key): value for key, value in tree.items()}
    config = serving_config(args)
    if not config.allowed_hosts:
        console.print("allowed_hosts is empty: the service answers under any name that leads to it")
    if "://" not in config.store:
        console.print(
            "store is a file: with several nodes, or while a cluster is replaced, it has to be a database URL"
        )
    cluster = _cluster(config.name, service_needs(config), wanted)
    _say(config, cluster, console)
    return [ray_service(cluster, yaml.safe_dump(serve_config(args), sort_keys=False))]


def _cluster(name: str, needs: Sequence[Need], wanted: Wanted) -> Cluster:
    pod = equal_pods(needs, wanted.nodes)
    image = wanted.image or f"rlhf-ray:{metadata.version('rlhf-ray')}-{'gpu' if pod.gpus else 'cpu'}"
    return Cluster(kube_name(wanted.name or name), image, wanted.claim, pod, wanted.nodes, wanted.token_auth)


def _say(config: AnyConfig | ServingConfig, cluster: Cluster, console: Console) -> None:
    console.print(f"worker pods: {cluster.nodes} of {_size(cluster.pod)}; the head: {_size(HEAD)}")
    console.print(f"the persistent volume claim {cluster.claim} has to be ReadWriteMany")
    for path in unknown_models(config):
        console.print(
            f"model {path} is not on this machine: its weights are not in the memory above; raise it with --set"
        )


def _size(pod: Need) -> str:
    gpus = f", {pod.gpus:g} GPUs" if pod.gpus else ""
    return f"{pod.cpus:g} CPUs{gpus}, {pod.memory_gib:g} GiB"
