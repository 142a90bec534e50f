"""The live view: plain lines without a terminal, a dashboard with one."""

from __future__ import annotations

import io

from rich.console import Console

from rlhf_ray.report.progress import ProgressView, step_line

STEP = {
    "type": "metrics",
    "step": 3,
    "reward/mean": 0.412,
    "kl/k1_per_token": 0.0123,
    "response/length_mean": 31.2,
    "response/truncated_fraction": 0.22,
    "policy/entropy": 1.93,
    "critic/explained_variance": 0.4,
    "time/step": 38.1,
    "time/generate": 12.3,
    "time/score": 1.0,
    "policy/loss": None,
}


def view(terminal: bool) -> tuple[ProgressView, io.StringIO]:
    stream = io.StringIO()
    return ProgressView(12, console=Console(file=stream, force_terminal=terminal, width=100)), stream


def test_plain_lines_say_the_step_in_one_line() -> None:
    progress, stream = view(terminal=False)
    with progress:
        progress.update([{"type": "phase", "step": 3, "phase": "generate"}, STEP])
        progress.update([{"type": "event", "kind": "sentinel", "sentence": "drift \x1b[31m[bold]0.03[/bold]\n rose"}])
    assert stream.getvalue().splitlines() == [
        "step 3/12  reward 0.41  kl/token 0.012  len 31.2  truncated 22%  entropy 1.93  38.1s "
        "(generate 12.3 score 1.0)",
        "event: drift  [31m[bold]0.03[/bold]  rose",
    ]


def test_what_a_step_does_not_have_is_left_out() -> None:
    assert step_line({"step": 1.0, "reward/mean": -0.5}, 2) == "step 1/2  reward -0.50"
    assert step_line({"step": 1.0, "time/step": 2.0}, 2) == "step 1/2  2.0s"


def test_the_dashboard_shows_numbers_phase_and_events() -> None:
    progress, stream = view(terminal=True)
    with progress:
        progress.update([STEP | {"step": 1, "reward/mean": 0.1}, STEP])
        progress.update([{"type": "phase", "step": 4, "phase": "score", "time": 0.0}])
        progress.update([{"type": "event", "sentence": f"event number {number}"} for number in range(6)])
        console = Console(file=io.StringIO(), width=100, record=True)
        console.print(progress._dashboard())
        shown = console.export_text()
    assert "step 3 of 12" in shown and "step 4: score" in shown
    reward = next(line for line in shown.splitlines() if line.startswith("reward"))
    assert reward.split() == ["reward", "0.412", "0.100", "↑"]
    assert "generate 12.3 score 1.0" in shown
    assert "event number 5" in shown and "event number 1" not in shown
    assert "step 3/12" not in stream.getvalue()
