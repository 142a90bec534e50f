"""Preference files: the three row forms, refusals that name the row, and a split that keeps prompts apart."""

import gzip
import json
from pathlib import Path

import pytest

from rlhf_ray.data.preferences import PreferencePair, read_preferences, split_by_prompt
from rlhf_ray.errors import UserError
from rlhf_ray.types import Message

USER = {"role": "user", "content": "Name a colour."}
RED, BAD = {"role": "assistant", "content": "Red."}, {"role": "assistant", "content": "No."}
WANTED = PreferencePair((Message("user", "Name a colour."),), "Red.", "No.")


def _write(folder: Path, *rows: object, name: str = "p.jsonl") -> Path:
    file = folder / name
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    file.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return file


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Name a colour.", "chosen": "Red.", "rejected": "No."},
        {"prompt": [USER], "chosen": "Red.", "rejected": "No.", "id": 7},
        {"prompt": [USER], "chosen": [RED], "rejected": [BAD]},
        {"prompt": "Name a colour.", "chosen": [USER, RED], "rejected": [USER, BAD]},
        {"chosen": [USER, RED], "rejected": [USER, BAD]},
        {
            "chosen": "\n\nHuman: Name a colour.\n\nAssistant: Red.",
            "rejected": "\n\nHuman: Name a colour.\n\nAssistant: No.",
        },
    ],
    ids=["string", "messages", "answers-as-messages", "ultrafeedback", "implicit", "hh"],
)
@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz"])
def test_every_form_gives_the_same_pair(tmp_path: Path, row: object, name: str) -> None:
    assert read_preferences(_write(tmp_path, row, name=name)) == [WANTED]


def test_hh_keeps_earlier_turns_and_paragraphs(tmp_path: Path) -> None:
    start = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: A poem?\n\nAssistant:"
    file = _write(tmp_path, {"chosen": f"{start} One\n\nTwo: three", "rejected": f"{start} No"})
    (pair,) = read_preferences(file)
    assert [m.role for m in pair.prompt] == ["user", "assistant", "user"]
    assert pair.chosen == "One\n\nTwo: three"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{not json", "row 2"),
        (["a list"], "not a JSON object"),
        ({"prompt": "x", "chosen": "y"}, "rejected missing"),
        ({"prompt": "x", "chosen": "y", "rejected": " "}, "rejected is empty"),
        ({"prompt": "x", "chosen": "y", "rejected": "y"}, "same text"),
        ({"prompt": "x", "chosen": 1, "rejected": "y"}, "chosen is neither"),
        ({"chosen": "y", "rejected": "z"}, "without a prompt"),
        ({"chosen": [RED], "rejected": [BAD]}, "without a prompt"),
        ({"chosen": [USER], "rejected": [USER, BAD]}, "role user"),
        ({"chosen": [USER, RED], "rejected": [{"role": "user", "content": "?"}, BAD]}, "do not answer one prompt"),
        ({"prompt": "Other", "chosen": [USER, RED], "rejected": [USER, BAD]}, "differ from prompt"),
        ({"chosen": [USER, {"role": "assistant"}], "rejected": [USER, BAD]}, "the content of turn 2 is null"),
    ],
)
def test_malformed_rows_are_named(tmp_path: Path, row: object, says: str) -> None:
    good = {"prompt": "Name a colour.", "chosen": "Red.", "rejected": "No."}
    file = _write(tmp_path, good, row)
    with pytest.raises(UserError) as caught:
        read_preferences(file)
    assert says in str(caught.value) and "row 2" in str(caught.value) and str(file) in str(caught.value)


def test_many_malformed_rows_are_counted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"row 1: .*and 2 more.*5 of 5 rows"):
        read_preferences(_write(tmp_path, *[{"prompt": "x"}] * 5))


@pytest.mark.parametrize("name", ["missing.jsonl", "missing.csv"])
def test_unreadable_files(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"data\.path"):
        read_preferences(tmp_path / name)


def test_empty_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is empty"):
        read_preferences(_write(tmp_path))


def _pairs(prompts: int, each: int) -> list[PreferencePair]:
    return [
        PreferencePair((Message("user", f"q{i}"),), f"good {j}", f"bad {j}")
        for i in range(prompts)
        for j in range(each)
    ]


def test_split_keeps_prompts_apart_and_loses_nothing() -> None:
    pairs = _pairs(40, 3)
    train, heldout = split_by_prompt(pairs, 0.15, seed=0)
    assert not {p.prompt for p in train} & {p.prompt for p in heldout}
    assert sorted(map(pairs.index, train + heldout)) == list(range(120))
    assert len(heldout) == 18


def test_split_is_decided_by_the_seed() -> None:
    pairs = _pairs(40, 1)
    assert split_by_prompt(pairs, 0.2, seed=3) == split_by_prompt(pairs, 0.2, seed=3)
    assert split_by_prompt(pairs, 0.2, seed=3) != split_by_prompt(pairs, 0.2, seed=4)


def test_split_never_empties_a_part() -> None:
    train, heldout = split_by_prompt(_pairs(2, 5), 0.99, seed=0)
    assert len(train) == len(heldout) == 5
    with pytest.raises(UserError, match="two different prompts"):
        split_by_prompt(_pairs(1, 5), 0.5, seed=0)
