"""`rlhf-ray render`: sizes from the config, fields that KubeRay's CRDs know, and the examples in deploy/kuberay."""

from __future__ import annotations

import gzip
import os
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_ray.cli.main import main
from rlhf_ray.config import RunConfig
from rlhf_ray.config_file import load_config
from rlhf_ray.errors import UserError
from rlhf_ray.launching.crds import mistakes, read_crds
from rlhf_ray.launching.manifests import kube_name
from rlhf_ray.launching.sizing import Need, check_strategy, equal_pods, run_needs

ROOT = Path(__file__).parents[2]
CRDS = Path(os.environ.get("RLHF_RAY_DATA", ROOT.parent / "shared" / "data")) / "kuberay"
with_crds = pytest.mark.skipif(not CRDS.is_dir(), reason="KubeRay's CRDs are not there (RLHF_RAY_DATA)")
RENDERED = {
    "rayjob.yaml": "ppo_smollm2_cpu.yaml --kind job --nodes 2",
    "raycluster.yaml": "ppo_smollm2_cpu.yaml --kind cluster --nodes 2",
    "rayservice.yaml": "deploy/kuberay/service.yaml --kind service",
}


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the commands of deploy/README.md are run."""
    monkeypatch.chdir(ROOT)


def _rendered(capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert main(["render", *words]) == 0
    return list(yaml.safe_load_all(capsys.readouterr().out))


@pytest.mark.parametrize("name", RENDERED)
def test_the_examples_are_what_render_prints(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", *RENDERED[name].split()]) == 0
    assert capsys.readouterr().out == (ROOT / "deploy" / "kuberay" / name).read_text()
    assert f"rlhf-ray render {RENDERED[name]}" in (ROOT / "deploy" / "README.md").read_text()


@with_crds
@pytest.mark.parametrize("name", RENDERED)
def test_kuberay_knows_every_field_of_the_examples(name: str) -> None:
    schemas = read_crds(CRDS)
    *_, resource = yaml.safe_load_all((ROOT / "deploy" / "kuberay" / name).read_text())
    assert mistakes(resource, schemas) == []


@with_crds
@pytest.mark.parametrize("recipe", ["demo.yaml", "ppo_8gpu.yaml", "dpo.yaml", "reward_demo.yaml", "sft.yaml"])
@pytest.mark.parametrize("kind", ["job", "cluster"])
def test_recipes_of_every_kind(recipe: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    *_, resource = _rendered(capsys, recipe, "--kind", kind, "--crds", str(CRDS))
    spec = resource["spec"].get("rayClusterSpec", resource["spec"])
    assert spec["authOptions"] == {"mode": "token"}
    (worker,) = spec["workerGroupSpecs"]
    limits = worker["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits.get("nvidia.com/gpu") == ("8" if recipe == "ppo_8gpu.yaml" else None)
    assert "image" in worker["template"]["spec"]["containers"][0]


@with_crds
@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("spec.shutDownAfterJobFinishes=true", "spec.shutDownAfterJobFinishes: unknown field; did you mean shutdown"),
        (
            "spec.rayClusterSpec.workerGroupSpecs.0.minReplica=2",
            "workerGroupSpecs.0.minReplica: unknown field; did you",
        ),
        ("spec.rayClusterSpec.headGroupSpec.template.spec.nodeSelektor={a: b}", "did you mean nodeSelector?"),
        ("spec.backoffLimit=many", "spec.backoffLimit: 'many' is not of type 'integer'"),
        ("spec.rayClusterSpec.authOptions.mode=tokens", "spec.rayClusterSpec.authOptions.mode: 'tokens' is not one of"),
        ("spec.entrypoint.x=1", "spec.entrypoint is the value"),
        ("kind=RayCron", "the CRDs do not define RayCron"),
    ],
)
def test_a_field_that_kuberay_does_not_know(field: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "demo.yaml", "--crds", str(CRDS), "--set", field]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.out == ""


@with_crds
def test_fields_that_it_does_know(capsys: pytest.CaptureFixture[str]) -> None:
    """Free-form places too: labels, node selectors, start parameters."""
    group = "spec.rayClusterSpec.workerGroupSpecs.0"
    fields = ["metadata.labels={team: rlhf}", f"{group}.template.spec.nodeSelector={{nvidia.com/gpu.product: H100}}"]
    fields += [
        f"{group}.rayStartParams.resources=x",
        f"{group}.template.spec.containers.0.envFrom=[{{secretRef: {{name: hf}}}}]",
    ]
    words = [word for field in fields for word in ("--set", field)]
    _, job = _rendered(capsys, "demo.yaml", "--crds", str(CRDS), *words)
    assert job["metadata"]["labels"] == {"team": "rlhf"}
    worker = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    assert worker["containers"][0]["envFrom"] == [{"secretRef": {"name": "hf"}}]


GUIDE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("line", re.findall(r"^rlhf-ray (render .*)$", GUIDE, re.MULTILINE))
def test_the_commands_of_the_guide(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(line.partition(" > ")[0])
    crds = ["--crds", str(CRDS)] if CRDS.is_dir() else []
    assert main([*words, *crds]) == 0
    assert capsys.readouterr().out


def test_without_crds_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "demo.yaml", "--set", "spec.nonsense=1"]) == 0
    captured = capsys.readouterr()
    assert "fields were not checked against a CRD" in captured.err and "nonsense" in captured.out


def test_the_job_resumes_and_is_given_time_to_commit(capsys: pytest.CaptureFixture[str]) -> None:
    config, job = _rendered(capsys, "demo.yaml", "train.num_steps=3", "--name", "My.Run_2", "--storage", "disk")
    assert "--resume-if-exists" in job["spec"]["entrypoint"] and "/data/runs/my-run-2" in job["spec"]["entrypoint"]
    assert yaml.safe_load(job["spec"]["runtimeEnvYAML"])["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"] == "3600"
    assert job["spec"]["shutdownAfterJobFinishes"] and job["spec"]["backoffLimit"] > 0
    assert config["metadata"]["name"] == "my-run-2-config" and job["metadata"]["name"] == "my-run-2"
    assert yaml.safe_load(config["data"]["config.yaml"])["train"]["num_steps"] == 3
    pods = [job["spec"]["rayClusterSpec"]["headGroupSpec"], *job["spec"]["rayClusterSpec"]["workerGroupSpecs"]]
    for pod in (pod["template"]["spec"] for pod in pods):
        assert {"name": "data", "persistentVolumeClaim": {"claimName": "disk"}} in pod["volumes"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["containers"][0]["workingDir"] == "/data"


def test_the_service_listens_to_the_pods_and_keeps_its_own_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "s.yaml").write_text("model: runs/demo\nengine: {replicas: 3, gpus: 1}\n")
    (service,) = _rendered(capsys, str(tmp_path / "s.yaml"), "store=postgresql+psycopg://db/x", "--kind", "service")
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    args = config["applications"][0]["args"]
    assert args == {
        "model": "runs/demo", "engine": {"replicas": 3, "gpus": 1}, "host": "0.0.0.0",
        "store": "postgresql+psycopg://db/x",
    }  # fmt: skip
    worker = service["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert worker["resources"]["limits"]["nvidia.com/gpu"] == "3" and worker["image"].endswith("-gpu")
    (tmp_path / "s.yaml").write_text("model: runs/demo\nengin: {}\n")
    assert main(["render", str(tmp_path / "s.yaml"), "--kind", "service"]) == 2


def test_actors_are_shared_out_over_equal_pods() -> None:
    needs = [Need(1, 2, 4), Need(1, 1, 2), Need(1, 1, 2), Need(2, 0, 1)]
    assert equal_pods(needs, 1) == Need(5, 4, 14)
    halves = equal_pods(needs, 2)
    assert (halves.gpus, halves.cpus) == (2, 3), "the engine of two GPUs has a pod, the others share one"
    assert equal_pods(needs, 9).gpus == 2, "a pod holds the largest actor, however many there are"
    assert equal_pods([Need(0.5, 0.25, 1)], 1) == Need(1, 1, 2)


def test_memory_is_above_what_the_demo_needs() -> None:
    """Measured: 12.2 GiB at most for the demo, all processes together; its reward model was there then."""
    config = load_config("demo.yaml")
    assert isinstance(config, RunConfig)
    assert 14 <= equal_pods(run_needs(config), 1).memory_gib <= 30


@pytest.mark.parametrize(("strategy", "nodes"), [("STRICT_PACK", 2), ("STRICT_SPREAD", 1)])
def test_a_placement_that_the_nodes_cannot_keep(strategy: str, nodes: int) -> None:
    config = load_config("ppo_8gpu.yaml", [f"placement.strategy={strategy}"])
    with pytest.raises(UserError, match=f"placement.strategy = {strategy}"):
        check_strategy(config, nodes)
    check_strategy(config, 3 - nodes)


def test_names_are_those_of_kubernetes() -> None:
    assert kube_name("PPO_3b.v2") == "ppo-3b-v2"
    with pytest.raises(UserError, match="47 characters"):
        kube_name("x" * 48)


def test_crds_may_be_a_file_of_several_or_none(tmp_path: Path) -> None:
    crd = {
        "kind": "CustomResourceDefinition",
        "spec": {
            "group": "ray.io",
            "names": {"kind": "RayJob"},
            "versions": [{"name": "v1", "schema": {"openAPIV3Schema": {"properties": {"spec": {"type": "object"}}}}}],
        },
    }
    (tmp_path / "list.yaml").write_text(yaml.safe_dump({"kind": "List", "items": [crd]}))
    (tmp_path / "one.yaml.gz").write_bytes(gzip.compress(yaml.safe_dump(crd).encode()))
    for path in (tmp_path, tmp_path / "list.yaml", tmp_path / "one.yaml.gz"):
        assert list(read_crds(path)) == [("ray.io/v1", "RayJob")]
    manifest = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"anything": 1}, "spec": {"a": 1}}
    assert mistakes(manifest, read_crds(tmp_path)) == [
        "apiVersion: unknown field; known here: metadata, spec",
        "kind: unknown field; known here: metadata, spec",
        "spec.a: unknown field; known here: ",
    ]
    (tmp_path / "list.yaml").write_text("a: [")
    with pytest.raises(UserError, match="is not YAML"):
        read_crds(tmp_path)
    with pytest.raises(UserError, match="holds no CustomResourceDefinition"):
        read_crds(tmp_path / "absent")
