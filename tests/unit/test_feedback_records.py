"""What may be said about replies, and what is wrong with the rest."""

from __future__ import annotations

from typing import Any

import pytest
from feedback_stores import DAY
from pydantic import ValidationError

from rlhf_ray.serving.records import FeedbackItem, PreferenceItem, utc_seconds


@pytest.mark.parametrize(
    ("fields", "where", "words"),
    [
        ({"kind": "thumb", "value": "UP"}, "value", "one of up, down"),
        ({"kind": "thumb", "value": True}, "value", "one of up, down"),
        ({"kind": "rating", "value": 0}, "value", "whole number from 1 to 5"),
        ({"kind": "rating", "value": 4.0}, "value", "whole number from 1 to 5"),
        ({"kind": "rating", "value": "4"}, "value", "whole number from 1 to 5"),
        ({"kind": "rating", "value": True}, "value", "whole number from 1 to 5"),
        ({"kind": "correction", "value": " \n"}, "value", "what the reply should have been"),
        ({"kind": "correction", "value": 5}, "value", "what the reply should have been"),
        ({"kind": "correction", "value": "x" * 32_001}, "value", "shorten it to 32000"),
        ({"kind": "correction", "value": "a\0"}, "value", "NUL"),
        ({"kind": "correction", "value": "\ud800"}, "value", "surrogate"),
        ({"kind": "flag", "value": "boring"}, "value", "harmful, untrue, off_topic, other"),
        ({"kind": "flag", "value": ["harmful"]}, "value", "harmful, untrue, off_topic, other"),
        ({"kind": "love", "value": "up"}, "kind", "'thumb', 'rating', 'correction' or 'flag'"),
        ({"kind": "thumb"}, "value", "required"),
        ({"reply_id": ""}, "reply_id", "at least 1"),
        ({"reply_id": "\0"}, "reply_id", "NUL"),
        ({"annotator": "x" * 129}, "annotator", "at most 128"),
        ({"annotator": "é\udfff"}, "annotator", "surrogate"),
        ({"comment": "x" * 4001}, "comment", "at most 4000"),
        ({"idempotency_key": ""}, "idempotency_key", "at least 1"),
        ({"id": "0" * 32}, "id", "not permitted"),
        ({"reply_ids": ["a"], "choice": "a"}, "reply_ids", "at least 2"),
        ({"reply_ids": [str(i) for i in range(17)], "ranks": [1] * 17}, "reply_ids", "at most 16"),
        ({"reply_ids": ["a", "a"], "choice": "a"}, "reply_ids", "name each once"),
        ({"reply_ids": ["a", "b"]}, "", "give choice"),
        ({"reply_ids": ["a", "b"], "choice": "a", "ranks": [1, 2]}, "", "one of them"),
        ({"reply_ids": ["a", "b"], "choice": "c"}, "choice", "'both_bad'"),
        ({"reply_ids": ["a", "b", "c"], "choice": "a"}, "", "give ranks instead"),
        ({"reply_ids": ["a", "b"], "ranks": [1]}, "", "1 numbers for 2 replies"),
        ({"reply_ids": ["a", "b"], "ranks": [0, 1]}, "ranks", "count from 1"),
        ({"reply_ids": ["a", "b"], "ranks": [1, 3]}, "ranks", "count from 1"),
        ({"reply_ids": ["a", "b"], "ranks": [1, True]}, "ranks", "valid integer"),
    ],
)  # fmt: skip
def test_a_wrong_statement_is_told_what_is_wrong(fields: dict[str, Any], where: str, words: str) -> None:
    model: Any = PreferenceItem if "reply_ids" in fields else FeedbackItem
    base = {} if "reply_ids" in fields else {"reply_id": "r", "kind": "thumb", "value": "up"}
    given = base | fields
    if fields == {"kind": "thumb"}:
        del given["value"]
    with pytest.raises(ValidationError) as refused:
        model.model_validate(given)
    first = refused.value.errors()[0]
    assert ".".join(str(part) for part in first["loc"]).startswith(where) and words in first["msg"], first


@pytest.mark.parametrize(
    ("ranks", "kept"), [((1, 1, 3), (1, 1, 2)), ((2, 1, 2), (2, 1, 2)), ((1, 1, 1), (1, 1, 1)), ((3, 1, 1), (2, 1, 1))]
)
def test_ranks_may_have_the_gaps_of_ties(ranks: tuple[int, ...], kept: tuple[int, ...]) -> None:
    assert PreferenceItem(reply_ids=("a", "b", "c"), ranks=ranks).ranks == kept


def test_dates_are_utc() -> None:
    assert utc_seconds("1970-01-02") == utc_seconds("1970-01-02T00:00:00Z") == DAY
    assert utc_seconds("1970-01-02T02:00:00+02:00") == DAY
    with pytest.raises(ValueError, match="'soon' is no date; write 2026-11-01"):
        utc_seconds("soon")
