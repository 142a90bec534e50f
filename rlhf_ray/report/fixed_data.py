"""What the pages of all runs on fixed data share: how sure an accuracy is, and the tiles of data and cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlhf_ray.report.content import Verdict
from rlhf_ray.report.facts import Tile, costs, figure, interval, number, percent, plural, show, span

Values = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Claim:
    """An accuracy with its interval, and the `baseline` that it has to beat to mean anything."""

    accuracy: float
    ci95: tuple[float, float] | None
    sentence: str
    """With `{}` where the accuracy goes, e.g. `The policy prefers the chosen answer in {} of held-out pairs`."""
    baseline: float = 0.5
    baseline_name: str = "chance"
    note: str = ""

    @property
    def headline(self) -> str:
        """The result in one sentence; it claims to beat the baseline only if the interval lies above it."""
        said = self.sentence.format(percent(self.accuracy))
        if self.ci95 is None:
            return f"{said} (the interval is not known)"
        within = span(self.ci95, percent)
        line = f"{self.baseline_name} is {percent(self.baseline, 0)}"
        if self.ci95[0] > self.baseline:
            return f"{said} ({within}; {line})"
        if self.ci95[1] < self.baseline:
            return f"Worse than {self.baseline_name}: {said[:1].lower()}{said[1:]} ({within}; {line})"
        return f"Not clearly better than {self.baseline_name}: {said[:1].lower()}{said[1:]} ({within}; {line})"

    @property
    def verdict(self) -> Verdict:
        """The same in a few words."""
        if self.ci95 is None:
            return Verdict("unknown", "The interval is not known", self.note)
        if self.ci95[0] > self.baseline:
            return Verdict("up", f"The 95% interval lies above {self.baseline_name}", self.note)
        if self.ci95[1] < self.baseline:
            return Verdict("down", f"The 95% interval lies below {self.baseline_name}", self.note)
        return Verdict("same", f"The 95% interval includes {self.baseline_name}", self.note)


def claim_of_summary(summary: Values, sentence: str) -> Claim | None:
    """The claim of `heldout_accuracy`, None if the run has none yet."""
    accuracy = number(summary, "heldout_accuracy")
    return None if accuracy is None else Claim(accuracy, interval(summary, "heldout_accuracy_ci95"), sentence)


def no_result(steps_recorded: int) -> tuple[str, Verdict]:
    """Headline and verdict of a run without a held-out result."""
    headline = f"No held-out result yet: {plural(steps_recorded, 'training step')} recorded"
    return headline, Verdict("unknown", "Not a finished result")


def accuracy_tile(summary: Values) -> Tile | str:
    """The held-out accuracy with its interval."""
    within = span(interval(summary, "heldout_accuracy_ci95"), percent)
    return figure(summary, "Held-out accuracy", "heldout_accuracy", percent, within)


def loss_tile(summary: Values) -> Tile | str:
    """The held-out loss."""
    return figure(summary, "Held-out loss", "heldout_loss", lambda x: show(x, 3), "mean over held-out data")


def data_tiles(summary: Values, steps_recorded: int) -> list[Tile | str]:
    """How much data, how fast, how long, how large."""
    steps = number(summary, "steps")
    clock = f"wall clock, {plural(steps_recorded if steps is None else steps, 'training step')}"
    heldout, dropped = number(summary, "items_heldout"), number(summary, "dropped_rows")
    held = "held out: not recorded" if heldout is None else f"{heldout:,.0f} held out, no prompt in both"
    key = "pairs_train" if number(summary, "pairs_train") is not None else "items_train"
    label = "Training pairs" if key == "pairs_train" else "Training items"
    tiles = [figure(summary, label, key, "{:,.0f}".format, held)]
    if dropped:
        tiles.append(Tile("Dropped rows", f"{dropped:,.0f}", "could not be used, and on_bad_row is drop"))
    speed = "tokens a second, padding left out"
    return [*tiles, figure(summary, "Speed", "tokens_per_second", "{:,.0f}".format, speed), *costs(summary, clock)]


def model_dir(summary: Values, keys: Sequence[str] = ("model_dir", "policy_dir")) -> str | None:
    """Where the trained model lies."""
    return next((str(summary[key]) for key in keys if summary.get(key)), None)
