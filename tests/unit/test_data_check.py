"""The check of feedback against rows written by hand, and clean copies that say the same."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_folders import OVERHEAD, tiny_tokenizer

from rlhf_ray.data.canonical import canonical_row
from rlhf_ray.data.check import check
from rlhf_ray.data.check_report import BadRowFound, Report
from rlhf_ray.data.clean import BAD, DUPLICATE, LEAK, fix
from rlhf_ray.data.feedback import FeedbackConfig, open_feedback
from rlhf_ray.data.shapes import parse, shape_of
from rlhf_ray.errors import UserError

Row = dict[str, Any]
DATA = Path(os.environ.get("RLHF_RAY_DATA", Path(__file__).parents[3] / "shared" / "data")) / "preferences"
TEXT = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"

GOOD: list[Row] = [
    {"prompt": "Why?", "chosen": "Because it is.", "rejected": "No."},
    {"prompt": "Why?", "chosen": "Because.", "rejected": "No.", "annotator": "ann", "objective": "honesty",
     "margin": 2},
    {"prompt": "Why?", "chosen": "Because.", "rejected": "No.", "weight": 0.5},
    {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d",
     "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: e"},
    {"prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Who?"}],
     "chosen": [{"role": "assistant", "content": "Me."}], "rejected": [{"role": "assistant", "content": "You."}]},
    {"instruction": "Add", "input": "1 2", "response1": "3", "response2": "4",
     "annotator1": 1, "annotator2": 0, "annotator3": 2},
    {"prompt": "Which?", "response 1": "this", "response 2": "that", "label": 2},
    {"prompt": "Rank", "responses": ["a", "b", "c"], "ranking": [2, 0, 1], "annotator": 7},
    {"prompt": "Rank", "responses": ["a", "b", "c"], "ranks": [1, 1, 2]},
    {"prompt": "Rank", "responses": ["a", "b"], "rankings": [[0, 1], {"ranks": [2, 1], "annotator": "eve"}]},
    {"prompt": "Rate", "completion": "fine", "rating": 4},
    {"prompt": "Rate", "completion": "fine", "ratings": {"helpfulness": 4, "honesty": 2}, "annotator": "bob"},
    {"prompt": "Rate", "completion": "fine", "ratings": [3, None, 5], "objective": "honesty"},
    {"prompt": "Rate", "completion": "fine", "helpfulness": 1, "coherence": 2},
    {"prompt": "Rate", "responses": ["x", "y"], "ratings": [5, 1]},
    {"prompt": "Rate", "responses": ["x", "y"], "ratings": [{"honesty": 5}, {"honesty": 1, "safety": 2}]},
    {"prompt": "Good?", "completion": "yes", "label": True},
    {"prompt": "Good?", "completion": "yes", "thumb": "down", "weight": 3},
    {"prompt": "Do", "completion": "done"},
    {"messages": [{"role": "user", "content": "Do"}, {"role": "assistant", "content": "so"}]},
    {"prompt": "Only this"},
]  # fmt: skip
MIXTURE: Row = {"prompt": "Rate", "completion": "fine", "ratings": [3, 4], "safety": 1}  # by annotator and by objective


def write(path: Path, rows: Sequence[object]) -> FeedbackConfig:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return FeedbackConfig(path=str(path), max_tokens=40)


def pair(prompt: str, chosen: str, rejected: str, **more: object) -> Row:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **more}


def checked(path: Path, rows: Sequence[object]) -> Report:
    return check(write(path, rows))


def test_counts(tmp_path: Path) -> None:
    report = checked(tmp_path / "data.jsonl", GOOD)
    assert (report.rows, report.usable, report.bad.total) == (len(GOOD), len(GOOD), 0)
    shapes = [shape_of(row) for row in GOOD]
    assert report.shapes == {shape: shapes.count(shape) for shape in shapes}
    assert report.kinds == {"pair": 9, "ranking": 4, "rating": 12, "thumb": 2, "demonstration": 2, "prompt": 1}
    assert report.objectives == {"overall": 17, "honesty": 6, "helpfulness": 2, "coherence": 1, "safety": 1}
    assert report.ties == 2  # a vote of row 6, and row 7; a ranking with equal ranks still prefers
    assert report.annotators == 7  # ann, annotator1 to 3, 7, eve, bob
    assert report.prompts == len({str(parse(row, "", FeedbackConfig(path="x"))[0].prompt) for row in GOOD})
    assert report.tokens is None
    json.dumps(report.as_json())


def test_bad_rows_are_counted_by_cause_and_the_first_ten_told(tmp_path: Path) -> None:
    rows = [
        pair("Why?", "yes", "no"), "{broken", pair("Why?", "", "no"), pair("Why?", "same", "same "), {"prompt": "  "},
        {"prompt": "a", "completion": "b", "rating": 9}, {"prompt": "a", "responses": ["x", "x"], "ranks": [1, 2]},
        {"prompt": "a", "responses": ["x", "\t"], "ranks": [1, 2]}, [1], *[{"prompt": "a", "chosen": "b"}] * 6,
    ]  # fmt: skip
    report = checked(tmp_path / "data.jsonl", rows)
    assert (report.rows, report.usable) == (15, 1)
    assert (report.bad.total, report.bad.empty_answers, report.bad.identical_answers) == (14, 2, 2)
    assert len(report.bad.first) == 10
    assert report.bad.first[1] == BadRowFound("data.jsonl row 3", "chosen is empty", "write it or remove the row")
    assert report.bad.first[4].cause.startswith("rating is 9")
    assert all(bad.cause and bad.fix for bad in report.bad.first)


def test_nothing_usable_is_a_report_too(tmp_path: Path) -> None:
    config = write(tmp_path / "data.jsonl", ["{", "}"])
    report = check(config, tiny_tokenizer())
    assert (report.usable, report.tokens, report.length_bias, report.examples) == (0, None, None, ())
    with pytest.raises(UserError, match="no row is left"):
        fix(config, tmp_path / "clean.jsonl")
    assert not (tmp_path / "clean.jsonl").exists()


def test_tokens_are_those_of_the_rendered_template(tmp_path: Path) -> None:
    """The tokenizer makes one token of each character."""
    rows = [
        pair("abc", "12345", "1"),
        pair("ab", "1" * 20, "12"),
        {"prompt": "a", "completion": "1" * 20},
        {"prompt": "p"},
    ]
    assert OVERHEAD + 1 + 20 + 1 == 40 == OVERHEAD + 2 + 20 + 1 - 1
    tokens = check(write(tmp_path / "data.jsonl", rows), tiny_tokenizer()).tokens
    assert tokens is not None and tokens.answers is not None
    assert (tokens.max_tokens, tokens.overlong, tokens.longest) == (40, 1, 41)
    assert tokens.longest_where == "data.jsonl row 2"
    assert (tokens.prompts.count, tokens.prompts.p50, tokens.prompts.p95) == (4, OVERHEAD + 1, OVERHEAD + 3)
    assert (tokens.answers.count, tokens.answers.p50, tokens.answers.max) == (5, 5, 20)
    assert tokens.total == 4 * OVERHEAD + 3 + 2 + 1 + 1 + 5 + 1 + 20 + 2 + 20


def test_examples_show_each_shape_first(tmp_path: Path) -> None:
    rows = [pair("abc", "12345", "1"), pair("ab", "1", "12"), pair("a", "2", "1"), GOOD[5], GOOD[7]]
    report = check(write(tmp_path / "data.jsonl", rows), tiny_tokenizer())
    first, second, third = report.examples
    assert [first.where, second.where, third.where] == [f"data.jsonl row {number}" for number in (1, 4, 5)]
    assert first.prompt == "<|start|>user\nabc<|end|><|start|>assistant\n"
    assert (first.prompt_tokens, first.answers[0].text, first.answers[0].tokens) == (OVERHEAD + 3, "12345", 5)
    assert [answer.verdict for answer in first.answers] == ["chosen", "rejected"]
    assert [answer.verdict for answer in second.answers] == [
        "chosen by annotator1; tie by annotator2; rejected by annotator3",
        "rejected by annotator1; tie by annotator2; chosen by annotator3",
    ]
    assert [(answer.text, answer.verdict) for answer in third.answers] == [
        ("c", "rank 1 by 7"), ("a", "rank 2 by 7"), ("b", "rank 3 by 7")
    ]  # fmt: skip
    plain = checked(tmp_path / "data.jsonl", rows[:3])
    assert [example.prompt for example in plain.examples] == ["user: abc", "user: ab", "user: a"]


def test_a_template_that_refuses_a_row_makes_it_bad(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + str(tokenizer.chat_template)
    )
    report = check(write(tmp_path / "data.jsonl", [GOOD[4], GOOD[0]]), tokenizer)
    assert (report.rows, report.usable, report.bad.total) == (2, 1, 1)
    assert "chat template refuses this conversation: no system" in report.bad.first[0].cause


def test_repeats(tmp_path: Path) -> None:
    long = TEXT
    nearly = long.replace("fifteen", "fifty")
    rows = [
        pair(long, long, "no"), pair(long, "other words", "no"), pair(long, long, "no"),  # the third repeats the first
        pair(long, long.upper(), "no"),  # nearly
        pair(long, long, "no", annotator="ann"), pair(long, "no", long),  # say something else, but nearly
        pair("Again?", "so", "no"), pair("Again?", "so", "no"),
        pair(f"{TEXT} {TEXT}", " ".join(reversed(TEXT.split())), nearly),
    ]  # fmt: skip
    found = checked(tmp_path / "data.jsonl", rows).duplicates
    assert (found.exact, found.first_exact) == (2, ("data.jsonl row 3", "data.jsonl row 8"))
    assert found.near == 3
    first = found.first_near[0]
    assert (first.where, first.earlier, first.similarity) == ("data.jsonl row 4", "data.jsonl row 1", 1.0)


def test_leaks_into_other_data_and_between_splits(tmp_path: Path) -> None:
    ours = [pair("shared", "a", "b"), pair("shared", "a", "c"), pair("own", "a", "b")]
    theirs = [{"prompt": [{"role": "user", "content": "shared"}]}, {"prompt": "theirs"}, "broken"]
    other = write(tmp_path / "other.jsonl", theirs)
    config = write(tmp_path / "data.jsonl", ours)
    (leak,) = check(config, other=other).leaks
    assert (leak.other, leak.rows, leak.first) == (other.path, 2, ("data.jsonl row 1", "data.jsonl row 2"))
    assert check(config).leaks == ()

    write(tmp_path / "folder" / "train.jsonl", ours)
    write(tmp_path / "folder" / "test.jsonl", theirs)
    write(tmp_path / "folder" / "validation-00000-of-00001.jsonl", [{"prompt": "own"}])
    leaks = check(FeedbackConfig(path=str(tmp_path / "folder"))).leaks
    assert {(leak.other, leak.rows) for leak in leaks} == {("split test", 2), ("split validation", 1)}


def test_a_folder_without_splits_has_no_leaks(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [pair("shared", "a", "b")])
    write(tmp_path / "b.jsonl", [pair("shared", "a", "c")])
    assert check(FeedbackConfig(path=str(tmp_path))).leaks == ()


def test_agreement_and_length_bias(tmp_path: Path) -> None:
    rows = [
        {"prompt": "Q", "response1": "ab", "response2": "c", "annotator1": 1, "annotator2": 1},
        {"prompt": "Q", "response1": "d", "response2": "efg", "annotator1": 1, "annotator2": 2},
        {"prompt": "Q", "response1": "d", "response2": "x", "annotator1": 1, "annotator2": 0},  # equally long
        {"prompt": "R", "responses": ["aaa", "bb", "c"], "ranks": [1, 2, 2]},
    ]
    report = checked(tmp_path / "data.jsonl", rows)
    (agreement,) = report.agreement
    assert (agreement.kind, agreement.units, agreement.judgements) == ("pair", 3, 6)
    # the answers are sorted as texts, so the first one has 4 of the 6 votes; they differ in 2 of the 3 pairs
    counts = {"first": 4, "second": 1, "tie": 1}
    pairs_apart = sum(a * b for x, a in counts.items() for y, b in counts.items() if x != y)
    assert agreement.alpha == pytest.approx(1 - (6 - 1) * 4 / pairs_apart)
    assert report.length_bias is not None
    # won: "ab" twice, "efg" once, "aaa" twice; lost: "d" once
    assert (report.length_bias.longer_wins, report.length_bias.comparisons) == (pytest.approx(5 / 6), 6)
    assert report.length_bias.unit == "characters"


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[int] = []
    check(write(tmp_path / "data.jsonl", [pair(f"q{i}", "a", "b") for i in range(600)]), on_rows=told.append)
    assert told == [256, 512, 600]


@pytest.mark.parametrize("row", GOOD, ids=lambda row: shape_of(row))
def test_a_canonical_row_says_the_same(row: Row) -> None:
    config = FeedbackConfig(path="x")
    items = parse(row, "here", config)
    canonical = canonical_row(items)
    assert parse(canonical, "here", config) == items
    assert canonical_row(parse(canonical, "here", config)) == canonical


def test_a_clean_copy(tmp_path: Path) -> None:
    rows = [*GOOD, GOOD[0], pair("Why?", " ", "no"), "broken", pair("leaks", "a", "b"), MIXTURE]
    config = write(tmp_path / "data.jsonl", rows)
    other = write(tmp_path / "other.jsonl", [{"prompt": "leaks"}])
    before = (tmp_path / "data.jsonl").read_bytes()
    cleaned = fix(config, tmp_path / "clean.jsonl", other)
    assert cleaned.written == len(GOOD) + 1
    assert cleaned.dropped == {BAD: 2, DUPLICATE: 1, LEAK.format(other=other.path): 1}
    lines = [json.loads(line) for line in (tmp_path / "clean.jsonl").read_text().splitlines()]
    assert lines[-1] == MIXTURE  # no plainer form says it
    assert [parse(line, "", config) for line in lines] == [parse(row, "", config) for row in [*GOOD, MIXTURE]]
    again = check(FeedbackConfig(path=cleaned.path), other=other)
    assert (again.rows, again.bad.total, again.duplicates.exact, again.leaks[0].rows) == (cleaned.written, 0, 0, 0)
    assert open_feedback(FeedbackConfig(path=cleaned.path), seed=0).dropped == 0
    assert (tmp_path / "data.jsonl").read_bytes() == before


def test_a_clean_copy_overwrites_nothing(tmp_path: Path) -> None:
    config = write(tmp_path / "data.jsonl", GOOD)
    (tmp_path / "there.jsonl").write_text("precious")
    for name, message in (("there.jsonl", "not overwritten"), ("data.jsonl", "not overwritten"), ("a.json", "end in"),
                          ("no/where.jsonl", "cannot be written")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            fix(config, tmp_path / name)
    assert (tmp_path / "there.jsonl").read_text() == "precious"


def test_a_clean_copy_that_fails_leaves_no_file(tmp_path: Path) -> None:
    config = write(tmp_path / "data.jsonl", GOOD)

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fix(config, tmp_path / "clean.jsonl", on_rows=stop)
    assert not (tmp_path / "clean.jsonl").exists()


def test_leaking_rows_can_be_all(tmp_path: Path) -> None:
    config = write(tmp_path / "data.jsonl", GOOD)
    with pytest.raises(UserError, match="no row is left to write"):
        fix(config, tmp_path / "clean.jsonl", other=config)


def test_missing_data_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        check(FeedbackConfig(path=str(tmp_path / "none.jsonl")))
    config = write(tmp_path / "data.jsonl", GOOD)
    with pytest.raises(UserError, match="does not exist"):
        check(config, other=FeedbackConfig(path=str(tmp_path / "none.jsonl")))


@pytest.mark.skipif(not DATA.is_dir(), reason="the folder of real data is absent")
@pytest.mark.parametrize(
    ("name", "rows", "bad", "longer_wins"),
    [("hh-harmless", 1844, 2, 0.445), ("pandalm", 797, 45, 0.68), ("autoj-pairwise", 1129, 8, 0.716)],
)
def test_real_data(name: str, rows: int, bad: int, longer_wins: float) -> None:
    report = check(FeedbackConfig(path=str(DATA / f"{name}.jsonl.gz")))
    assert (report.rows, report.bad.total) == (rows, bad)
    assert report.length_bias is not None
    assert report.length_bias.longer_wins == pytest.approx(longer_wins, abs=0.02)
    if name == "pandalm":
        assert report.annotators == 3 and report.agreement[0].alpha == pytest.approx(0.85, abs=0.05)
