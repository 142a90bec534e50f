"""Reading feedback: counts, bad rows in one error or dropped, ties, and the split by prompt."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf_ray.data.feedback import Feedback, FeedbackConfig, open_feedback, prompt_key
from rlhf_ray.errors import UserError
from rlhf_ray.evidence import Item, Pair
from rlhf_ray.types import Message

Row = Mapping[str, object]


def pair(i: int, j: int = 0) -> Row:
    return {"prompt": f"question {i}", "chosen": f"good {j}", "rejected": f"bad {j}"}


def config(folder: Path, *rows: object, name: str = "f.jsonl", **settings: object) -> FeedbackConfig:
    """A file of `rows` (text is written as it stands) and a config for it."""
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    (folder / name).write_text("".join(line + "\n" for line in lines))
    return FeedbackConfig.model_validate({"path": str(folder / name), **settings})


def prompts(items: list[Item]) -> list[str]:
    return [item.prompt[-1].content for item in items]


def test_mixed_evidence_is_counted_by_kind_and_objective(tmp_path: Path) -> None:
    prompt = {"prompt": "p"}
    rows = [
        pair(1), {**pair(2), "objective": "honesty"},
        {**prompt, "response_a": "x", "response_b": "y", "annotator1": 1, "annotator2": 0},
        {**prompt, "responses": ["x", "y"], "ranks": [1, 1]},
        {**prompt, "response": "x", "helpfulness": 1, "honesty": 2},
        {**prompt, "response": "x", "thumb": "up"}, {**prompt, "response": "x"}, prompt,
    ]  # fmt: skip
    feedback = open_feedback(config(tmp_path, *rows), seed=0)
    assert feedback.counts == {
        "pair": {"overall": 3, "honesty": 1}, "ranking": {"overall": 1}, "rating": {"helpfulness": 1, "honesty": 1},
        "thumb": {"overall": 1}, "demonstration": {"overall": 1}, "prompt": {"overall": 1},
    }  # fmt: skip
    assert feedback.shapes["explicit preference"] == 2 and sum(feedback.shapes.values()) == 8
    assert feedback.ties == 2 and feedback.notes == ["2 of 5 comparisons are ties"]
    assert (feedback.dropped, feedback.reasons) == (0, [])
    train, heldout = list(feedback.train()), list(feedback.heldout())
    assert (len(train), len(heldout)) == (feedback.num_train, feedback.num_heldout) and len(train + heldout) == 10


@pytest.mark.parametrize("name", ["f.json", "f.csv", "f.parquet", "folder"])
def test_every_file_type(tmp_path: Path, name: str) -> None:
    rows = [pair(i) for i in range(5)]
    expected = list(open_feedback(config(tmp_path, *rows), 0).train())
    file = tmp_path / name
    if name == "folder":
        file.mkdir()
        config(file, *rows[:2], name="1.jsonl")
        config(file, *rows[2:], name="2.jsonl")
    elif name == "f.parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif name == "f.json":
        file.write_text(json.dumps(rows))
    else:
        file.write_text("\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]))
    found = list(open_feedback(FeedbackConfig(path=str(file)), 0).train())
    assert [(i.prompt, i.chosen, i.rejected) for i in found if isinstance(i, Pair)] == [
        (i.prompt, i.chosen, i.rejected) for i in expected if isinstance(i, Pair)
    ]


BAD = ["{", [1], {**pair(1), "chosen": ""}, {**pair(1), "weight": -1}, {"text": "x"}]


def test_bad_rows_are_one_error_with_the_first_three(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        open_feedback(config(tmp_path, pair(1), *BAD, pair(2)), 0)
    lines = str(caught.value).splitlines()
    assert "5 of 7 rows" in lines[0] and "f.jsonl" in lines[0] and "data.on_bad_row" in lines[0]
    assert lines[1].startswith("  f.jsonl row 2: not a JSON object (")
    assert lines[2:] == [
        "  f.jsonl row 3: not a JSON object but a list; write one object a row",
        "  f.jsonl row 4: chosen is empty; write it or remove the row",
        "  and 2 more",
    ]


def test_bad_rows_are_dropped_and_counted_if_the_config_says_so(tmp_path: Path) -> None:
    feedback = open_feedback(config(tmp_path, pair(1), *BAD, pair(2), on_bad_row="drop"), 0)
    assert feedback.dropped == 5 and len(feedback.reasons) == 3
    assert feedback.reasons[1] == "f.jsonl row 3: not a JSON object but a list; write one object a row"
    assert feedback.notes[0].startswith("5 of 7 rows cannot be used and are left out, the first: f.jsonl row 2: not a")
    assert sorted(prompts([*feedback.train(), *feedback.heldout()])) == ["question 1", "question 2"]
    with pytest.raises(UserError, match=r"5 of 5 rows .* cannot be used"):
        open_feedback(config(tmp_path, *BAD, on_bad_row="drop"), 0)


def test_a_file_that_went_bad_after_the_check_is_not_skipped_over(tmp_path: Path) -> None:
    feedback = open_feedback(config(tmp_path, pair(1), pair(2), pair(3)), 0)
    config(tmp_path, *BAD)
    with pytest.raises(UserError, match=r"f\.jsonl row 1: not a JSON object"):
        list(feedback.train())


@pytest.mark.parametrize(
    "tie", [{"response_a": "x", "response_b": "y", "label": 0}, {"responses": ["x", "y"], "ranks": [1, 1]}]
)
def test_nothing_but_ties_is_refused(tmp_path: Path, tie: Row) -> None:
    ties = [{"prompt": f"p{i}", **tie} for i in range(3)]
    with pytest.raises(UserError, match=r"all 3 comparisons of .* are ties"):
        open_feedback(config(tmp_path, *ties), 0)
    assert open_feedback(config(tmp_path, *ties, pair(1)), 0).ties == 3
    assert open_feedback(config(tmp_path, *ties, {"prompt": "p", "response": "x", "rating": 3}), 0).ties == 3


def test_prompts_guessed_from_two_texts_are_noted(tmp_path: Path) -> None:
    rows = [{"chosen": f"{i} is one", "rejected": f"{i} is two"} for i in range(3)]
    assert "3 rows have no prompt of their own" in open_feedback(config(tmp_path, *rows), 0).notes[0]


def old_split(rows: list[Row], fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """The split by prompt as it was first written, on the texts themselves."""
    names = [str(row["prompt"]) for row in rows]
    order = sorted(set(names), key=names.index)
    random.Random(seed).shuffle(order)
    wanted = max(1, round(fraction * len(names)))
    held: set[str] = set()
    for prompt in order[:-1]:
        if sum(name in held for name in names) >= wanted:
            break
        held.add(prompt)
    return [name for name in names if name not in held], [name for name in names if name in held]


@pytest.mark.parametrize("seed", [0, 1, 7])
@pytest.mark.parametrize("fraction", [0.01, 0.15, 0.5, 0.99])
def test_whole_prompts_are_held_out_in_the_order_of_the_seed(tmp_path: Path, seed: int, fraction: float) -> None:
    rows = [pair(i * i % 23, i) for i in range(60)]
    feedback = open_feedback(config(tmp_path, *rows, heldout_fraction=fraction), seed)
    train, heldout = prompts(list(feedback.train())), prompts(list(feedback.heldout()))
    assert (train, heldout) == old_split(rows, fraction, seed)
    assert not set(train) & set(heldout) and train and heldout
    assert prompts(list(feedback.train())) == train  # a second pass is the same


def test_votes_on_one_row_stay_together(tmp_path: Path) -> None:
    votes = {"response_a": "x", "response_b": "y", "annotator1": 1, "annotator2": 2}
    rows = [{"prompt": f"p{i}", **votes} for i in range(9)]
    feedback = open_feedback(config(tmp_path, *rows), 3)
    train, heldout = prompts(list(feedback.train())), prompts(list(feedback.heldout()))
    assert not set(train) & set(heldout) and len(train) + len(heldout) == 18


def test_one_prompt_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least two different prompts"):
        open_feedback(config(tmp_path, pair(1, 0), pair(1, 1)), 0)


def test_a_heldout_file_and_prompts_in_both(tmp_path: Path) -> None:
    other = config(tmp_path, pair(2, 9), pair(7), name="heldout.jsonl").path
    settings = config(tmp_path, *(pair(i) for i in range(5)), pair(2, 1), heldout_path=other)
    feedback = open_feedback(settings, 0)
    assert prompts(list(feedback.train())) == [f"question {i}" for i in (0, 1, 3, 4)]
    assert prompts(list(feedback.heldout())) == ["question 2", "question 7"]
    assert (feedback.num_train, feedback.num_heldout) == (4, 2) and feedback.counts == {"pair": {"overall": 8}}
    assert feedback.notes == ["2 training items are left out because their prompts are held out"]
    with pytest.raises(UserError, match=r"every prompt of .* is in data\.heldout_path too"):
        open_feedback(config(tmp_path, pair(2), heldout_path=other), 0)
    with pytest.raises(UserError, match=r"data\.heldout_path: file .*none\.jsonl does not exist"):
        open_feedback(config(tmp_path, pair(2), heldout_path=str(tmp_path / "none.jsonl")), 0)


def test_the_limit_is_of_the_training_file(tmp_path: Path) -> None:
    other = config(tmp_path, *(pair(i) for i in range(10, 15)), name="heldout.jsonl").path
    feedback = open_feedback(config(tmp_path, *(pair(i) for i in range(5)), limit=3, heldout_path=other), 0)
    assert (len(list(feedback.train())), len(list(feedback.heldout()))) == (3, 5)


def test_the_demo() -> None:
    feedback = open_feedback(FeedbackConfig(path="demo"), 0)
    assert feedback.counts["pair"]["overall"] == feedback.num_train + feedback.num_heldout >= 300
    assert feedback.notes == []


def test_keys_of_prompts() -> None:
    one = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    assert prompt_key(one).hex() == "9d6338035a20b4b3115a7a7b3fba338d"  # the same in every process
    others = [one[:1], (Message("user", "ab"),), (Message("system", "a"), *one[1:]), (Message("user", "abc"),)]
    assert len({prompt_key(prompt) for prompt in (one, *others)}) == 5


def test_memory_grows_with_the_number_of_prompts_only(tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        settings = config(tmp_path, *({**pair(i), "chosen": f"{i:05}" * 400} for i in range(rows)))
        list(open_feedback(FeedbackConfig(path=settings.path, limit=3), 0).train())  # imports
        tracemalloc.start()
        read(open_feedback(settings, 0))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    def read(feedback: Feedback) -> None:
        for _ in feedback.train():
            pass

    small, large = peak(300), peak(1_800)
    assert (large - small) / 1_500 < 400  # bytes a prompt; its row has 2,000 characters
