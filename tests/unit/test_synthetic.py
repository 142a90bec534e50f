"""Synthetic feedback: rows that the reader accepts, a quality that the text shows, noise of the promised size."""

from __future__ import annotations

import statistics
from itertools import combinations
from typing import Any

import pytest

from rlhf_ray.data.feedback import FeedbackConfig
from rlhf_ray.data.shapes import parse
from rlhf_ray.data.synthetic import KINDS, TYPICAL_GAP, ScoredAnswers, create_preference_data, heldout_answers
from rlhf_ray.data.synthetic_text import CLOSINGS, FILLER, LINKS, OPENINGS, TOPICS
from rlhf_ray.errors import UserError
from rlhf_ray.evidence import Item, Pair, Ranking, Rating, Thumb

Row = dict[str, Any]
CONFIG = FeedbackConfig(path="synthetic.jsonl")
RIGHT = {right: topic.name for topic in TOPICS for right, _ in topic.steps}
WRONG = {wrong: topic.name for topic in TOPICS for _, wrong in topic.steps}


def made(*args: Any, **kwargs: Any) -> list[Row]:
    return create_preference_data(*args, **kwargs)


def items(rows: list[Row]) -> list[Item]:
    return [item for row in rows for item in parse(row, "row", CONFIG)]


def quality_of(prompt: str, text: str) -> float:
    """An independent reading of an answer: finds the known sentences in it and counts."""
    (topic,) = [topic.name for topic in TOPICS if topic.name in prompt]

    def has(sentence: str) -> bool:
        tail = sentence[1:]
        return any(f"{link}{first}{tail}" in text for link in LINKS for first in (sentence[0], sentence[0].lower()))

    right = [name for sentence, name in RIGHT.items() if has(sentence)]
    wrong = [name for sentence, name in WRONG.items() if has(sentence)]
    on, astray = (right + wrong).count(topic), len(right + wrong) - (right + wrong).count(topic)
    (opening,) = [tone for tone, texts in enumerate(OPENINGS) if any(text.startswith(each) for each in texts)]
    (closing,) = [tone for tone, texts in enumerate(CLOSINGS) if any(text.endswith(each) for each in texts)]
    filler = sum(sentence in text for sentence in FILLER)
    relevance, accuracy = on / max(on + astray, 1), right.count(topic) / max(on, 1)
    return 0.3 * relevance + 0.2 * on / 5 + 0.2 * accuracy + 0.2 * (opening + closing) / 8 + 0.1 * (1 - filler / 4)


def flips(rows: list[Row]) -> float:
    """The share of pairs whose chosen answer is the worse one."""
    return statistics.mean(row["quality"][0] < row["quality"][1] for row in rows)


def test_the_words_are_unambiguous() -> None:
    sentences = [*RIGHT, *WRONG, *FILLER, *(text for tones in (*OPENINGS, *CLOSINGS) for text in tones)]
    assert len(sentences) == len(set(sentences))
    assert not [(a, b) for a, b in combinations(sentences, 2) if a in b or b in a]
    assert all(len(topic.steps) == 5 for topic in TOPICS)
    assert not [(a.name, b.name) for a, b in combinations(TOPICS, 2) if a.name in b.name or b.name in a.name]


def test_the_quality_can_be_read_in_the_text() -> None:
    rows = made(100, seed=3)
    for row in rows:
        found = [quality_of(str(row["prompt"]), str(row[key])) for key in ("chosen", "rejected")]
        assert row["quality"] == pytest.approx(found, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_reader_accepts_every_kind(kind: str) -> None:
    rows = made(60, kind=kind, label_noise=0.2, annotators=2, objectives=("overall", "courtesy"))
    assert len(rows) == 60 * 2 * 2
    found = items(rows)
    assert len(found) == len(rows)
    assert {(item.label.annotator, item.label.objective) for item in found} == {
        (f"annotator-{who}", about) for who in (1, 2) for about in ("overall", "courtesy")
    }
    wanted = {"pairs": {Pair}, "rankings": {Ranking}, "ratings": {Rating}, "thumbs": {Thumb}}
    assert {type(item) for item in found} == wanted.get(kind, {Pair, Ranking, Rating})


def test_without_noise_judgements_are_the_truth() -> None:
    assert flips(made(200)) == 0
    assert all(item.label.annotator is None for item in items(made(3)))
    for row in made(50, kind="rankings"):
        by_rank = sorted(zip(row["ranks"], row["quality"], strict=True))
        assert all(a >= b for (_, a), (_, b) in combinations(by_rank, 2))
    for row in made(50, kind="ratings"):
        assert row["rating"] == round(1 + 4 * row["quality"][0])
    for row in made(50, kind="thumbs"):
        assert row["label"] == (row["quality"][0] >= 0.5)


def test_qualities_are_gradual_and_their_gap_is_the_typical_one() -> None:
    rows = made(1500, seed=1)
    qualities = [quality for row in rows for quality in row["quality"]]
    assert min(qualities) < 0.05 and max(qualities) > 0.95 and len(set(qualities)) > 200
    assert statistics.mean(abs(row["quality"][0] - row["quality"][1]) for row in rows) == pytest.approx(
        TYPICAL_GAP, abs=0.03
    )
    assert len({row["prompt"] for row in rows}) > 500
    longer = statistics.mean(len(str(row["chosen"])) > len(str(row["rejected"])) for row in rows)
    assert 0.45 < longer < 0.55  # length tells nothing


def test_noise_has_the_promised_size() -> None:
    """Each band is three standard errors wide; of rankings, answers at about the typical gap count."""
    assert flips(made(1000, label_noise=0.2, seed=2)) == pytest.approx(0.2, abs=0.038)
    wrong, total = 0, 0
    for row in made(700, kind="rankings", label_noise=0.2, seed=2):
        for (rank, quality), (other_rank, other) in combinations(zip(row["ranks"], row["quality"], strict=True), 2):
            if 0.28 < abs(quality - other) < 0.38:
                wrong += (rank < other_rank) != (quality > other)
                total += 1
    assert total > 500 and wrong / total == pytest.approx(0.2, abs=3 * (0.16 / total) ** 0.5 + 0.01)


def test_ratings_have_the_promised_deviation() -> None:
    rows = made(1500, kind="ratings", label_noise=0.1, seed=4)
    middle = [row for row in rows if 0.4 < row["quality"][0] < 0.6]  # away from the ends of the scale
    errors = [(row["rating"] - 1) / 4 - row["quality"][0] for row in middle]
    sigma = TYPICAL_GAP / (2**0.5 * 1.2816)  # of the normal distribution, a tenth lies above 1.2816
    assert statistics.stdev(errors) == pytest.approx((sigma**2 + 0.25**2 / 12) ** 0.5, rel=0.13)  # and the rounding


def test_annotators_have_biases_of_their_own() -> None:
    rows = made(400, kind="ratings", label_noise=0.3, annotators=6, seed=5)
    means = [
        statistics.mean(row["rating"] for row in rows if row["annotator"] == f"annotator-{who}") for who in range(1, 7)
    ]
    assert max(means) - min(means) > 0.3  # without a bias, three standard errors are 0.2


def test_levels_and_templates_are_kept_to() -> None:
    levels = (0.2, 0.5, 0.9)
    rows = made(80, ["Say how to {topic}!"], levels, kind="rankings")
    assert {str(row["prompt"])[:11] for row in rows} == {"Say how to "}
    for row in rows:
        nearest = [min(levels, key=lambda level: abs(level - quality)) for quality in row["quality"]]
        assert set(nearest) == set(levels)


def test_held_out_prompts_are_never_trained_on() -> None:
    trained = {row["prompt"] for seed in range(3) for row in made(1500, kind="thumbs", seed=seed)}
    heldout = heldout_answers(200, 5, seed=9)
    assert len({each.prompt for each in heldout}) == 200
    assert not trained & {each.prompt for each in heldout}
    assert all(len(each.answers) == len(each.qualities) == 5 for each in heldout)
    first: ScoredAnswers = heldout[0]
    assert first.qualities == pytest.approx([quality_of(first.prompt, answer) for answer in first.answers])


def test_the_seed_decides() -> None:
    assert made(5, kind="mixed", seed=1) == made(5, kind="mixed", seed=1)
    assert made(5, seed=1) != made(5, seed=2)


def test_equal_values_are_a_tie() -> None:
    rows = made(60, objectives=("honesty",), label_noise=0.4)
    ties = [item for item in items(rows) if isinstance(item, Pair) and item.tie]
    assert 0 < len(ties) < 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 0}, "num_samples = 0"),
        ({"annotators": 0}, "annotators = 0"),
        ({"label_noise": 0.5}, "below 0.5"),
        ({"label_noise": -0.1}, "label_noise = -0.1"),
        ({"label_noise": float("nan")}, "label_noise = nan"),
        ({"kind": "pair"}, "must be one of pairs, rankings"),
        ({"objectives": ("beauty",)}, "must be different ones of overall"),
        ({"objectives": ()}, "must be different ones of"),
        ({"prompt_templates": ["How?"]}, r"contain \{topic\}"),
        ({"prompt_templates": []}, r"contain \{topic\}"),
        ({"response_quality_levels": [0.5]}, "two or more numbers"),
        ({"response_quality_levels": [0.5, 0.5]}, "apart"),
        ({"response_quality_levels": [0.5, 1.5]}, "from 0 to 1"),
        ({"response_quality_levels": [0.5, float("nan")]}, "from 0 to 1"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(**{"num_samples": 3, **arguments})


def test_too_many_held_out_prompts_are_refused() -> None:
    with pytest.raises(UserError, match="there are 3 held-out prompts"):
        heldout_answers(4, prompt_templates=["How do I {topic}?"])
    with pytest.raises(UserError, match="num_prompts = 0"):
        heldout_answers(0)
