"""Manifests for KubeRay, as dictionaries: a run as a RayJob, a cluster for it, a service."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

from rlhf_ray.errors import UserError
from rlhf_ray.launching.jobs import JOB_SETTINGS
from rlhf_ray.launching.sizing import HEAD, Need

Manifest = dict[str, Any]
DATA = "/data"
"""Where the claim is mounted in every pod, and the current directory of all processes."""
CONFIG = "/etc/rlhf-ray"
_LONGEST_NAME = 47
"""KubeRay makes names of services and pods from it, which may have 63."""
_FINISHED_S = 600
_NEW_CLUSTERS = 2
_USER = 1000
"""The one of deploy/Dockerfile."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What every kind of manifest says about its cluster."""

    name: str
    image: str
    claim: str
    pod: Need
    nodes: int
    token_auth: bool


def kube_name(name: str) -> str:
    """`name` as Kubernetes writes names; `UserError` if it is too long."""
    made = re.sub(r"[^a-z0-9-]+", "-", name.lower()).strip("-")
    if len(made) > _LONGEST_NAME:
        raise UserError(f"name = {name}: KubeRay takes {_LONGEST_NAME} characters; give a shorter --name")
    return made


def ray_cluster(cluster: Cluster) -> Manifest:
    """A RayCluster of the size of a run, to which jobs are submitted."""
    return _manifest("RayCluster", cluster.name, _cluster_spec(cluster, _volumes(cluster), []))


def ray_job(cluster: Cluster, config_yaml: str, max_failures: int) -> list[Manifest]:
    """A ConfigMap with the config, and a RayJob that starts the run or resumes it, on a cluster of its own.

    A lost worker node costs a retry of the driver; a lost head, one of `backoffLimit` new clusters.
    """
    mounted = {"name": "config", "configMap": {"name": f"{cluster.name}-config"}}
    words = ["rlhf-ray", "train", f"{CONFIG}/config.yaml", "--run-dir", f"{DATA}/runs/{cluster.name}"]
    words += ["--resume-if-exists", "--max-failures", str(max_failures)]
    spec = {
        "entrypoint": shlex.join(words),
        "runtimeEnvYAML": json.dumps({"env_vars": JOB_SETTINGS}),  # JSON is YAML
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": _FINISHED_S,
        "backoffLimit": _NEW_CLUSTERS,
        "rayClusterSpec": _cluster_spec(
            cluster, [*_volumes(cluster), mounted], [{"name": "config", "mountPath": CONFIG}]
        ),
    }
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": f"{cluster.name}-config"},
        "data": {"config.yaml": config_yaml},
    }
    return [config, _manifest("RayJob", cluster.name, spec)]


def ray_service(cluster: Cluster, serve_config: str) -> Manifest:
    """A RayService that keeps the application in `serve_config` up, and replaces its cluster when it is lost."""
    spec = {"serveConfigV2": serve_config, "rayClusterConfig": _cluster_spec(cluster, _volumes(cluster), [])}
    return _manifest("RayService", cluster.name, spec)


def serve_config(args: Mapping[str, object]) -> dict[str, object]:
    """Ray Serve's own config of a service with the values `args`, for pods: deploy/serve.yaml is the one for a host."""
    application = {
        "name": "rlhf-ray",
        "route_prefix": "/",
        "import_path": "rlhf_ray.serving.app:build",
        "args": {**args, "host": "0.0.0.0"},
    }
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": 8000},
        "applications": [application],
    }


def _manifest(kind: str, name: str, spec: Manifest) -> Manifest:
    return {"apiVersion": "ray.io/v1", "kind": kind, "metadata": {"name": name}, "spec": spec}


def _cluster_spec(cluster: Cluster, volumes: list[Manifest], head_mounts: list[Manifest]) -> Manifest:
    ports = {"gcs-server": 6379, "dashboard": 8265, "client": 10001, "serve": 8000}
    head = _container("ray-head", cluster, HEAD, head_mounts)
    head["ports"] = [{"name": name, "containerPort": port} for name, port in ports.items()]
    worker = {
        "groupName": "workers",
        "replicas": cluster.nodes,
        "minReplicas": cluster.nodes,
        "maxReplicas": cluster.nodes,
        "rayStartParams": {},
        "template": _template(_container("ray-worker", cluster, cluster.pod, []), _volumes(cluster)),
    }
    spec: Manifest = {"rayVersion": metadata.version("ray")}
    if cluster.token_auth:
        spec["authOptions"] = {"mode": "token"}
    return spec | {
        # What holds the cluster together shares its pod with no role.
        "headGroupSpec": {"rayStartParams": {"num-cpus": "0"}, "template": _template(head, volumes)},
        "workerGroupSpecs": [worker],
    }


def _template(container: Manifest, volumes: list[Manifest]) -> Manifest:
    security = {"runAsNonRoot": True, "runAsUser": _USER, "fsGroup": _USER}
    return {"spec": {"securityContext": security, "containers": [container], "volumes": volumes}}


def _container(name: str, cluster: Cluster, size: Need, mounts: list[Manifest]) -> Manifest:
    """Limits without requests: Kubernetes then asks for as much."""
    limits: Manifest = {"cpu": f"{size.cpus:g}", "memory": f"{size.memory_gib:g}Gi"}
    if size.gpus:
        limits["nvidia.com/gpu"] = f"{size.gpus:g}"
    models = {"HF_HOME": f"{DATA}/.cache/huggingface", "RLHF_RAY_CACHE": f"{DATA}/.cache/rlhf-ray"}
    return {
        "name": name,
        "image": cluster.image,
        "workingDir": DATA,
        "env": [{"name": variable, "value": value} for variable, value in models.items()],
        "resources": {"limits": limits},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [{"name": "data", "mountPath": DATA}, *mounts],
    }


def _volumes(cluster: Cluster) -> list[Manifest]:
    return [{"name": "data", "persistentVolumeClaim": {"claimName": cluster.claim}}]
