"""Krippendorff's alpha against the paper's numbers and the library, and what counts as one judgement."""

from __future__ import annotations

import math

import krippendorff
import numpy as np
import pytest

from rlhf_ray.data.agreement import Agreement, AgreementCounter, krippendorff_alpha
from rlhf_ray.evidence import Label, Pair, Ranking, Rating, Thumb
from rlhf_ray.types import Message

PROMPT = (Message("user", "Why?"),)
NAN = math.nan
# Krippendorff 2011, section C: four observers, twelve units, some not judged
PAPER = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
    [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
]


def columns(table: list[list[float]]) -> tuple[np.ndarray, np.ndarray]:
    cells = [(unit, value) for row in table for unit, value in enumerate(row) if not math.isnan(value)]
    return np.array([unit for unit, _ in cells]), np.array([value for _, value in cells])


def by(annotator: str | None, objective: str = "overall") -> Label:
    return Label("file row 1", objective, annotator)


def result(*items: Pair | Ranking | Rating | Thumb) -> tuple[Agreement, ...]:
    counter = AgreementCounter()
    for item in items:
        counter.add(item)
    return counter.result()


@pytest.mark.parametrize(("level", "expected"), [("nominal", 0.743), ("ordinal", 0.815)])
def test_the_papers_example(level: str, expected: float) -> None:
    assert krippendorff_alpha(*columns(PAPER), level) == pytest.approx(expected, abs=5e-4)  # type: ignore[arg-type]  # a literal from the table above


def test_two_observers_by_hand() -> None:
    """Section A of the paper: ten units, values 0 and 1. 4 of 10 pairs differ, 14 zeros and 6 ones of 20:
    alpha = 1 - 19 * 4 / (14 * 6)."""
    table = [[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]]
    assert krippendorff_alpha(*columns(table), "nominal") == pytest.approx(1 - 19 * 4 / (14 * 6))


@pytest.mark.parametrize("level", ["nominal", "ordinal"])
def test_as_the_library_on_random_tables(level: str) -> None:
    draw = np.random.default_rng(0)
    for _ in range(5):
        table = draw.integers(1, 6, (4, 9000)).astype(float)  # more units than one chunk
        table[1] = np.where(draw.random(9000) < 0.6, table[0], table[1])
        table[draw.random(table.shape) < 0.4] = NAN
        expected = krippendorff.alpha(table, level_of_measurement=level)
        units, values = columns(table.tolist())
        assert krippendorff_alpha(units * 7919, values, level) == pytest.approx(float(expected))  # type: ignore[arg-type]  # as above


def test_the_order_of_a_pairs_answers_does_not_matter() -> None:
    (same,) = result(
        Pair(PROMPT, "a", "b", by("x")), Pair(PROMPT, "a", "b", by("y")),
        Pair(PROMPT, "d", "c", by("x")), Pair(PROMPT, "d", "c", by("y")),
    )  # fmt: skip
    assert same == Agreement("pair", "overall", 1.0, units=2, judgements=4)
    (opposite,) = result(
        Pair(PROMPT, "a", "b", by("x")), Pair(PROMPT, "b", "a", by("y")),
        Pair(PROMPT, "d", "c", by("x")), Pair(PROMPT, "c", "d", by("y")),
    )  # fmt: skip
    assert opposite.alpha == pytest.approx(1 - 3 * 4 / 8)  # o = 4 of 4 differ; e = 2 * 2 * 2 / 3


def test_a_tie_is_a_verdict_of_its_own() -> None:
    (found,) = result(
        Pair(PROMPT, "a", "b", by("x"), tie=True), Pair(PROMPT, "b", "a", by("y"), tie=True),
        Pair(PROMPT, "c", "d", by("x")), Pair(PROMPT, "c", "d", by("y")),
    )  # fmt: skip
    assert found.alpha == 1.0


def test_ratings_and_rankings_are_ordinal_and_objectives_apart() -> None:
    found = result(
        *(Rating(PROMPT, f"answer {u}", v, by(str(who), "honesty"))
          for who, row in enumerate(PAPER) for u, v in enumerate(row) if not math.isnan(v)),
        Ranking(PROMPT, ("a", "b", "c"), (1, 2, 3), by("x")),
        Ranking(PROMPT, ("b", "a", "c"), (1, 2, 3), by("y")),
    )  # fmt: skip
    ratings, rankings = found
    assert (ratings.kind, ratings.objective, ratings.units, ratings.judgements) == ("rating", "honesty", 11, 40)
    assert ratings.alpha == pytest.approx(0.815, abs=5e-4)
    expected = krippendorff.alpha([[1, 2, 3], [2, 1, 3]], level_of_measurement="ordinal")
    assert (rankings.kind, rankings.units, rankings.alpha) == ("ranking", 3, pytest.approx(float(expected)))


def test_what_one_person_or_nobody_known_says_twice_is_no_agreement() -> None:
    assert result(Thumb(PROMPT, "a", True, by("x")), Thumb(PROMPT, "a", True, by("x"))) == ()
    assert result(Thumb(PROMPT, "a", True, by(None)), Thumb(PROMPT, "a", True, by(None))) == ()
    (found,) = result(*(Thumb(PROMPT, "a", True, by(who)) for who in ("x", "y", "x")))
    assert found == Agreement("thumb", "overall", None, units=1, judgements=2)  # nothing differs: alpha is undefined


def test_annotators_are_counted() -> None:
    counter = AgreementCounter()
    for who in ("x", "y", "x", None):
        counter.add(Thumb(PROMPT, "a", True, by(who)))
    assert counter.annotators == 2
