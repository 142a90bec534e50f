"""Writes `report.html`: one page that needs nothing else, no network included.

Model text is hostile input: the template escapes everything, chart data is JSON that cannot close its element, and a
content security policy lets only the page's own two scripts run and nothing load.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_ray import metrics as m
from rlhf_ray.errors import UserError
from rlhf_ray.report.answers import choose, rewards_by_prompt
from rlhf_ray.report.curves import build_charts
from rlhf_ray.report.facts import flatten, headline, interval, number, show, tiles, time_shares
from rlhf_ray.rundir.commit import replace_file
from rlhf_ray.rundir.lines import finite, read_lines
from rlhf_ray.rundir.rollout_table import read_rollouts

_LAST = 200  # rows of the tables of steps and events
_COLUMNS = (
    ("Reward", m.REWARD_MEAN, 3),
    ("KL per token", m.KL_PER_TOKEN, 4),
    ("KL coefficient", m.KL_COEF, 4),
    ("Length", m.LENGTH_MEAN, 1),
    ("Cut-off share", m.TRUNCATED, 2),
    ("Entropy", m.ENTROPY, 3),
    ("Value loss", m.CRITIC_LOSS, 4),
    ("Explained variance", m.CRITIC_EXPLAINED_VARIANCE, 3),
    ("Seconds", m.TIME_STEP, 1),
)


def write_report(run_dir: Path) -> Path:
    """Writes `run_dir/report.html` from what the run has left so far, and returns its path.

    Files that are missing are named on the page. Raises `UserError` if `run_dir` is not a run, or if a file is broken.
    """
    if not any((run_dir / name).is_file() for name in ("config.yaml", "metrics.jsonl", "summary.json")):
        raise UserError(f"{run_dir} is not a run directory: it has no config.yaml, metrics.jsonl or summary.json.")
    import jinja2
    from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]  # plotly ships no types

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"show": show}
    try:
        content = _content(run_dir)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError(f"{run_dir}: a file of the run cannot be read ({error}). Repair or remove it.") from error
    template = environment.get_template("page.html.j2")
    page = template.render(**content, plotly_js=get_plotlyjs(), nonce=secrets.token_urlsafe(16))
    path = run_dir / "report.html"
    replace_file(path, page)
    return path


def _content(run_dir: Path) -> dict[str, object]:
    """The variables of the template."""
    summary, manifest = _json(run_dir / "summary.json"), _json(run_dir / "manifest.json")
    records, events = read_lines(run_dir / "metrics.jsonl"), read_lines(run_dir / "events.jsonl")
    before, after = _answers(run_dir / "eval" / "before.parquet"), _answers(run_dir / "eval" / "after.parquet")
    found, missing = tiles(summary, len(records))
    charts = build_charts(records, rewards_by_prompt(before, after))
    config = run_dir / "config.yaml"
    return {
        "name": str(manifest.get("name") or run_dir.resolve().name),
        "created": str(manifest.get("created") or "")[:16].replace("T", " "),
        "command": manifest.get("command"),
        "headline": headline(summary, len(records)),
        "outcome": _outcome(summary),
        "tiles": found,
        "missing": missing,
        "absent_files": _absent(run_dir),
        "policy_dir": summary.get("policy_dir"),
        "shares": time_shares(summary),
        "charts": charts,
        "specs": finite([chart.spec() for chart in charts]),
        "groups": choose(before, after),
        "heldout": len({row["prompt_id"] for row in after}),
        "events": _events(events[-_LAST:]),
        "events_left_out": max(0, len(events) - _LAST),
        "columns": [label for label, _, _ in _COLUMNS],
        "steps": _table(records[-_LAST:]),
        "steps_left_out": max(0, len(records) - _LAST),
        "config_yaml": config.read_text(encoding="utf-8") if config.is_file() else None,
        "facts": flatten({key: value for key, value in manifest.items() if key not in ("command", "created")}),
    }


def _outcome(summary: Mapping[str, object]) -> str:
    """`up`, `down`, `same` or `unknown`, as the headline says."""
    ends = interval(summary)
    if ends is None:
        return "unknown"
    return "up" if ends[0] > 0 else "down" if ends[1] < 0 else "same"


def _absent(run_dir: Path) -> list[str]:
    wanted = ["summary.json", "metrics.jsonl", "manifest.json", "config.yaml"]
    wanted += ["eval/before.parquet", "eval/after.parquet"]
    return [name for name in wanted if not (run_dir / name).is_file()]


def _json(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        value: object = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return value


def _answers(path: Path) -> list[dict[str, object]]:
    return read_rollouts(path) if path.is_file() else []


def _events(events: Sequence[Mapping[str, object]]) -> list[dict[str, str]]:
    rows = []
    for event in events:
        when = number(event, "time")
        rest = {key: value for key, value in event.items() if key not in ("time", "kind", "sentence", "step")}
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


def _table(records: Sequence[Mapping[str, object]]) -> list[tuple[str, list[str]]]:
    rows = []
    for record in records:
        values = [(number(record, key), digits) for _, key, digits in _COLUMNS]
        rows.append((str(record.get("step", "")), ["" if v is None else show(v, digits) for v, digits in values]))
    return rows
