"""The figures of what people said, against counting by hand and the library krippendorff."""

from __future__ import annotations

import json

import krippendorff
import numpy as np
import pytest
from feedback_stores import DAY, NOON, Clock, choose, reply, thumb

from rlhf_ray.evaluation.intervals import wilson_interval
from rlhf_ray.serving.records import FeedbackItem, PreferenceItem
from rlhf_ray.serving.store import FeedbackStore


def test_an_empty_summary(store: FeedbackStore) -> None:
    store.keep_reply(reply("a"))
    assert store.summary(None) == {
        "counts": {
            "thumb": {"up": 0, "down": 0}, "rating": dict.fromkeys("12345", 0), "correction": 0, "flag": {},
            "preference": {"a": 0, "b": 0, "tie": 0, "both_bad": 0}, "ranking": 0,
        },
        "annotators": 0, "agreement": {"alpha": None, "items": 0}, "canary_vs_stable": None, "by_day": [],
        "policies": [],
    }  # fmt: skip


def test_summary_counts_everything_from_a_moment_on(store: FeedbackStore, clock: Clock) -> None:
    for name, version in (("a", "v1"), ("b", "v1"), ("c", "v2"), ("d", "v2")):
        store.keep_reply(reply(name, policy_version=version))
    clock.now = NOON - DAY
    store.add_feedback(thumb("a", "down", annotator="old"))
    clock.now = NOON
    for item in (thumb("a", annotator="x"), thumb("a", annotator="x"), thumb("c", "down", annotator="y"), thumb("c")):
        store.add_feedback(item)
    for name, kind, value in [
        ("a", "rating", 5),
        ("b", "rating", 2),
        ("d", "correction", "no"),
        ("d", "flag", "untrue"),
    ]:
        store.add_feedback(FeedbackItem(reply_id=name, kind=kind, value=value))  # type: ignore[arg-type]
    clock.now = NOON + DAY
    store.add_preference(choose("a", "b", "both_bad"))
    store.add_preference(PreferenceItem(reply_ids=("c", "b", "a"), ranks=(1, 2, 2)))

    everything, recent = store.summary(None), store.summary(NOON)
    assert recent["counts"] == {
        "thumb": {"up": 3, "down": 1}, "rating": {"1": 0, "2": 1, "3": 0, "4": 0, "5": 1}, "correction": 1,
        "flag": {"untrue": 1}, "preference": {"a": 0, "b": 0, "tie": 0, "both_bad": 1}, "ranking": 1,
    }  # fmt: skip
    assert everything["counts"]["thumb"] == {"up": 3, "down": 2}
    assert (everything["annotators"], recent["annotators"]) == (3, 2)
    assert everything["by_day"] == [
        {"day": "2026-11-25", "up": 0, "down": 1, "preferences": 0},
        {"day": "2026-11-26", "up": 3, "down": 1, "preferences": 0},
        {"day": "2026-11-27", "up": 0, "down": 0, "preferences": 2},
    ]
    assert recent["by_day"] == everything["by_day"][1:]
    assert everything["policies"] == [
        {"version": "v1", "thumbs_up": 2, "thumbs_down": 1, "mean_rating": 3.5, "replies_rated": 2},
        {"version": "v2", "thumbs_up": 1, "thumbs_down": 1, "mean_rating": None, "replies_rated": 2},
    ]
    assert json.loads(json.dumps(everything)) == everything


def test_agreement_is_krippendorffs_alpha_of_each_kind(store: FeedbackStore) -> None:
    """Three people; thumbs on six replies and ratings on four, each with gaps; the expected figures are a library's."""
    thumbs = [[1, 0, 1, 1, 0, None], [1, 0, 0, 1, 0, 1], [None, 0, 1, 1, 1, None]]  # the last reply has one judge
    ratings = [[5, 1, 3, None], [4, 2, 3, 1], [5, None, 2, 1]]
    for name in "abcdef":
        store.keep_reply(reply(name))
    for person, values in enumerate(thumbs):
        store.add_feedback(thumb("b", "up", annotator=f"p{person}"))  # taken back by what follows
        for name, good in zip("abcdef", values, strict=True):
            if good is not None:
                store.add_feedback(thumb(name, "up" if good else "down", annotator=f"p{person}"))
    for _ in range(2):
        store.add_feedback(thumb("f", "down"))  # nobody knows whose
    for person, values in enumerate(ratings):
        for name, rating in zip("abcd", values, strict=True):
            if rating is not None:
                item = FeedbackItem(reply_id=name, kind="rating", value=rating, annotator=f"p{person}")
                store.add_feedback(item)
    table = {"nominal": thumbs, "ordinal": ratings}
    alphas = {
        level: krippendorff.alpha(np.array(values, dtype=float), level_of_measurement=level)  # type: ignore[arg-type]
        for level, values in table.items()
    }
    found = store.summary(None)["agreement"]
    assert found["items"] == 5 + 4
    assert found["alpha"] == pytest.approx((14 * alphas["nominal"] + 10 * alphas["ordinal"]) / 24)


def test_a_pair_is_the_same_pair_in_the_other_order(store: FeedbackStore) -> None:
    for name in "abcd":
        store.keep_reply(reply(name))
    for first, second, choices in (("a", "b", "ab"), ("c", "d", "ba")):
        store.add_preference(choose(first, second, choices[0], annotator="x"))
        store.add_preference(choose(second, first, choices[1], annotator="y"))
    store.add_preference(choose("a", "c", "a", annotator="x"))  # another pair, which one person judged
    assert store.summary(None)["agreement"] == {"alpha": 1.0, "items": 2}


def test_the_newest_canary_against_stable(store: FeedbackStore) -> None:
    def keep(*names: str, version: str, role: str) -> None:
        for name in names:
            store.keep_reply(reply(name, policy_version=version, role=role))

    keep("s", "t", version="v1", role="stable")
    keep("old", version="v2", role="canary")
    keep("c", "d", version="v3", role="canary")
    store.add_preference(choose("old", "s", "a"))
    assert store.summary(None)["canary_vs_stable"]["comparisons"] == 1
    for item in (
        choose("s", "c", "b"),  # a win
        choose("c", "s", "a"),  # a win, shown first
        choose("s", "c", "a"),
        choose("c", "t", "tie"),
        choose("c", "t", "both_bad"),
        choose("s", "t", "a"),  # says nothing of the canary
        choose("c", "d", "a"),
        PreferenceItem(reply_ids=("s", "c", "t", "d"), ranks=(2, 1, 3, 3)),  # of 4 pairs 2 won, 1 lost, 1 tied
    ):
        store.add_preference(item)
    found = store.summary(None)["canary_vs_stable"]
    assert (found["wins"], found["comparisons"]) == (2 + 2 * 0.5 + 2.5 / 4, 6)
    assert found["rate"] == found["wins"] / 6
    assert found["ci95"] == list(wilson_interval(found["wins"], 6))
