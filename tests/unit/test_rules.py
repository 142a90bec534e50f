"""Rewards that a rule decides."""

from __future__ import annotations

import pytest

from rlhf_ray.rewards.rules import same_number, same_word


@pytest.mark.parametrize(
    ("response", "reference", "reward"),
    [
        ("She has 3 + 4 = 7 apples.", "3 + 4 = <<3+4=7>>7\n#### 7", 1.0),
        ("7 apples, of 8", "#### 7", 0.0),
        ("It costs $1,234.50.", "1234.5", 1.0),
        ("#### 18.00", "18", 1.0),
        ("-5", "5", 0.0),
        ("from 10-5 it is -5", "-5", 1.0),
        ("72.", "72", 1.0),
        ("none", "72", 0.0),
        ("", "0", 0.0),
    ],
)
def test_the_last_number_decides(response: str, reference: str, reward: float) -> None:
    assert same_number("", response, reference) == reward


@pytest.mark.parametrize(
    ("response", "reward"),
    [("Positive.", 1.0), (" **positive** it is", 1.0), ("negative", 0.0), ("Not positive", 0.0), ("", 0.0)],
)
def test_the_first_word_decides(response: str, reward: float) -> None:
    assert same_word("", response, "positive") == reward


def test_nothing_to_compare_with_is_an_error_and_no_zero() -> None:
    with pytest.raises(ValueError, match=r"no reference.*give its row"):
        same_number("", "7", None)
    with pytest.raises(ValueError, match="no reference"):
        same_word("", "7", None)
    with pytest.raises(ValueError, match="'New York' is not one word"):
        same_word("", "New York", "New York")
    with pytest.raises(ValueError, match="'seven' has no number"):
        same_number("", "7", "seven")
