"""The evaluation of a reward model as cards: a sentence that claims what its interval supports, a table, a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from rlhf_ray.evaluation.calibration import Calibration
from rlhf_ray.evaluation.intervals import wilson_interval
from rlhf_ray.evaluation.reward import RewardEvaluation
from rlhf_ray.evaluation.reward_accuracy import Accuracy
from rlhf_ray.evaluation.reward_length import LengthBias
from rlhf_ray.report.content import Finding, Row, Strip, Table
from rlhf_ray.report.curves import Chart, Panel, Series
from rlhf_ray.report.facts import percent, show, span

_UNKNOWN = "not known"


def findings(evaluation: RewardEvaluation) -> list[Finding]:
    """The cards for which there is evidence, in reading order."""
    found = [
        Finding("kinds", "By kind of feedback", _kinds(evaluation), _kinds_table(evaluation)),
        _categories(evaluation),
        _by("objectives", "By objective", "Each objective is judged by its own score.", evaluation.by_objective),
        _reliability(evaluation.pair_calibration, "pairs", "The answer with the higher score is the better one"),
        _reliability(evaluation.thumb_calibration, "thumbs", "The answer is good"),
        *([] if evaluation.length is None else _length(evaluation.length)),
        _by(
            "lengths",
            "By length of the longer answer",
            "Quarters of the held-out comparisons, by the tokens of the longer answer.",
            evaluation.by_length,
        ),
        _annotators(evaluation),
        _rank_correlation(evaluation),
        _certainty(evaluation),
    ]
    return [finding for finding in found if finding is not None]


def accuracy_table(rows: Sequence[Accuracy], name: str) -> Table:
    """Accuracies with their intervals, drawn from 0 to 100 %. Score ties count half, human ties are left out."""
    columns = [name, "Accuracy", "95% interval", "Decisions", "Prompts", "Score ties", "Human ties"]
    return Table(columns, [_row(row) for row in rows], "0% to 100%")


def _row(row: Accuracy, baseline: float = 0.5) -> Row:
    counts = [f"{count:,}" for count in (row.decisions, row.prompts, row.score_ties, row.human_ties)]
    if row.accuracy is None or row.ci95 is None:
        return Row(row.name, None, [_UNKNOWN, "", *counts])
    low, high = row.ci95
    strip = Strip(100 * low, 100 * row.accuracy, 100 * high, 100 * baseline)
    return Row(row.name, strip, [percent(row.accuracy), f"{percent(low)} to {percent(high)}", *counts])


def _by(id: str, title: str, text: str, rows: Sequence[Accuracy]) -> Finding | None:
    """A table of parts, None if there is only one, which the first table shows."""
    return Finding(id, title, text, accuracy_table(rows, title.removeprefix("By ").capitalize())) if rows[1:] else None


def _kinds(evaluation: RewardEvaluation) -> str:
    text = "Rankings and ratings count as the comparisons that they contain. Decisions about one prompt depend on each "
    text += (
        "other, and the intervals know it. Equal scores count half, ties of people are left out. The line marks chance."
    )
    if evaluation.thumbs_majority is not None:
        text = text.removesuffix(".")
        text += f"; for thumbs, always giving the commoner one ({percent(evaluation.thumbs_majority)})."
    return text


def _kinds_table(evaluation: RewardEvaluation) -> Table:
    table = accuracy_table(evaluation.by_kind, "Kind")
    majority = evaluation.thumbs_majority
    rows = [_row(row, majority if row.name == "thumb" and majority else 0.5) for row in evaluation.by_kind]
    return replace(table, rows=rows)


def _categories(evaluation: RewardEvaluation) -> Finding | None:
    table = evaluation.categories
    if table is None:
        return None
    mean = _UNKNOWN if table.mean is None else percent(table.mean)
    text = f"Mean over categories, all weighing the same: {mean}."
    if table.uncategorised:
        text += f" {table.uncategorised:,} decisions without a category are not in the table."
    return Finding("categories", "By category", text, accuracy_table(table.rows, "Category"))


def _reliability(calibration: Calibration | None, what: str, event: str) -> Finding | None:
    if calibration is None:
        return None
    bound = calibration.ece_if_calibrated
    text = f"Expected calibration error {percent(calibration.ece)} over {calibration.decisions:,} decisions, which is "
    text += "more than" if calibration.ece > bound else "no more than"
    text += f" chance explains ({percent(bound)}). Brier score {show(calibration.brier, 3)} (a coin has 0.250). "
    if calibration.temperature is None:
        text += "No temperature would calibrate the scores: none is wrong, or they point the wrong way."
    else:
        sure = "too sure" if calibration.temperature > 1 else "not sure enough"
        text += f"Best temperature {show(calibration.temperature)}: by likelihood the scores are {sure} of themselves."
    bins = calibration.bins
    start = 0.5 if what == "pairs" else 0.0
    ends = [wilson_interval(b.observed * b.count, b.count) for b in bins]
    lines = [
        Series("perfect", [start, 1.0], [start, 1.0], dashed=True),
        Series("observed", [b.predicted for b in bins], [b.observed for b in bins], ends=ends),
    ]
    words = " ".join(f"Said {b.predicted:.0%}, was {b.observed:.0%}." for b in bins)
    note = f"{event}: how often the model says so, and how often it is so. Bars are 95% intervals."
    panel = Panel("observed share", lines, percent=True)
    chart = Chart(f"reliability-{what}", "Reliability", note, "predicted", [panel], words, x_kind="share")
    return Finding(f"calibration-{what}", f"Calibration of {what}", text, chart=chart)


def _length(length: LengthBias) -> list[Finding]:
    rows = (length.longer_right, length.shorter_right, length.equal_length, length.length_controlled)
    shown = [row for row in rows if row.decisions]
    text = _correlation(length)
    if length.gap is not None:
        low, high = length.gap.ci95
        clear = "clearly " if low > 0 or high < 0 else "not clearly "
        better = "more" if length.gap.value > 0 else "less"
        text += f" It is {clear}{better} often right where the longer answer is the better one "
        text += f"({show(100 * length.gap.value, 1, True)} points, 95% interval {show(100 * low, 1, True)} to "
        text += f"{show(100 * high, 1, True)})."
    if length.balanced is not None:
        text += f" Both cases weighing the same, it has {percent(length.balanced)}."
    text += f" Always taking the longer answer would have {percent(length.always_longer)}."
    table = Finding("length", "Length", text, accuracy_table(shown, "Comparisons"))
    weights = "Weights in a logistic regression of people's choice, per standard deviation: the score beyond length "
    weights += f"{show(length.score_weight, 2, True)}, length {show(length.length_weight, 2, True)}."
    return [table, Finding("length-points", "Score and length", weights, chart=_scatter(length))]


def _correlation(length: LengthBias) -> str:
    if length.pearson is None:
        return "All comparisons have equal scores."
    within = span(length.pearson_ci95, lambda x: show(x, 2, True))
    spearman = "" if length.spearman is None else f", Spearman {show(length.spearman, 2, True)}"
    numbers = f"(Pearson {show(length.pearson, 2, True)}, {within}{spearman})"
    if length.pearson_ci95 is not None and length.pearson_ci95[0] > 0:
        return f"Longer answers get higher scores {numbers}."
    if length.pearson_ci95 is not None and length.pearson_ci95[1] < 0:
        return f"Longer answers get lower scores {numbers}."
    return f"No clear correlation of score and length {numbers}."


def _scatter(length: LengthBias) -> Chart:
    groups = (("right", [p for p in length.points if p[1] > 0]), ("wrong", [p for p in length.points if p[1] <= 0]))
    lines = [Series(name, [float(x) for x, _ in points], [y for _, y in points]) for name, points in groups if points]
    words = f"{len(length.points)} comparisons; {_correlation(length)}"
    note = f"{len(length.points):,} comparisons, the better answer minus the worse one."
    panel = Panel("score difference", lines, kind="dots")
    label = "length difference (tokens)"
    return Chart(
        "length-scatter",
        "Score difference by length difference",
        note,
        label,
        [panel],
        words,
        wide=True,
        x_kind="number",
    )


def _annotators(evaluation: RewardEvaluation) -> Finding | None:
    if not evaluation.by_annotator:
        return None
    sentences = []
    for alpha in evaluation.agreement:
        people, joined = (_UNKNOWN if a is None else show(a) for a in (alpha.people, alpha.with_model))
        among = f"{people} among people, {joined}" if alpha.people is not None else joined
        shared = "judged by several" if alpha.people is not None else "each judged by one"
        sentences.append(f"{alpha.of}: {among} with the model as one more ({alpha.units:,} units, {shared})")
    text = "The model's accuracy on each annotator's judgements. Krippendorff's alpha of " + "; ".join(sentences) + "."
    return Finding("annotators", "By annotator", text, accuracy_table(evaluation.by_annotator, "Annotator"))


def _rank_correlation(evaluation: RewardEvaluation) -> Finding | None:
    if not evaluation.kendall:
        return None
    rows = []
    for row in evaluation.kendall:
        low, tau, high = (50 + 50 * value for value in (row.ci95[0], row.tau, row.ci95[1]))
        scope = "within prompts" if row.scope == "prompt" else "over all prompts"
        cells = [row.objective, show(row.tau), f"{show(row.ci95[0])} to {show(row.ci95[1])}"]
        counts = [f"{row.groups:,}", f"{row.prompts:,}", f"{row.left_out:,}"]
        rows.append(Row(f"{row.kind}s {scope}", Strip(low, tau, high, 50.0), [*cells, *counts]))
    columns = ["Order", "Objective", "Tau-b", "95% interval", "Groups", "Prompts", "All equal, left out"]
    text = "Kendall's tau-b of scores and people's order: 1 is the same order, 0 none, \u22121 the reverse."
    return Finding("kendall", "Order of several answers", text, Table(columns, rows, "\u22121 to 1"))


def _certainty(evaluation: RewardEvaluation) -> Finding | None:
    found = evaluation.certainty
    if found is None:
        return None
    text = "Thirds of the decisions by the disagreement of the ensemble's members."
    if found.gap is not None:
        low, high = (f"{show(100 * end, 1, True)}" for end in found.gap.ci95)
        numbers = f"({show(100 * found.gap.value, 1, True)} points from high to low, 95% interval {low} to {high})"
        informative = "The model is more often right where its members agree" if found.gap.ci95[0] > 0 else None
        reverse = "The model is less often right where its members agree" if found.gap.ci95[1] < 0 else None
        text += f" {informative or reverse or 'The uncertainty is not clearly informative'} {numbers}."
    return Finding("certainty", "By uncertainty", text, accuracy_table(found.rows, "Third"))
