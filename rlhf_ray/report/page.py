"""Writes `report.html`, the page of one run."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_ray.errors import UserError
from rlhf_ray.report.content import Column, Content
from rlhf_ray.report.crash import crash
from rlhf_ray.report.facts import flatten, number, plural, show
from rlhf_ray.report.files import RunFiles, read_run
from rlhf_ray.report.html import render
from rlhf_ray.report.online import online_content
from rlhf_ray.report.preference import preference_content
from rlhf_ray.report.reward import reward_content
from rlhf_ray.report.sft import sft_content
from rlhf_ray.rundir.commit import replace_file

_LAST = 200  # rows of the tables of steps and events
_CONTENTS = {
    "online": online_content,
    "reward": reward_content,
    "sft": sft_content,
    "preference": preference_content,
}


def write_report(run_dir: Path) -> Path:
    """Writes `run_dir/report.html` from what the run has left so far, and returns its path.

    What the page shows depends on `kind` in config.yaml. Files that are missing are named on it. Raises `UserError` if
    `run_dir` is not a run, or if a file is broken.
    """
    if not any((run_dir / name).is_file() for name in ("config.yaml", "metrics.jsonl", "summary.json")):
        raise UserError(f"{run_dir} is not a run directory: it has no config.yaml, metrics.jsonl or summary.json.")
    try:
        files = read_run(run_dir)
        content = _CONTENTS[files.kind](files)
        variables = _variables(files, content)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{run_dir}: a file of the run cannot be read ({error}). Repair or remove it.") from error
    path = run_dir / "report.html"
    replace_file(path, render("page.html.j2", content.all_charts, variables))
    return path


def _variables(files: RunFiles, content: Content) -> dict[str, object]:
    """The variables of the template."""
    manifest, records, events = files.manifest, files.records, files.events
    return {
        "content": content,
        "name": str(manifest.get("name") or files.path.resolve().name),
        "created": str(manifest.get("created") or "")[:16].replace("T", " "),
        "command": manifest.get("command"),
        "unfinished": _unfinished(files),
        "crash": crash(files),
        "events": _events(events[-_LAST:]),
        "events_left_out": max(0, len(events) - _LAST),
        "steps": _table(records[-_LAST:], content.columns),
        "steps_left_out": max(0, len(records) - _LAST),
        "config_yaml": files.config_yaml,
        "facts": flatten({key: value for key, value in manifest.items() if key not in ("command", "created")}),
    }


def _unfinished(files: RunFiles) -> str | None:
    """A sentence if the run says that it stopped early."""
    if files.summary.get("finished", True):
        return None
    steps = number(files.summary, "steps")
    return f"This run stopped before its end, after {plural(len(files.records) if steps is None else steps, 'step')}."


def _events(events: Sequence[Mapping[str, object]]) -> list[dict[str, str]]:
    rows = []
    for event in events:
        when = number(event, "time")
        rest = {key: value for key, value in event.items() if key not in ("time", "kind", "sentence", "step", "stacks")}
        rows.append(
            {
                "time": "" if when is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(when)),
                "step": str(event.get("step", "")),
                "kind": str(event.get("kind", "")),
                "sentence": str(event.get("sentence", "")),
                "details": ", ".join(f"{key} = {value}" for key, value in flatten(rest)),
            }
        )
    return rows


def _table(records: Sequence[Mapping[str, object]], columns: Sequence[Column]) -> list[tuple[str, list[str]]]:
    rows = []
    for record in records:
        values = [(number(record, column.metric), column.digits) for column in columns]
        rows.append((str(record.get("step", "")), ["" if v is None else show(v, digits) for v, digits in values]))
    return rows
