"""Conversions between kinds of evidence, against counts and weights worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rlhf_ray.data.convert import as_demonstrations, as_pairs, as_thumbs
from rlhf_ray.evidence import Demonstration, Item, Label, Pair, PromptOnly, Ranking, Rating, Thumb
from rlhf_ray.types import Message

P, Q = (Message("user", "p"),), (Message("user", "q"),)
L = Label("f row 1")
TIE = Pair(P, "a", "b", L, tie=True)
PAIR = Pair(P, "a", "b", L, margin=2)
DEMO, BARE = Demonstration(P, "d", "f row 9"), PromptOnly(P, "f row 8")


def rating(
    answer: str, value: float, objective: str = "overall", annotator: str | None = None, weight: float = 1
) -> Rating:
    return Rating(P, answer, value, Label("f row 2", objective, annotator, weight))


def test_pairs_of_pairs_and_of_what_has_none() -> None:
    found = as_pairs([PAIR, TIE, Thumb(P, "a", True, L), DEMO, BARE, TIE])
    assert list(found) == [PAIR]
    assert found.left_out == {"tied pairs": 2, "thumbs": 1, "demonstrations": 1, "prompts": 1}


def test_a_ranking_is_all_its_unequal_pairs_which_share_its_weight() -> None:
    label = Label("f row 3", "honesty", "Ann", 2.0)
    pairs = list(as_pairs([Ranking(P, ("a", "b", "c", "d"), (1, 2, 2, 3), label)]))
    assert [(p.chosen, p.rejected) for p in pairs] == [("a", "b"), ("a", "c"), ("a", "d"), ("b", "d"), ("c", "d")]
    assert {p.label for p in pairs} == {Label("f row 3", "honesty", "Ann", 0.4)}
    tied = as_pairs([Ranking(P, ("a", "b"), (1, 1), L)])
    assert list(tied) == [] and tied.left_out == {"rankings that are one tie": 1}


def test_ratings_that_follow_each_other_are_compared() -> None:
    pairs = list(as_pairs([rating("a", 1), rating("b", 4), rating("c", 3, weight=3)]))
    assert [(p.chosen, p.rejected, p.margin) for p in pairs] == [("b", "a", 3), ("c", "a", 2), ("b", "c", 1)]
    assert [p.label.weight for p in pairs] == pytest.approx([1 / 3, 2 / 3, 2 / 3])


def test_ratings_are_compared_within_prompt_objective_and_annotator() -> None:
    elsewhere = Rating(Q, "z", 1, L)
    ratings = [
        rating("a", 1, "honesty"), rating("a", 5, "style"), rating("b", 2, "honesty"), rating("b", 5, "style"),
        rating("b", 5, "honesty", "Ann"), elsewhere, rating("c", 5, "honesty"),
    ]  # fmt: skip
    found = as_pairs(ratings)
    assert [(p.chosen, p.rejected, p.label.objective) for p in found] == [("b", "a", "honesty")]
    # equal: two of style; alone: Ann's, the one of the other prompt, and c, which does not follow
    assert list(found.left_out.values()) == [5]
    same = as_pairs([rating("a", 1), rating("a", 2)])
    assert list(same) == [] and list(same.left_out.values()) == [2]


def test_thumbs() -> None:
    items: list[Item] = [
        Thumb(P, "t", False, L), PAIR, TIE, rating("x", 4), rating("y", 3), rating("z", 1),
        Ranking(P, ("a", "b"), (1, 2), L), DEMO, BARE,
    ]  # fmt: skip
    found = as_thumbs(items)
    assert [(t.answer, t.good) for t in found] == [("t", False), ("a", True), ("b", False), ("x", True), ("z", False)]
    assert found.left_out == {
        "tied pairs": 1, "ratings in the middle of the scale": 1, "rankings": 1, "demonstrations": 1, "prompts": 1
    }  # fmt: skip
    assert [t.good for t in as_thumbs([rating("x", 4), rating("x", 6)], (0, 10))] == [False, True]


def test_demonstrations() -> None:
    row5 = Label("f row 5")
    items: list[Item] = [
        DEMO, PAIR, TIE, Thumb(P, "g", True, L), Thumb(P, "bad", False, L), rating("x", 5), BARE,
        Ranking(P, ("r", "s", "u"), (1, 1, 2), row5), Ranking(P, ("r", "s"), (1, 1), row5),
        Pair(P, "r", "v", row5), Pair(P, "v", "r", row5), Pair(P, "r", "v", Label("f row 6")),
    ]  # fmt: skip
    found = as_demonstrations(items)
    assert [(d.answer, d.where) for d in found] == [
        ("d", "f row 9"), ("a", "f row 1"), ("g", "f row 1"), ("r", "f row 5"), ("s", "f row 5"), ("v", "f row 5"),
        ("r", "f row 6"),
    ]  # fmt: skip
    assert found.left_out == {
        "tied pairs": 1, "bad thumbs": 1, "ratings": 1, "prompts": 1, "rankings that are one tie": 1,
        "answers given before in the same row": 1,
    }  # fmt: skip


@pytest.mark.parametrize("convert", [as_pairs, as_thumbs, as_demonstrations])
def test_items_are_converted_when_they_are_asked_for(convert: type) -> None:
    taken: list[int] = []

    def items() -> Iterator[Item]:
        for i in range(100):
            taken.append(i)
            yield PAIR

    found = iter(convert(items()))
    assert not taken
    next(found)
    assert len(taken) == 1
