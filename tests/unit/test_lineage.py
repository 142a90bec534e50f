"""Which feedback is behind a data file."""

from __future__ import annotations

from rlhf_ray.data.lineage import feedback_lineage, lineage_words

ROWS: list[object] = [
    {
        "reply_ids": ["a", "b"],
        "policy_versions": ["v1", "v2"],
        "annotator": "x",
        "feedback_id": "1",
        "given_at": 86400.5,
    },
    {"reply_ids": ["a"], "policy_versions": ["v1"], "annotator": "y", "feedback_id": "2", "given_at": 0.0},
    {"reply_ids": ["c"], "policy_versions": ["v1"], "feedback_id": "2", "given_at": 200.0},
    {"prompt": "of another source", "chosen": "a", "rejected": "b"},
    "not a row",
]


def test_numbers_are_of_what_differs() -> None:
    """By hand: three rows of two statements by two people about three replies."""
    assert feedback_lineage(iter(ROWS)) == {
        "rows": 3, "statements": 2, "replies": 3, "annotators": 2, "policy_versions": {"v1": 2, "v2": 1},
        "given": ["1970-01-01T00:00:00+00:00", "1970-01-02T00:00:00+00:00"],
    }  # fmt: skip
    assert feedback_lineage(ROWS[3:]) is None and feedback_lineage([]) is None


def test_the_card_names_files_versions_and_times() -> None:
    lineage = feedback_lineage(ROWS)
    assert lineage is not None
    words = lineage_words(lineage | {"files": {"said.jsonl": "0f"}})
    for part in ("`v1` (2), `v2` (1)", "- `said.jsonl`, SHA-256 `0f`", "2 statements by 2 annotators about 3 replies",
                 "given from 1970-01-01T00:00:00+00:00 to 1970-01-02T00:00:00+00:00"):  # fmt: skip
        assert part in words
