"""A few rows of a file as the model will see them."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_ray.data.check_lengths import RowLengths
from rlhf_ray.data.check_report import ExampleRow, ShownAnswer
from rlhf_ray.data.checked_rows import UsableRow, answers_of
from rlhf_ray.evidence import OVERALL, Demonstration, Item, Pair, PromptOnly, Ranking, Rating

_SHOWN = 3


class ExamplePicker:
    """Keeps three rows: the first of each shape, then the first of all."""

    def __init__(self) -> None:
        self._rows: list[ExampleRow] = []

    def take(self, row: UsableRow, prompt: str, lengths: RowLengths | None) -> None:
        """Takes a row in, whose prompt is rendered as `prompt`."""
        shapes = [example.shape for example in self._rows]
        if row.shape not in shapes:
            repeated = (i for i, shape in enumerate(shapes) if shape in shapes[:i])
            place = next(repeated, len(shapes))
        else:
            place = len(shapes)
        if place < _SHOWN:
            self._rows.insert(place, _example(row, prompt, lengths))
            del self._rows[_SHOWN:]

    def result(self) -> tuple[ExampleRow, ...]:
        """The rows kept."""
        return tuple(self._rows)


def _example(row: UsableRow, prompt: str, lengths: RowLengths | None) -> ExampleRow:
    verdicts = _verdicts(row.items)
    answers = [
        ShownAnswer(answer, verdicts[answer], lengths.answers[answer] if lengths else None) for answer in row.answers
    ]
    return ExampleRow(row.where, row.shape, prompt, lengths.prompt if lengths else None, tuple(answers))


def _verdicts(items: Sequence[Item]) -> dict[str, str]:
    """What is said about each answer, in words, e.g. "chosen by ann, bob; tie by eve"."""
    said: dict[str, dict[str, list[str]]] = {}
    for item in items:
        label = None if isinstance(item, Demonstration | PromptOnly) else item.label
        about = f" for {label.objective}" if label and label.objective != OVERALL else ""
        for answer, word in zip(answers_of(item), _words(item), strict=True):
            people = said.setdefault(answer, {}).setdefault(word + about, [])
            people += [label.annotator] if label and label.annotator is not None else []
    return {answer: "; ".join(_with(people, word) for word, people in by.items()) for answer, by in said.items()}


def _with(people: Sequence[str], word: str) -> str:
    return f"{word} by {', '.join(people)}" if people else word


def _words(item: Item) -> list[str]:
    """One for each answer of the item."""
    if isinstance(item, PromptOnly):
        return []
    if isinstance(item, Demonstration):
        return ["to imitate"]
    if isinstance(item, Pair):
        return ["tie", "tie"] if item.tie else ["chosen", "rejected"]
    if isinstance(item, Ranking):
        return [f"rank {rank}" for rank in item.ranks]
    if isinstance(item, Rating):
        return [f"rated {item.value:g}"]
    return ["good" if item.good else "bad"]
