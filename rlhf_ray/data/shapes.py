"""The shape of a row of feedback, known by its keys, and the evidence in it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from rlhf_ray.data.fields import BadRow, Row, as_flag, as_json, as_row, given, label_of, refuse, weight_of
from rlhf_ray.data.messages import Messages, as_messages, as_prompt, conversation, is_hh, prompt_of
from rlhf_ray.data.pairs import TWO_ANSWERS, chosen_and_rejected, compared
from rlhf_ray.data.scores import OBJECTIVES, ranking, rating, ratings_of_responses
from rlhf_ray.evidence import Demonstration, Item, PromptOnly, Thumb

if TYPE_CHECKING:
    from rlhf_ray.data.feedback import FeedbackConfig

__all__ = ["BadRow", "parse", "shape_of"]

ANSWERS = ("completion", "response", "answer")
_RATINGS = ("rating", "ratings")
_RANKINGS = ("ranking", "ranks", "rankings")
_THUMBS = ("thumb", "thumbs_up")
_THUMB_WORDS = {"up": True, "down": False}
_Parser = Callable[[Row, str, "FeedbackConfig"], list[Item]]


def parse(row: object, where: str, config: FeedbackConfig) -> list[Item]:
    """What a row says: one item or more, each of them named after `where`.

    `row` is what `files.raw_rows` gives. Raises `BadRow`, without `where`, saying what is wrong and how to mend it.
    """
    fields = as_row(row)
    _, parser = _recognise(fields)
    return parser(fields, where, config)


def shape_of(row: object) -> str:
    """The name of a row's shape, e.g. "explicit preference"; `BadRow` if it has none that is known.

    The shape is told from the keys alone: `parse` may still refuse what is under them.
    """
    return _recognise(as_row(row))[0]


def _recognise(row: Row) -> tuple[str, _Parser]:
    if "chosen" in row or "rejected" in row:
        return _shape_of_pair(row), chosen_and_rejected
    if any(first in row or second in row for first, second in TWO_ANSWERS):
        return "compared pair", compared
    if "responses" in row:
        judged = _only(row, {"ranking": _RANKINGS, "rating": ("ratings",)})
        if judged is None:
            raise BadRow("responses need ranking, ranks, rankings or ratings", "add one of them")
        return judged, ranking if judged == "ranking" else ratings_of_responses
    if any(key in row for key in ANSWERS) or _answered(row):
        return _shape_of_answer(row)
    if "prompt" in row or "instruction" in row or "messages" in row:
        return "prompt only", _prompt_only
    has = ", ".join(row) or "nothing"
    raise BadRow(
        f"of an unknown shape: it has neither prompt nor messages nor chosen and rejected (it has: {has})",
        "rename its keys; docs/preferences.md shows all shapes",
    )


def _shape_of_pair(row: Row) -> str:
    if "score_chosen" in row and "score_rejected" in row:
        return "UltraFeedback binarized"
    if "prompt" in row or "instruction" in row:
        return "explicit preference"
    chosen = row.get("chosen", row.get("rejected"))
    if isinstance(chosen, str):
        return "Anthropic HH" if is_hh(chosen) else "implicit preference (text)"
    return "implicit preference"


def _shape_of_answer(row: Row) -> tuple[str, _Parser]:
    rated = (*_RATINGS, *(key for key in row if key in OBJECTIVES))
    judged = _only(row, {"unpaired (label)": ("label",), "thumb": _THUMBS, "rating": rated})
    if judged is None:
        return "prompt and completion", _demonstration
    return judged, _rating if judged == "rating" else _thumb


def _only(row: Row, judgements: Mapping[str, tuple[str, ...]]) -> str | None:
    """The name of the one judgement that the row has."""
    found = {name: key for name, keys in judgements.items() for key in keys if given(row, key)}
    if len(found) > 1:
        raise BadRow(f"has {' and '.join(found.values())}, which are judgements of different kinds", "keep one of them")
    return next(iter(found), None)


def _answered(row: Row) -> bool:
    """True if `messages` hold a conversation that the assistant ends."""
    return "messages" in row and as_messages(row["messages"], "messages")[-1].role == "assistant"


def _prompt_and_answer(row: Row) -> tuple[Messages, str]:
    keys = [key for key in ANSWERS if key in row]
    if len(keys) > 1:
        raise BadRow(f"has both {keys[0]} and {keys[1]}", "keep the one that is judged")
    if not keys:
        return conversation(as_json(row["messages"], "messages"), "messages", None)
    return conversation(row[keys[0]], keys[0], prompt_of(row))


def _prompt_only(row: Row, where: str, _: FeedbackConfig) -> list[Item]:
    keys = (*_RATINGS, *_RANKINGS, *_THUMBS, "annotations")
    refuse(row, keys, f"judges an answer, but the row has none (under {', '.join(ANSWERS)} or responses)")
    prompt = as_prompt(row["messages"], "messages") if "messages" in row else prompt_of(row)
    return [PromptOnly(prompt, where)]


def _demonstration(row: Row, where: str, _: FeedbackConfig) -> list[Item]:
    if weight_of(row) != 1:
        raise BadRow("weight belongs to a judgement, and this row has none", "remove it")
    prompt, answer = _prompt_and_answer(row)
    return [Demonstration(prompt, answer, where)]


def _thumb(row: Row, where: str, _: FeedbackConfig) -> list[Item]:
    refuse(row, ("margin",), "belongs to pairs")
    keys = [key for key in ("label", *_THUMBS) if given(row, key)]
    if len(keys) > 1:
        raise BadRow(f"has both {keys[0]} and {keys[1]}", "keep one of them")
    value = row[keys[0]]
    word = value.strip().lower() if isinstance(value, str) and keys[0] == "thumb" else None
    good = _THUMB_WORDS[word] if word in _THUMB_WORDS else as_flag(value, keys[0])
    prompt, answer = _prompt_and_answer(row)
    return [Thumb(prompt, answer, good, label_of(row, where))]


def _rating(row: Row, where: str, config: FeedbackConfig) -> list[Item]:
    prompt, answer = _prompt_and_answer(row)
    return rating(row, where, config, prompt, answer)
