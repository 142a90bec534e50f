"""Rewards that a rule decides, for prompts with a `reference` (or `answer`): functions for `type: function` sources."""

from __future__ import annotations

import re
from decimal import Decimal

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
_WORD = re.compile(r"\w+")


def same_number(prompt: str, response: str, reference: str | None) -> float:
    """1 if the last number in the response is the last one in the reference (which may be a worked solution, as in
    GSM8K), else 0. `ValueError` if the reference has none."""
    wanted = _last_number(_given(reference))
    if wanted is None:
        raise ValueError(f"the reference {_given(reference)[:60]!r} has no number")
    return float(_last_number(response) == wanted)


def same_word(prompt: str, response: str, reference: str | None) -> float:
    """1 if the response begins with the reference's word, whatever its case, else 0. `ValueError` if the reference is
    not one word."""
    wanted = _given(reference).strip()
    if not _WORD.fullmatch(wanted):
        raise ValueError(f"the reference {wanted[:60]!r} is not one word")
    first = _WORD.search(response)
    return float(first is not None and first.group().casefold() == wanted.casefold())


def _given(reference: str | None) -> str:
    if reference is None:
        raise ValueError("the prompt has no reference to compare with: give its row a `reference` (or `answer`)")
    return reference


def _last_number(text: str) -> Decimal | None:
    found = _NUMBER.findall(text)
    return Decimal(found[-1].replace(",", "")) if found else None
