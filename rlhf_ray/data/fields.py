"""The fields of a row: text, numbers, flags, lists, and the label that all shapes may carry."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

from rlhf_ray.data.text_rows import Broken
from rlhf_ray.evidence import OVERALL, Label

Row = Mapping[str, object]
"""A row without the keys whose value is null."""

_CATEGORIES = ("category", "section", "subset", "scenario")
_FLAGS = {"true": True, "false": False, "1": True, "0": False}
_NAMES = {type(None): "null", bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list"}


class BadRow(ValueError):
    """What is wrong with a row and how to mend it. Whoever knows the row's place puts it in front of the message."""

    def __init__(self, cause: str, fix: str) -> None:
        super().__init__(f"{cause}; {fix}")
        self.cause = cause
        self.fix = fix


def as_row(row: object) -> Row:
    """`row` as a mapping; a null is the same as a missing key."""
    if isinstance(row, Broken):
        raise BadRow(row.cause, row.fix)
    if not isinstance(row, Mapping):
        raise BadRow(f"not a JSON object but {kind_of(row)}", "write one object a row")
    return {str(key): value for key, value in row.items() if value is not None}


def kind_of(value: object) -> str:
    """What `value` is, in a person's words."""
    return _NAMES.get(type(value), "an object" if isinstance(value, Mapping) else f"a {type(value).__name__}")


def given(row: Row, key: str) -> bool:
    """True if the row says something under `key`; an empty cell of a CSV file does not."""
    return key in row and row[key] != ""


def as_text(value: object, key: str) -> str:
    """`value` if it is text that is neither blank nor damaged."""
    if not isinstance(value, str):
        raise BadRow(f"{key} is {kind_of(value)}", "it must be text")
    if not value.strip():
        raise BadRow(f"{key} is empty", "write it or remove the row")
    if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
        raise BadRow(f"{key} is not valid UTF-8", "save the file in this encoding")
    return value


def as_number(value: object, key: str) -> float:
    """`value`, or the number that a CSV cell spells; neither NaN nor infinite nor a boolean."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise BadRow(f"{key} is {kind_of(value)}", "it must be a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise BadRow(f"{key} is {value!r:.40}", "it must be a number") from None
    if not math.isfinite(number):
        raise BadRow(f"{key} is {number}", "give a finite number or remove the row")
    return number


def as_whole(value: object, key: str) -> int:
    """`value` as an integer; 2.0 is one."""
    number = as_number(value, key)
    if not number.is_integer():
        raise BadRow(f"{key} is {number:g}", "it must be a whole number")
    return int(number)


def as_flag(value: object, key: str) -> bool:
    """True or false, also spelled as 1 or 0 or as a CSV cell spells them."""
    flag = _FLAGS.get(str(value).strip().lower()) if isinstance(value, bool | int | str) else None
    if flag is None:
        raise BadRow(f"{key} is {value!r:.40}", "it must be true or false")
    return flag


def as_json(value: object, key: str) -> object:
    """`value`; if it is text, as in a CSV cell, the list or object that it spells in JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise BadRow(f"{key} is text", "it must be a list (in CSV: written as JSON)") from None


def as_list(value: object, key: str) -> list[object]:
    """`value` as a list that is not empty, also one spelled in JSON."""
    found = as_json(value, key)
    if not isinstance(found, list):
        raise BadRow(f"{key} is {kind_of(found)}", "it must be a list")
    if not found:
        raise BadRow(f"{key} is an empty list", "fill it or remove the row")
    return found


def label_of(row: Row, where: str, objective: str | None = None, annotator: str | None = None) -> Label:
    """The label of a row's judgement; `objective` and `annotator` are those that its shape names."""
    for key, named in (("objective", objective), ("annotator", annotator)):
        if named is not None and given(row, key):
            raise BadRow(f"{key} is given for the row and also with each judgement ({named})", "keep one of them")
    if objective is None:
        objective = as_text(row["objective"], "objective") if given(row, "objective") else OVERALL
    if annotator is None and given(row, "annotator"):
        annotator = name_of(row["annotator"], "annotator")
    category = next((name_of(row[key], key) for key in _CATEGORIES if given(row, key)), None)
    return Label(where, objective, annotator, weight_of(row), category)


def name_of(value: object, key: str) -> str:
    """A name or the number of a person as text."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else as_text(value, key)


def weight_of(row: Row) -> float:
    """How much the row counts, 1 unless it says more."""
    weight = as_number(row["weight"], "weight") if given(row, "weight") else 1.0
    if weight <= 0:
        raise BadRow(f"weight is {weight:g}", "it must be above 0 (remove a row that shall not count)")
    return weight


def margin_of(row: Row) -> float:
    """By how much the better answer is better, 0 if the row does not say."""
    margin = as_number(row["margin"], "margin") if given(row, "margin") else 0.0
    if margin < 0:
        raise BadRow(f"margin is {margin:g}", "it must be 0 or more, so chosen and rejected may be swapped")
    return margin


def refuse(row: Row, keys: tuple[str, ...], why: str) -> None:
    """`BadRow` if the row has one of `keys`: better than not reading what someone wrote down."""
    found = next((key for key in keys if given(row, key)), None)
    if found:
        raise BadRow(f"{found} {why}", "remove this key")
