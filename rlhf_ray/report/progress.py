"""Live progress of a run: a small dashboard in a terminal, one plain line a step elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rlhf_ray import metrics as m

_EVENTS_SHOWN = 4
_ROWS = (
    (m.REWARD_MEAN, "reward", "{:.3f}"),
    (m.KL_PER_TOKEN, "KL per token (k1, nats)", "{:.4f}"),
    (m.KL_COEF, "KL coefficient", "{:.4f}"),
    (m.LENGTH_MEAN, "response length (tokens)", "{:.1f}"),
    (m.TRUNCATED, "truncated", "{:.0%}"),
    (m.ENTROPY, "entropy (nats)", "{:.2f}"),
    (m.CRITIC_EXPLAINED_VARIANCE, "critic explained variance", "{:.2f}"),
    (m.TRAIN_LOSS, "loss", "{:.4f}"),
    (m.HELDOUT_LOSS, "held-out loss", "{:.4f}"),
    (m.TRAIN_ACCURACY, "accuracy (pairs)", "{:.1%}"),
    (m.HELDOUT_ACCURACY, "held-out accuracy", "{:.1%}"),
    (m.TRAIN_MARGIN, "margin", "{:.3f}"),
    (m.TOKEN_ACCURACY, "token accuracy", "{:.1%}"),
    (m.CHOSEN_REWARD, "implicit reward, chosen", "{:.3f}"),
    (m.REJECTED_REWARD, "implicit reward, rejected", "{:.3f}"),
    (m.BETA, "beta", "{:.4f}"),
    (m.BETA_KL, "KL per answer (nats)", "{:.3f}"),
    (m.BETA_TARGET_KL, "KL target (nats)", "{:.3f}"),
    (m.TOKENS_PER_SECOND, "tokens a second", "{:,.0f}"),
)
_SHORT = (
    (m.REWARD_MEAN, "reward {:.2f}"),
    (m.KL_PER_TOKEN, "kl/token {:.3f}"),
    (m.LENGTH_MEAN, "len {:.1f}"),
    (m.TRUNCATED, "truncated {:.0%}"),
    (m.ENTROPY, "entropy {:.2f}"),
    (m.TRAIN_LOSS, "loss {:.3f}"),
    (m.TRAIN_ACCURACY, "accuracy {:.0%}"),
    (m.TOKEN_ACCURACY, "token accuracy {:.0%}"),
    (m.TRAIN_MARGIN, "margin {:.2f}"),
    (m.BETA, "beta {:.3f}"),
    (m.BETA_KL, "kl {:.2f}"),
    (m.HELDOUT_LOSS, "held-out loss {:.3f}"),
    (m.HELDOUT_ACCURACY, "held-out accuracy {:.0%}"),
    (m.TOKENS_PER_SECOND, "{:,.0f} tokens/s"),
)
_RARE = (m.HELDOUT_LOSS, m.HELDOUT_ACCURACY)  # not measured in every step, so the last one stays on screen
TITLES = {"reward": "Reward model", "sft": "Fine-tuning", "preference": "Preferences"}
"""Of the runs on fixed data, by the kind of their config; an online run is called after its algorithm."""


class ProgressView:
    """Shows the journal's records (`RunDirectory.records_since`); use as a context manager and call `update`.

    `num_steps` is 0 if nobody knows yet how many there will be.
    """

    def __init__(self, num_steps: int, title: str = "PPO", console: Console | None = None) -> None:
        self._num_steps = num_steps
        self._title = title
        self._console = console or Console(stderr=True)  # stdout is for results
        self._first: dict[str, float] = {}
        self._latest: dict[str, float] = {}
        self._step = 0
        self._phase = "starting"
        self._phase_step = 0
        self._has_phases = False
        self._phase_since = time.time()
        self._started = time.time()
        self._events: deque[str] = deque(maxlen=_EVENTS_SHOWN)
        self._live: Live | None = None

    def __enter__(self) -> ProgressView:
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._dashboard, console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._phase = "done" if error is None else "stopped"
            self._phase_since = time.time()
            self._live.stop()
            self._live = None

    def update(self, records: Iterable[Mapping[str, object]]) -> None:
        """Takes new records in, oldest first; unknown types are left alone."""
        for record in records:
            if record.get("type") == "metrics":
                self._take_metrics(record)
            elif record.get("type") == "phase":
                self._phase = printable(str(record.get("phase")))
                self._has_phases = True
                self._phase_step = int(_number(record.get("step")) or 0)
                self._phase_since = _number(record.get("time")) or time.time()
            elif record.get("type") == "event":
                self._take_event(printable(str(record.get("sentence"))))

    def _take_metrics(self, record: Mapping[str, object]) -> None:
        values = {name: value for name, raw in record.items() if (value := _number(raw)) is not None}
        self._step = int(values.get("step", self._step))
        self._latest = {name: self._latest[name] for name in _RARE if name in self._latest} | values
        for name, value in values.items():
            self._first.setdefault(name, value)
        if not self._has_phases and self._phase == "starting":  # a run on fixed data has no other phases
            self._phase, self._phase_since = "training", time.time()
        if self._live is None:
            self._plain(step_line(values, self._num_steps))

    def _take_event(self, sentence: str) -> None:
        self._events.append(sentence)
        if self._live is None:
            self._plain(f"event: {sentence}")

    def _plain(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)

    def _dashboard(self) -> Group:
        now = time.time()
        head = Text.assemble(
            (f"{self._title}  ", "bold"),
            f"step {self._step} of {self._num_steps}   " if self._num_steps else f"step {self._step}   ",
            (_clock(now - self._started), "dim"),
        )
        busy = f"step {self._phase_step}: {self._phase}" if self._phase_step else self._phase
        doing = Text.assemble(("now  ", "dim"), (busy, "cyan"), (f"  {_clock(now - self._phase_since)}", "dim"))
        bar = ProgressBar(total=self._num_steps or None, completed=self._step, width=min(60, self._console.width - 2))
        parts: list[Text | ProgressBar | Table] = [head, bar, doing]
        if self._latest:
            parts.append(self._numbers())
            if self._has_phases:
                parts.append(Text("seconds  " + (_phases(self._latest) or "not known yet"), style="dim"))
        parts += [Text(f"! {sentence}", style="yellow") for sentence in self._events]
        return Group(*parts)

    def _numbers(self) -> Table:
        table = Table(box=None, pad_edge=False, show_header=True, header_style="dim")
        table.add_column("")
        for column in ("now", "first", ""):
            table.add_column(column, justify="right")
        for name, label, form in _ROWS:
            if name in self._latest:
                now, first = self._latest[name], self._first[name]
                arrow = "↑" if now > first else "↓" if now < first else "="
                table.add_row(label, Text(form.format(now), style="bold"), form.format(first), arrow)
        return table


def step_line(values: Mapping[str, float], num_steps: int) -> str:
    """One step in one line, e.g. `step 3/12  reward 0.41  kl/token 0.012  len 31.2  38.1s (generate 12.3)`."""
    step = int(values.get("step", 0))
    parts = [f"step {step}/{num_steps}" if num_steps else f"step {step}"]
    parts += [form.format(values[name]) for name, form in _SHORT if name in values]
    if m.TIME_STEP in values:
        phases = _phases(values)
        parts.append(f"{values[m.TIME_STEP]:.1f}s" + (f" ({phases})" if phases else ""))
    return "  ".join(parts)


def printable(text: str) -> str:
    """`text` without control characters: an event may quote model output, and a terminal obeys escape codes."""
    return "".join(char if char.isprintable() else " " for char in text)


def _phases(values: Mapping[str, float]) -> str:
    named = ((phase, values.get(m.TIME_PHASE.format(phase=phase))) for phase in m.PHASES)
    return " ".join(f"{phase} {seconds:.1f}" for phase, seconds in named if seconds is not None)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(max(seconds, 0)), 60)
    return f"{minutes}:{rest:02d}"
