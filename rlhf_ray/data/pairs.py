"""Rows that compare two answers: chosen and rejected, or two answers and who was voted for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from rlhf_ray.data.fields import (
    BadRow,
    Row,
    as_list,
    as_number,
    as_row,
    as_text,
    given,
    kind_of,
    label_of,
    margin_of,
    name_of,
)
from rlhf_ray.data.messages import Messages, as_prompt, conversation, is_hh, prompt_of
from rlhf_ray.evidence import Item, Pair

if TYPE_CHECKING:
    from rlhf_ray.data.feedback import FeedbackConfig

TWO_ANSWERS = (
    ("response1", "response2"), ("response_1", "response_2"), ("response 1", "response 2"),
    ("response_a", "response_b"), ("answer_a", "answer_b"), ("completion_a", "completion_b"),
)  # fmt: skip
"""The names under which rows hold the two answers of a comparison."""
AUTO_J = ("response 1", "response 2")
JUDGEMENTS = ("label", "preference", "winner", "choice")

Vote = Literal["first", "second", "tie"]
_ANNOTATOR = re.compile(r"annotator[ _]?\d+")
_VOTE = re.compile(r"(?:(?:response|answer|completion|model)[ _-]?)?(1|2|a|b)|(0|tie(?:\s*\(.*\))?)")
_VOTES: dict[str, Vote] = {"1": "first", "a": "first", "2": "second", "b": "second"}
_AUTO_J_VOTES: dict[float, Vote] = {0: "first", 1: "second", 2: "tie"}


def chosen_and_rejected(row: Row, where: str, _: FeedbackConfig) -> list[Item]:
    """TRL's explicit and implicit preferences, UltraFeedback's scored ones, and the raw text of Anthropic HH."""
    missing = [key for key in ("chosen", "rejected") if key not in row]
    if missing:
        raise BadRow(f"{' and '.join(missing)} missing", "a pair needs chosen and rejected")
    chosen, rejected = row["chosen"], row["rejected"]
    prompt = prompt_of(row) if "prompt" in row or "instruction" in row else None
    if prompt is None and isinstance(chosen, str) and isinstance(rejected, str) and not is_hh(chosen):
        prompt, chosen, rejected = _shared_beginning(chosen, rejected)
    chosen_prompt, better = conversation(chosen, "chosen", prompt)
    rejected_prompt, worse = conversation(rejected, "rejected", prompt)
    if chosen_prompt != rejected_prompt:
        raise BadRow(
            "chosen and rejected differ before their last message, so they do not answer one prompt",
            "make their earlier turns equal",
        )
    _differ("chosen", better, "rejected", worse)
    return [Pair(chosen_prompt, better, worse, label_of(row, where), margin=_margin(row))]


def compared(row: Row, where: str, _: FeedbackConfig) -> list[Item]:
    """Two answers and one vote, or one of each annotator: a pair for each vote.

    A vote is 1, "a", "response 1" or the like for the first answer, 2, "b" and so on for the second, 0 or "tie" for
    neither (PandaLM, arXiv 2306.05087). Auto-J (arXiv 2310.05470), known by the spaces in `response 1` and by `label`,
    counts from 0 instead and writes a tie as 2.
    """
    prompt = prompt_of(row)
    names = next(pair for pair in TWO_ANSWERS if pair[0] in row or pair[1] in row)
    missing = [name for name in names if name not in row]
    if missing:
        raise BadRow(f"{missing[0]} missing", f"a comparison needs {names[0]} and {names[1]}")
    first, second = (_answer(row[name], name, prompt) for name in names)
    _differ(names[0], first, names[1], second)
    margin = margin_of(row)
    pairs: list[Item] = []
    for ballot in _ballots(row):
        vote = _vote(ballot, auto_j=names == AUTO_J and ballot.key == "label")
        if vote == "tie" and margin:
            raise BadRow(f"{ballot.key} is a tie, but margin is {margin:g}", "remove margin")
        chosen, rejected = (second, first) if vote == "second" else (first, second)
        label = label_of(row, where, ballot.objective, ballot.annotator)
        pairs.append(Pair(prompt, chosen, rejected, label, tie=vote == "tie", margin=margin))
    return pairs


@dataclass(frozen=True, slots=True)
class _Ballot:
    key: str
    value: object
    annotator: str | None = None
    objective: str | None = None


def _ballots(row: Row) -> list[_Ballot]:
    """The votes of a row, from the one source that it has."""
    annotators = [key for key in row if _ANNOTATOR.fullmatch(key) and given(row, key)]
    sources = [key for key in JUDGEMENTS if given(row, key)]
    sources += [" and ".join(annotators)] if annotators else []
    sources += ["annotations"] if given(row, "annotations") else []
    if len(sources) != 1:
        if sources:
            raise BadRow(f"has both {sources[0]} and {sources[1]}, of which one is the judgement", "keep this one")
        keys = f"{', '.join(JUDGEMENTS)}, annotator1, annotator2, ..., annotations"
        raise BadRow("two answers are compared, but there is no judgement", f"add one under one of {keys}")
    if annotators:
        return [_Ballot(key, row[key], annotator=key) for key in annotators]
    if sources == ["annotations"]:
        return list(_annotations(row))
    return [_Ballot(sources[0], row[sources[0]])]


def _annotations(row: Row) -> Iterator[_Ballot]:
    for number, value in enumerate(as_list(row["annotations"], "annotations"), start=1):
        key = f"annotations, entry {number}"
        if not isinstance(value, Mapping):
            raise BadRow(f"{key} is {kind_of(value)}", "it must be an object with annotator and choice")
        entry = as_row(value)
        missing = [name for name in ("annotator", "choice") if not given(entry, name)]
        if missing:
            raise BadRow(f"{key}: {missing[0]} missing", "add it")
        objective = as_text(entry["objective"], f"{key}: objective") if given(entry, "objective") else None
        yield _Ballot(f"{key}: choice", entry["choice"], name_of(entry["annotator"], f"{key}: annotator"), objective)


def _vote(ballot: _Ballot, auto_j: bool) -> Vote:
    value, hint = ballot.value, "1 or a for the first answer, 2 or b for the second, 0 or tie for neither"
    number: float | None = None
    if not isinstance(value, str):
        number = as_number(value, ballot.key)
    elif re.fullmatch(r"\s*\d+\.0*\s*|\s*\d+\s*", value):  # cells of a CSV file, with a float for each number
        number = float(value)
    if auto_j and number is not None:
        if number in _AUTO_J_VOTES:
            return _AUTO_J_VOTES[number]
        hint = "0 for the first answer, 1 for the second, 2 for neither"
    else:
        match = _VOTE.fullmatch(str(value).strip().lower() if number is None else f"{number:g}")
        if match:
            return _VOTES[match[1]] if match[1] else "tie"
    raise BadRow(f"{ballot.key} is {value!r:.40}", f"write {hint}")


def _answer(value: object, key: str, prompt: Messages) -> str:
    # PandaLM's files hold some answers that read True or False as JSON booleans.
    before, answer = conversation(str(value) if isinstance(value, bool) else value, key, prompt)
    if before != prompt:
        raise BadRow(f"{key} begins with messages that prompt lacks", "remove them or add them to prompt")
    return answer


def _differ(one: str, first: str, other: str, second: str) -> None:
    if first.strip() == second.strip():
        raise BadRow(f"{one} and {other} are the same text, so the pair says nothing", "remove the row")


def _margin(row: Row) -> float:
    """The row's margin, or by how much the chosen answer's score is higher."""
    scores = [as_number(row[key], key) for key in ("score_chosen", "score_rejected") if given(row, key)]
    if len(scores) == 2 and scores[0] < scores[1]:
        raise BadRow(
            f"chosen is scored lower ({scores[0]:g}) than rejected ({scores[1]:g}), so they are swapped",
            "exchange them",
        )
    return scores[0] - scores[1] if len(scores) == 2 and not given(row, "margin") else margin_of(row)


def _shared_beginning(chosen: str, rejected: str) -> tuple[Messages, str, str]:
    """TRL's implicit preference in plain text: the prompt is what both texts begin with, in whole words."""
    as_text(chosen, "chosen")
    as_text(rejected, "rejected")
    pairs = enumerate(zip(chosen, rejected, strict=False))
    common = chosen[: next((i for i, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))]
    start = max((match.end() for match in re.finditer(r"\s+", common)), default=0)
    if not common[:start].strip():
        raise BadRow("chosen is a string without a prompt", "add the key prompt, or begin with '\\n\\nHuman:'")
    return as_prompt(common[:start].strip(), "prompt"), chosen[start:], rejected[start:]
