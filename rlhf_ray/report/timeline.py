"""When each role computed: a picture of the last steps, and all of them for Perfetto or chrome://tracing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlhf_ray.report.curves import Chart, Panel, Series
from rlhf_ray.rundir.commit import replace_file
from rlhf_ray.rundir.lines import read_lines

TRACE = "trace.json"
_STEPS = 5
_PHASE = "loop: "
_SHOWN_PHASES = {"loop: push": "weight push", "loop: commit": "commit"}  # the others are waiting for a role
Lanes = dict[str, list[tuple[float, float]]]


def timeline(run_dir: Path) -> list[Chart]:
    """The last steps of `spans.jsonl` as bars; empty if there are none. Raises `ValueError` for a broken file."""
    steps = finished_steps(run_dir)[-_STEPS:]
    lanes: Lanes = {}
    for _, found in steps:
        for lane, spans in found.items():
            if not lane.startswith(_PHASE) or lane in _SHOWN_PHASES:
                lanes.setdefault(_SHOWN_PHASES.get(lane, lane), []).extend(spans)
    if not lanes:
        return []
    start = min(begin for spans in lanes.values() for begin, _ in spans)
    end = max(end for spans in lanes.values() for _, end in spans)
    rows, shares = [], []
    for row, (lane, spans) in enumerate(sorted(lanes.items(), reverse=True)):
        ends = [(begin - start, end - start) for begin, end in spans]
        rows.append(Series(lane, [begin for begin, _ in ends], [float(row)] * len(ends), ends=ends))
        shares.append(f"{lane} {_covered(ends) / (end - start):.0%}")
    words = f"Steps {steps[0][0]} to {steps[-1][0]} took {end - start:.0f} s, of which each computed: "
    words += ", ".join(reversed(shares)) + "."
    note = (
        f"When each role computed, in the last steps. {TRACE} has all steps, for ui.perfetto.dev or chrome://tracing."
    )
    panel = Panel("", rows, kind="spans")
    return [Chart("timeline", "Timeline of roles", note, "seconds", [panel], words, wide=True, x_kind="number")]


def _covered(spans: Sequence[tuple[float, float]]) -> float:
    """Seconds in which at least one of `spans` lasts: a role's replicas compute at the same time."""
    covered, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        covered += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return covered


def write_trace(run_dir: Path) -> Path | None:
    """`trace.json` in the run directory, in Chrome's trace event format; None if the run recorded no spans."""
    steps = finished_steps(run_dir)
    if not steps:
        return None
    names = sorted({lane for _, lanes in steps for lane in lanes})
    threads: list[Mapping[str, object]] = [
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": number, "args": {"name": lane}}
        for number, lane in enumerate(names)
    ]
    spans: list[Mapping[str, object]] = [
        {
            "ph": "X",
            "name": lane.removeprefix(_PHASE),
            "pid": 1,
            "tid": names.index(lane),
            "ts": round(begin * 1e6),
            "dur": round((end - begin) * 1e6),
            "args": {"step": step},
        }
        for step, lanes in steps
        for lane, of_lane in lanes.items()
        for begin, end in of_lane
    ]
    path = run_dir / TRACE
    replace_file(path, json.dumps({"traceEvents": [*threads, *spans]}) + "\n")
    return path


def finished_steps(run_dir: Path) -> list[tuple[int, Lanes]]:
    """Of `spans.jsonl`: when each role computed and each phase ran. Raises `ValueError` for a broken file."""
    return [_step(record) for record in read_lines(run_dir / "spans.jsonl")]


def _step(record: Mapping[str, object]) -> tuple[int, Lanes]:
    step, lanes = record.get("step"), record.get("lanes")
    if not isinstance(step, int) or not isinstance(lanes, dict):
        raise ValueError("spans.jsonl has a line without step and lanes")
    return step, {str(lane): [(float(begin), float(end)) for begin, end in spans] for lane, spans in lanes.items()}
