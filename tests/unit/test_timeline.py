"""The timeline of roles: a chart of the last steps and a trace of all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_ray.actors.stopwatch import Stopwatch
from rlhf_ray.report.timeline import timeline, write_trace


def _run(path: Path, steps: int) -> None:
    lines = []
    for step in range(1, steps + 1):
        begin = 100.0 + 10 * step
        lanes = {"rollout": [[begin, begin + 4]], "policy": [[begin + 4, begin + 7], [begin + 8, begin + 9]]}
        lanes |= {"loop: generate": [[begin, begin + 4]], "loop: push": [[begin + 9, begin + 10]]}
        lines.append(json.dumps({"step": step, "lanes": lanes}))
    (path / "spans.jsonl").write_text("\n".join(lines) + "\n")


def test_the_chart_shows_the_last_steps_with_the_share_that_each_role_computed(tmp_path: Path) -> None:
    _run(tmp_path, 7)
    (chart,) = timeline(tmp_path)
    (panel,) = chart.panels
    rows = {series.name: series for series in panel.series}
    assert list(rows) == ["weight push", "rollout", "policy"], "from the bottom up; waiting for a role is no lane"
    assert rows["rollout"].ends == [(0, 4), (10, 14), (20, 24), (30, 34), (40, 44)], "steps 3 to 7"
    assert rows["policy"].ends is not None and rows["policy"].ends[:2] == [(4, 7), (8, 9)]
    assert {series.y[0] for series in panel.series} == {0.0, 1.0, 2.0}
    assert "Steps 3 to 7 took 50 s" in chart.summary
    assert "policy 40%, rollout 40%, weight push 10%" in chart.summary
    json.dumps(chart.spec())


def test_replicas_that_compute_together_count_once(tmp_path: Path) -> None:
    lanes = {"rollout": [[0.0, 6.0], [1.0, 3.0], [5.0, 8.0], [9.0, 10.0]]}
    (tmp_path / "spans.jsonl").write_text(json.dumps({"step": 1, "lanes": lanes}) + "\n")
    assert "rollout 90%" in timeline(tmp_path)[0].summary


def test_the_trace_has_every_span_in_microseconds(tmp_path: Path) -> None:
    _run(tmp_path, 7)
    path = write_trace(tmp_path)
    assert path is not None
    events = json.loads(path.read_text())["traceEvents"]
    threads = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    spans = [event for event in events if event["ph"] == "X"]
    assert sorted(threads.values()) == ["loop: generate", "loop: push", "policy", "rollout"] and len(spans) == 7 * 5
    (first,) = [e for e in spans if threads[e["tid"]] == "rollout" and e["args"]["step"] == 1]
    assert (first["ts"], first["dur"]) == (110_000_000, 4_000_000)


def test_a_run_without_spans_has_neither_and_a_broken_file_is_named(tmp_path: Path) -> None:
    assert timeline(tmp_path) == [] and write_trace(tmp_path) is None
    (tmp_path / "spans.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(ValueError, match=r"spans\.jsonl"):
        timeline(tmp_path)


def test_a_stopwatch_joins_neighbouring_spans_and_adds_up_what_was_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 1.01, 2.0, 5.0, 6.0])
    monkeypatch.setattr("rlhf_ray.actors.stopwatch.time.time", lambda: next(times))
    watch = Stopwatch()
    for _ in range(3):
        with watch:
            pass
    seconds, spans = watch.take()
    assert seconds == pytest.approx(2.99) and spans == [(0.0, 2.0), (5.0, 6.0)]
    assert watch.take() == (0.0, [])
