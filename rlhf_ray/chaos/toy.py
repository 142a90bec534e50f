"""A reward that a tiny model can learn, and that takes long enough to be killed in."""

from __future__ import annotations

import time

_A_LITTLE_S = 0.02


def vowels(prompt: str, response: str, reference: str | None) -> float:
    """The share of vowels among the characters of a response."""
    time.sleep(_A_LITTLE_S)
    return sum(character in "aeiou" for character in response) / max(1, len(response))
