"""Whether a manifest is one that the custom resource definitions of a Kubernetes cluster know."""

from __future__ import annotations

import gzip
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator

from rlhf_ray.config_file import nearest
from rlhf_ray.errors import UserError

Schema = Mapping[str, Any]
_ANY = "x-kubernetes-preserve-unknown-fields"


def read_crds(path: Path) -> dict[tuple[str, str], Schema]:
    """The schemas in `path` by `apiVersion` and `kind`: a folder of CRDs as YAML, gzipped or not, or one such file.

    A file may be what `kubectl get crd ... -o yaml` printed. `UserError` if there are none.
    """
    files = sorted(file for file in path.glob("*") if file.name.endswith((".yaml", ".yml", ".yaml.gz")))
    if path.is_file():
        files = [path]
    found: dict[tuple[str, str], Schema] = {}
    for file in files:
        for document in _documents(file):
            for crd in document.get("items", [document]):
                found |= _schemas(crd)
    if not found:
        raise UserError(
            f"--crds: {path} holds no CustomResourceDefinition; save KubeRay's with `kubectl get crd -o yaml`"
        )
    return found


def mistakes(manifest: Mapping[str, Any], schemas: Mapping[tuple[str, str], Schema]) -> list[str]:
    """A sentence for each field of `manifest` that its CRD does not know or that has a wrong value."""
    key = (manifest["apiVersion"], manifest["kind"])
    if key not in schemas:
        known = ", ".join(f"{kind} of {version}" for version, kind in sorted(schemas))
        return [f"the CRDs do not define {key[1]} of {key[0]}; they define {known}"]
    schema = schemas[key]
    wrong = sorted(Draft202012Validator(schema).iter_errors(manifest), key=lambda error: str(error.json_path))
    values = [f"{_dotted(error.absolute_path)}: {error.message}" for error in wrong]
    return [*_unknown(manifest, {**schema, "properties": _without_metadata(schema)}, ""), *values]


def _without_metadata(schema: Schema) -> Schema:
    """Kubernetes itself knows the metadata of a manifest; a CRD says of it only that it is an object."""
    return {**schema["properties"], "metadata": {_ANY: True}}


def _unknown(value: object, schema: Schema, path: str) -> Iterator[str]:
    """Kubernetes drops what a schema does not name without a word, unless the schema says otherwise."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _unknown(item, schema.get("items", {_ANY: True}), f"{path}.{index}")
    if not isinstance(value, dict):
        return
    named, others = schema.get("properties", {}), schema.get("additionalProperties")
    for key, inner in value.items():
        place = f"{path}.{key}".lstrip(".")
        if key in named:
            yield from _unknown(inner, named[key], place)
        elif isinstance(others, dict):
            yield from _unknown(inner, others, place)
        elif not (others or schema.get(_ANY)):
            yield f"{place}: unknown field; {nearest(str(key), named)}"


def _documents(file: Path) -> Iterator[dict[str, Any]]:
    """LibYAML's loader if it is there: these files have a megabyte, for which the one in Python needs many seconds."""
    try:
        text = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
        while loader.check_data():
            document = loader.get_data()
            if isinstance(document, dict):
                yield document
    except (OSError, EOFError, yaml.YAMLError) as error:
        raise UserError(f"--crds: {file} is not YAML: {' '.join(str(error).split())[:200]}") from None


def _schemas(crd: Mapping[str, Any]) -> dict[tuple[str, str], Schema]:
    if crd.get("kind") != "CustomResourceDefinition":
        return {}
    spec = crd["spec"]
    return {
        (f"{spec['group']}/{version['name']}", spec["names"]["kind"]): version["schema"]["openAPIV3Schema"]
        for version in spec["versions"]
        if version.get("served", True)
    }


def _dotted(path: Any) -> str:
    return ".".join(map(str, path)) or "the manifest"
