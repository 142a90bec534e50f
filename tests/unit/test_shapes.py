"""Every shape of feedback row, as text and as messages; every row that is refused; real files where there are some."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from rlhf_ray.data.feedback import FeedbackConfig
from rlhf_ray.data.files import raw_rows
from rlhf_ray.data.shapes import BadRow, parse, shape_of
from rlhf_ray.data.text_rows import Broken
from rlhf_ray.evidence import Demonstration, Item, Label, Pair, PromptOnly, Ranking, Rating, Thumb
from rlhf_ray.types import Message

CONFIG = FeedbackConfig(path="unused")
REAL = Path(os.environ.get("RLHF_RAY_DATA", Path(__file__).parents[3] / "shared" / "data")) / "preferences"

USER = {"role": "user", "content": "Name a colour."}
SYSTEM = {"role": "system", "content": "Be brief."}
RED, BLUE = {"role": "assistant", "content": "Red."}, {"role": "assistant", "content": "Blue."}
PROMPT = (Message("user", "Name a colour."),)
L = Label("r.jsonl row 1")
BETTER = Pair(PROMPT, "Red.", "Blue.", L)
TWO = {"prompt": "Name a colour.", "response_a": "Red.", "response_b": "Blue."}
THREE = {"prompt": "Name a colour.", "responses": ["Red.", "Blue.", "Green."]}
ONE = {"prompt": "Name a colour.", "response": "Red."}


def read(row: object, config: FeedbackConfig = CONFIG) -> list[Item]:
    return parse(row, "r.jsonl row 1", config)


def refusal(row: object) -> str:
    with pytest.raises(BadRow) as caught:
        read(row)
    assert caught.value.cause and caught.value.fix
    return str(caught.value)


@pytest.mark.parametrize(
    ("row", "shape", "item"),
    [
        ({"prompt": "Name a colour."}, "prompt only", PromptOnly(PROMPT, L.where)),
        ({"prompt": [USER]}, "prompt only", PromptOnly(PROMPT, L.where)),
        ({"messages": [USER]}, "prompt only", PromptOnly(PROMPT, L.where)),
        ({"prompt": "Name a colour.", "completion": "Red."}, "prompt and completion",
         Demonstration(PROMPT, "Red.", L.where)),
        ({"prompt": [USER], "completion": [RED]}, "prompt and completion", Demonstration(PROMPT, "Red.", L.where)),
        ({"messages": [USER, RED]}, "prompt and completion", Demonstration(PROMPT, "Red.", L.where)),
        ({"messages": json.dumps([USER, RED])}, "prompt and completion", Demonstration(PROMPT, "Red.", L.where)),
        ({"prompt": "Name a colour.", "messages": [USER, RED], "id": 3}, "prompt and completion",
         Demonstration(PROMPT, "Red.", L.where)),
        ({"prompt": "Name a colour.", "completion": "Red.", "label": True}, "unpaired (label)",
         Thumb(PROMPT, "Red.", True, L)),
        ({"prompt": [USER], "completion": [RED], "label": False}, "unpaired (label)", Thumb(PROMPT, "Red.", False, L)),
        ({"prompt": "Name a colour.", "completion": "Red.", "label": "False"}, "unpaired (label)",
         Thumb(PROMPT, "Red.", False, L)),
        ({"prompt": "Name a colour.", "chosen": "Red.", "rejected": "Blue."}, "explicit preference", BETTER),
        ({"prompt": [USER], "chosen": [RED], "rejected": [BLUE]}, "explicit preference", BETTER),
        ({"prompt": [USER], "chosen": "Red.", "rejected": [USER, BLUE]}, "explicit preference", BETTER),
        ({"chosen": [USER, RED], "rejected": [USER, BLUE]}, "implicit preference", BETTER),
        ({"chosen": "The sky is blue now.", "rejected": "The sky is black."}, "implicit preference (text)",
         Pair((Message("user", "The sky is"),), "blue now.", "black.", L)),
        ({"chosen": "\n\nHuman: Name a colour.\n\nAssistant: Red.",
          "rejected": "\n\nHuman: Name a colour.\n\nAssistant: Blue."}, "Anthropic HH", BETTER),
        ({"prompt": "\n\nHuman: Name a colour.\n\nAssistant:", "chosen": "Red.", "rejected": "Blue."},
         "explicit preference", BETTER),
        ({**ONE, "thumb": "up"}, "thumb", Thumb(PROMPT, "Red.", True, L)),
        ({**ONE, "thumb": "Down"}, "thumb", Thumb(PROMPT, "Red.", False, L)),
        ({**ONE, "thumb": False}, "thumb", Thumb(PROMPT, "Red.", False, L)),
        ({**ONE, "thumbs_up": True}, "thumb", Thumb(PROMPT, "Red.", True, L)),
        ({**ONE, "thumbs_up": "0"}, "thumb", Thumb(PROMPT, "Red.", False, L)),
        ({"messages": [USER, RED], "thumb": "up"}, "thumb", Thumb(PROMPT, "Red.", True, L)),
        ({**ONE, "rating": 4}, "rating", Rating(PROMPT, "Red.", 4.0, L)),
        ({"prompt": [USER], "answer": [RED], "rating": "4.0"}, "rating", Rating(PROMPT, "Red.", 4.0, L)),
        ({**THREE, "ranking": [2, 0, 1]}, "ranking",
         Ranking(PROMPT, ("Green.", "Red.", "Blue."), (1, 2, 3), L)),
        ({**THREE, "ranking": [1, [0, 2]]}, "ranking", Ranking(PROMPT, ("Blue.", "Red.", "Green."), (1, 2, 2), L)),
        ({**THREE, "ranks": [3, 1, 1]}, "ranking", Ranking(PROMPT, ("Blue.", "Green.", "Red."), (1, 1, 2), L)),
        ({**THREE, "ranks": [2, 1, 2]}, "ranking", Ranking(PROMPT, ("Blue.", "Red.", "Green."), (1, 2, 2), L)),
        ({"prompt": [USER], "responses": [[RED], [BLUE]], "ranks": "[2, 1]"}, "ranking",
         Ranking(PROMPT, ("Blue.", "Red."), (1, 2), L)),
        ({"prompt": "Name a colour.", "responses": '["Red.", "Blue."]', "ranking": "[1, 0]"}, "ranking",
         Ranking(PROMPT, ("Blue.", "Red."), (1, 2), L)),
    ],
)  # fmt: skip
def test_shapes_of_one_item(row: object, shape: str, item: Item) -> None:
    assert shape_of(row) == shape
    assert read(row) == [item]


def test_ultrafeedback() -> None:
    whole = {"prompt": "Name a colour.", "chosen": [USER, RED], "rejected": [USER, BLUE], "messages": [USER, RED]}
    row = {**whole, "score_chosen": 8.5, "score_rejected": 6}
    assert shape_of(row) == "UltraFeedback binarized"
    assert read(row) == [Pair(PROMPT, "Red.", "Blue.", L, margin=2.5)]
    assert read({**row, "score_rejected": 8.5}) == [Pair(PROMPT, "Red.", "Blue.", L)]
    assert "swapped" in refusal({**row, "score_rejected": 9})
    assert read({**row, "margin": 1}) == [Pair(PROMPT, "Red.", "Blue.", L, margin=1)]


def test_a_system_message_is_part_of_the_prompt() -> None:
    prompt = (Message("system", "Be brief."), *PROMPT)
    row = {"prompt": "Name a colour.", "chosen": [SYSTEM, USER, RED], "rejected": [SYSTEM, USER, BLUE]}
    assert read(row) == [Pair(prompt, "Red.", "Blue.", L)]


def test_hh_is_split_at_the_last_assistant_turn() -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: A poem?\n\nHuman: Please.\n\nAssistant:"
    (pair,) = read({"chosen": f"{start} One\n\nTwo: three", "rejected": f"{start} No"})
    assert isinstance(pair, Pair)
    roles = [(message.role, message.content) for message in pair.prompt]
    assert roles == [("user", "Hi"), ("assistant", "Hello."), ("user", "A poem?\n\nPlease.")]
    assert (pair.chosen, pair.rejected) == ("One\n\nTwo: three", "No")


@pytest.mark.parametrize(
    ("first", "second"),
    [("response1", "response2"), ("response_1", "response_2"), ("response 1", "response 2"),
     ("response_a", "response_b"), ("answer_a", "answer_b"), ("completion_a", "completion_b")],
)  # fmt: skip
@pytest.mark.parametrize("key", ["preference", "winner", "choice"])
@pytest.mark.parametrize(
    ("vote", "wins"),
    [(1, "Red."), (2, "Blue."), (0, None), ("1", "Red."), ("2.0", "Blue."), (1.0, "Red."), ("a", "Red."),
     ("B", "Blue."), ("tie", None), ("response1", "Red."), ("Response 2", "Blue."), ("model_b", "Blue."),
     ("answer_a", "Red."), ("tie (bothbad)", None)],
)  # fmt: skip
def test_compared_pairs(first: str, second: str, key: str, vote: object, wins: str | None) -> None:
    row = {"prompt": "Name a colour.", first: "Red.", second: "Blue.", key: vote}
    assert shape_of(row) == "compared pair"
    (pair,) = read(row)
    assert isinstance(pair, Pair)
    assert pair.tie is (wins is None)
    assert wins is None or (pair.chosen, pair.rejected) == (wins, "Blue." if wins == "Red." else "Red.")


@pytest.mark.parametrize(
    ("label", "wins"), [(0, "Red."), (1, "Blue."), (2, None), ("1", "Blue."), ("a", "Red.")], ids=str
)
def test_auto_j_counts_from_0(label: object, wins: str | None) -> None:
    row = {"prompt": "Name a colour.", "response 1": "Red.", "response 2": "Blue.", "label": label}
    (pair,) = read(row)
    assert isinstance(pair, Pair)
    assert (pair.tie, pair.chosen) == (wins is None, wins or "Red.")
    (other,) = read({**TWO, "label": 1})
    assert isinstance(other, Pair) and other.chosen == "Red."
    assert "write 0 for the first" in refusal({**row, "label": 3})


def test_pandalm_has_a_vote_of_each_annotator() -> None:
    row = {"instruction": "Name", "input": "a colour.", "response1": True, "response2": "No",
           "annotator1": 1, "annotator2": 0, "annotator3": 2, "idx": 7}  # fmt: skip
    prompt = (Message("user", "Name\n\na colour."),)
    labels = [Label(L.where, annotator=f"annotator{i}") for i in (1, 2, 3)]
    assert read(row) == [
        Pair(prompt, "True", "No", labels[0]),
        Pair(prompt, "True", "No", labels[1], tie=True),
        Pair(prompt, "No", "True", labels[2]),
    ]
    assert len(read({**row, "annotator2": ""})) == 2  # an empty cell is no vote
    assert read({**row, "input": ""})[0].prompt == (Message("user", "Name"),)


def test_annotations() -> None:
    annotations = [
        {"annotator": "Ann", "choice": "b", "objective": "honesty"},
        {"annotator": 2, "choice": "tie", "objective": None},
    ]
    assert read({**TWO, "annotations": annotations, "weight": 0.5}) == [
        Pair(PROMPT, "Blue.", "Red.", Label(L.where, "honesty", "Ann", 0.5)),
        Pair(PROMPT, "Red.", "Blue.", Label(L.where, annotator="2", weight=0.5), tie=True),
    ]


def test_rankings_of_several_annotators() -> None:
    entries = [[0, 1, 2], {"annotator": "Ann", "ranks": [2, 1, 1], "objective": "honesty"}, {"ranking": [[2, 1, 0]]}]
    assert read({**THREE, "rankings": entries}) == [
        Ranking(PROMPT, ("Red.", "Blue.", "Green."), (1, 2, 3), Label(L.where, annotator="annotator1")),
        Ranking(PROMPT, ("Blue.", "Green.", "Red."), (1, 1, 2), Label(L.where, "honesty", "Ann")),
        Ranking(PROMPT, ("Red.", "Blue.", "Green."), (1, 1, 1), Label(L.where, annotator="annotator3")),
    ]


def test_ratings_by_objective_annotator_and_response() -> None:
    def rated(answer: str, value: float, objective: str = "overall", annotator: str | None = None) -> Rating:
        return Rating(PROMPT, answer, value, Label(L.where, objective, annotator))

    assert read({**ONE, "ratings": {"honesty": 2, "style": 5, "other": None}}) == [
        rated("Red.", 2, "honesty"), rated("Red.", 5, "style")
    ]  # fmt: skip
    assert read({**ONE, "ratings": [3, None, 4]}) == [
        rated("Red.", 3, annotator="annotator1"), rated("Red.", 4, annotator="annotator3")
    ]  # fmt: skip
    assert read({**ONE, "helpfulness": "2", "verbosity": 1, "source": "x", "coherence": ""}) == [
        rated("Red.", 2, "helpfulness"), rated("Red.", 1, "verbosity")
    ]  # fmt: skip
    assert read({**THREE, "ratings": [1, 2, {"honesty": 3}]}) == [
        rated("Red.", 1), rated("Blue.", 2), rated("Green.", 3, "honesty")
    ]  # fmt: skip


def test_what_every_shape_may_carry() -> None:
    carried = {"objective": "honesty", "weight": "2", "annotator": 7}
    label = Label(L.where, "honesty", "7", 2.0)
    rows = [
        {"prompt": "Name a colour.", "chosen": "Red.", "rejected": "Blue."},
        {**TWO, "label": "a"},
        {**THREE, "ranks": [1, 2, 3]},
        {**ONE, "rating": 3},
        {**ONE, "thumb": "up"},
        {**ONE, "label": True},
    ]
    for row in rows:
        (item,) = read({**row, **carried})
        assert not isinstance(item, Demonstration | PromptOnly) and item.label == label
    for row in rows[:2]:
        (item,) = read({**row, "margin": "0.5"})
        assert isinstance(item, Pair) and item.margin == 0.5


def test_the_scale_is_the_configs() -> None:
    config = FeedbackConfig(path="x", rating_scale=(0, 1), rating_step=0.1)
    (item,) = read({**ONE, "rating": 0.3}, config)
    assert isinstance(item, Rating) and item.value == 0.3


PAIR = {"prompt": "Name a colour.", "chosen": "Red.", "rejected": "Blue."}
HH = "\n\nHuman: Hi\n\nAssistant: "


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ([1], "not a JSON object but a list"),
        (Broken("is broken", "mend it"), "is broken; mend it"),
        ({}, "unknown shape: .* nothing"),
        ({"text": "x"}, r"unknown shape: .*it has: text\); .*docs/preferences\.md"),
        ({"prompt": " "}, "prompt is empty"),
        ({"prompt": 3}, "prompt is neither a string nor a list of messages but a number"),
        ({"prompt": []}, "but an empty list"),
        ({"prompt": [USER, RED]}, "prompt ends with a turn of role assistant, expected user"),
        ({"prompt": [{"role": "user", "content": " "}]}, "the last user turn of prompt is empty"),
        ({"messages": [USER, USER]}, "turn 2 has the role user where assistant was expected"),
        ({"messages": [USER, SYSTEM, RED]}, "turn 2 has the role system where assistant was expected"),
        ({"messages": [SYSTEM, RED]}, "turn 2 has the role assistant where user was expected"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "turn 1 has the role 'robot'; use one of system, user"),
        ({"messages": ["x"]}, "turn 1 has the role None"),
        ({"messages": "x"}, "messages is text; it must be a list"),
        ({"messages": [USER, {"role": "assistant", "content": 3}]}, "the content of turn 2 is a number"),
        ({"messages": [USER, {"role": "assistant", "content": ""}]}, "messages is empty"),
        ({**PAIR, "rejected": None}, "rejected missing"),
        ({"rejected": "x"}, "chosen missing"),
        ({**PAIR, "chosen": ""}, "chosen is empty"),
        ({**PAIR, "chosen": " Blue. "}, "chosen and rejected are the same text"),
        ({**PAIR, "chosen": 5}, "chosen is neither a string nor a list of messages but a number"),
        ({**PAIR, "chosen": "x\udcff"}, "chosen is not valid UTF-8"),
        ({**PAIR, "chosen": [USER]}, "chosen ends with a message of role user"),
        ({**PAIR, "chosen": [{"role": "user", "content": "Else?"}, RED]}, "chosen begins with messages that differ"),
        ({"chosen": "x", "rejected": "y"}, "chosen is a string without a prompt"),
        ({"chosen": "The same", "rejected": "The same"}, "same text"),
        ({"chosen": [RED], "rejected": [BLUE]}, "chosen is an answer without a prompt"),
        ({"chosen": [USER, RED], "rejected": [{**USER, "content": "?"}, BLUE]}, "do not answer one prompt"),
        ({"chosen": HH + "x", "rejected": "\n\nHuman: Ho\n\nAssistant: y"}, "do not answer one prompt"),
        ({"chosen": HH + "x\n\nHuman: more", "rejected": HH + "y"}, "chosen ends with a message of role user"),
        ({"chosen": HH, "rejected": HH + "y"}, "chosen is empty"),
        ({"chosen": "\n\nAssistant: x", "rejected": "\n\nAssistant: y"}, "does not begin with a turn of the Human"),
        ({**PAIR, "margin": -1}, "margin is -1; it must be 0 or more"),
        ({**PAIR, "weight": 0}, "weight is 0; it must be above 0"),
        ({**PAIR, "weight": float("nan")}, "weight is nan"),
        ({**PAIR, "weight": True}, "weight is true or false; it must be a number"),
        ({**PAIR, "objective": 3}, "objective is a number; it must be text"),
        ({**PAIR, "annotator": ["a"]}, "annotator is a list"),
        ({**TWO}, "there is no judgement"),
        ({**TWO, "label": 1, "winner": "b"}, "has both label and winner"),
        ({**TWO, "label": 1, "annotator1": 2}, "has both label and annotator1"),
        ({**TWO, "label": 3}, "label is 3; write 1 or a"),
        ({**TWO, "label": True}, "label is true or false"),
        ({**TWO, "label": "left"}, "label is 'left'; write 1 or a"),
        ({**TWO, "response_b": None, "label": 1}, "response_b missing"),
        ({**TWO, "response_b": "Red.", "label": 1}, "response_a and response_b are the same text"),
        ({**TWO, "response_b": "", "label": 1}, "response_b is empty"),
        ({**TWO, "prompt": None, "label": 1}, "prompt is missing"),
        ({**TWO, "label": 0, "margin": 1}, "label is a tie, but margin is 1"),
        ({**TWO, "annotator1": 1, "annotator": "x"}, "annotator is given for the row and also"),
        ({**TWO, "annotations": []}, "annotations is an empty list"),
        ({**TWO, "annotations": ["x"]}, "annotations, entry 1 is text"),
        ({**TWO, "annotations": [{"annotator": "x"}]}, "annotations, entry 1: choice missing"),
        ({**TWO, "annotations": [{"choice": 1}]}, "annotations, entry 1: annotator missing"),
        (THREE, "responses need ranking, ranks, rankings or ratings"),
        ({**THREE, "ranking": [0, 1, 2], "ratings": [1, 2, 3]}, "judgements of different kinds"),
        ({**THREE, "ranking": [0, 1, 1]}, "ranking names response 1 twice"),
        ({**THREE, "ranking": [0, [1, 1], 2]}, "ranking names response 1 twice"),
        ({**THREE, "ranking": [0, 2]}, r"ranking leaves out response 1 \(counted from 0\)"),
        ({**THREE, "ranking": [1, 2, 3]}, "ranking names response 3; with 3 responses, count from 0 to 2"),
        ({**THREE, "ranking": [0, 1.5, 2]}, "ranking is 1.5; it must be a whole number"),
        ({**THREE, "ranking": [0, [], 1, 2]}, "ranking is an empty list"),
        ({**THREE, "ranking": "x"}, "ranking is text; it must be a list"),
        ({**THREE, "ranks": [1, 2]}, "ranks has 2 entries for 3 responses"),
        ({**THREE, "ranks": [0, 1, 2]}, r"ranks is \[0, 1, 2\]; count from 1"),
        ({**THREE, "ranks": [1, 2, 4]}, r"ranks is \[1, 2, 4\]; count from 1"),
        ({**THREE, "ranks": [1, 2, 3], "ranking": [0, 1, 2]}, "has both ranking and ranks"),
        ({**THREE, "rankings": [{"annotator": "x"}]}, "rankings, entry 1 has 0 of ranking and ranks"),
        ({**THREE, "responses": ["Red.", "Blue.", "Red."], "ranks": [1, 2, 3]}, "responses 0 and 2 .* same text"),
        ({**THREE, "responses": ["Red.", "", "x"], "ranks": [1, 2, 3]}, r"response 1 \(from 0\) is empty"),
        ({**THREE, "responses": ["Red."], "ranks": [1]}, "responses has one answer"),
        ({**THREE, "ranks": [1, 2, 3], "margin": 1}, "margin belongs to pairs"),
        ({**THREE, "ratings": [1, 2]}, "ratings has 2 entries for 3 responses"),
        ({**THREE, "ratings": [1, 2, None]}, r"rating 2 \(from 0\) is null"),
        ({**ONE, "rating": float("nan")}, "rating is nan"),
        ({**ONE, "rating": "nan"}, "rating is nan"),
        ({**ONE, "rating": True}, "rating is true or false; it must be a number"),
        ({**ONE, "rating": "good"}, "rating is 'good'; it must be a number"),
        ({**ONE, "rating": 6}, r"rating is 6, which is not on the scale 1, 2, \.\.\., 5; .*data\.rating_scale"),
        ({**ONE, "rating": 2.5}, "rating is 2.5, which is not on the scale"),
        ({**ONE, "helpfulness": 0}, "helpfulness is 0, which is not on the scale"),
        ({**ONE, "ratings": {"honesty": 9}}, "ratings: honesty is 9"),
        ({**ONE, "ratings": 3}, "ratings: a number; give a number for each objective"),
        ({**ONE, "ratings": [None]}, "ratings holds no rating"),
        ({**ONE, "ratings": [3], "rating": 3}, "has both rating and ratings"),
        ({**ONE, "ratings": {"honesty": 3}, "objective": "x"}, "objective is given for the row and also"),
        ({**ONE, "rating": 3, "thumb": "up"}, "judgements of different kinds"),
        ({**ONE, "answer": "x", "rating": 3}, "has both response and answer"),
        ({**ONE, "thumb": "sideways"}, "thumb is 'sideways'; it must be true or false"),
        ({**ONE, "thumb": "up", "thumbs_up": True}, "has both thumb and thumbs_up"),
        ({**ONE, "label": 2}, "label is 2; it must be true or false"),
        ({**ONE, "weight": 2}, "weight belongs to a judgement"),
        ({"response": "x", "rating": 3}, "prompt is missing"),
        ({"prompt": "x", "rating": 3}, "rating judges an answer, but the row has none"),
        ({"prompt": [USER], "completion": [USER]}, "completion ends with a message of role user"),
    ],
)  # fmt: skip
def test_rows_that_are_refused(row: object, says: str) -> None:
    with pytest.raises(BadRow, match=says) as caught:
        read(row)
    assert caught.value.cause and caught.value.fix
    assert str(caught.value) == f"{caught.value.cause}; {caught.value.fix}"


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data is not there (RLHF_RAY_DATA)")
@pytest.mark.parametrize(
    ("name", "shape", "rows", "good", "items", "causes"),
    [
        ("pandalm", "compared pair", 797, 752, 2256,
         {"response1 is empty": 22, "response2 is empty": 22, "instruction is empty": 1}),
        ("autoj-pairwise", "compared pair", 1129, 1121, 1121,
         {"response 1 and response 2 are the same text, so the pair says nothing": 7, "response 2 is empty": 1}),
        ("hh-harmless", "Anthropic HH", 1844, 1842, 1842, {"chosen is empty": 2}),
    ],
)  # fmt: skip
def test_real_files(name: str, shape: str, rows: int, good: int, items: int, causes: dict[str, int]) -> None:
    found: list[Item] = []
    bad: Counter[str] = Counter()
    usable = total = 0
    for where, row in raw_rows(REAL / f"{name}.jsonl.gz"):
        total += 1
        assert shape_of(row) == shape
        try:
            found += parse(row, where, CONFIG)
            usable += 1
        except BadRow as error:
            bad[error.cause] += 1
    assert (total, usable, len(found)) == (rows, good, items)
    assert bad == causes


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data is not there (RLHF_RAY_DATA)")
def test_real_votes_are_read_the_right_way_round() -> None:
    for where, row in raw_rows(REAL / "autoj-pairwise.jsonl.gz", limit=250):
        assert isinstance(row, dict)
        (pair,) = parse(row, where, CONFIG)
        assert isinstance(pair, Pair)
        assert pair.tie is (row["label"] == 2)
        assert pair.tie or pair.chosen == row[f"response {row['label'] + 1}"]
