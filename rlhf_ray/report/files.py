"""What a run has left in its directory so far."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rlhf_ray.rundir.lines import read_lines

KINDS = ("online", "reward", "sft", "preference")
_COMMON = ("summary.json", "metrics.jsonl", "manifest.json", "config.yaml")


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The files that every kind of run has. A file that is missing is empty here, `config_yaml` None."""

    path: Path
    kind: str
    summary: Mapping[str, object]
    manifest: Mapping[str, object]
    config: Mapping[str, object]
    config_yaml: str | None
    records: list[dict[str, object]]
    events: list[dict[str, object]]

    def absent(self, *more: str) -> list[str]:
        """The names of the common files and of `more` that are missing."""
        return [name for name in (*_COMMON, *more) if not (self.path / name).is_file()]


def read_run(path: Path) -> RunFiles:
    """Reads the run at `path`. Raises `ValueError` naming a file that is broken."""
    summary = read_json(path / "summary.json")
    text = (path / "config.yaml").read_text(encoding="utf-8") if (path / "config.yaml").is_file() else None
    config = {} if text is None else _yaml(text)
    return RunFiles(
        path=path,
        kind=_kind(config, summary),
        summary=summary,
        manifest=read_json(path / "manifest.json"),
        config=config,
        config_yaml=text,
        records=read_lines(path / "metrics.jsonl"),
        events=read_lines(path / "events.jsonl"),
    )


def read_json(path: Path) -> dict[str, object]:
    """The object in the file, {} if there is no file."""
    if not path.is_file():
        return {}
    try:
        value: object = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return value


def _yaml(text: str) -> dict[str, object]:
    import yaml

    try:
        value: object = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"config.yaml: {error}") from error
    if not isinstance(value, dict):
        raise ValueError("config.yaml is not a mapping")
    return value


def _kind(config: Mapping[str, object], summary: Mapping[str, object]) -> str:
    """The config's word; else the summary's; else `online`, which old runs do not say."""
    kind = config.get("kind", "online") if config else summary.get("kind", "online")
    if kind not in KINDS:
        raise ValueError(f"kind = {kind} is none of {', '.join(KINDS)}")
    return str(kind)
