"""Data files of every type, damaged ones, folders, hub ids, and that rows are read when they are asked for."""

from __future__ import annotations

import csv
import gzip
import json
import tracemalloc
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_ray.data.files import data_files, is_hub_id, raw_rows
from rlhf_ray.data.text_rows import Broken, json_rows
from rlhf_ray.errors import UserError

ROWS = [{"prompt": "a\nb", "chosen": 'é, "ü"', "rejected": "3"}, {"prompt": "c", "chosen": "d", "rejected": "e"}]


def write(file: Path, rows: list[dict[str, str]]) -> Path:
    """`rows` as a file of the type that its name tells."""
    name = file.name.removesuffix(".gz")
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), file)
        return file
    if name.endswith(".jsonl"):
        text = "".join(json.dumps(row) + "\n" for row in rows)
    elif name.endswith(".json"):
        text = json.dumps(rows)
    else:
        plain = file.with_name("plain")
        with plain.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]), delimiter="\t" if name.endswith(".tsv") else ",")
            writer.writeheader()
            writer.writerows(rows)
        text = plain.read_bytes().decode()
        plain.unlink()
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())
    return file


@pytest.mark.parametrize(
    "name",
    ["r.jsonl", "r.jsonl.gz", "r.json", "r.json.gz", "r.csv", "r.csv.gz", "r.tsv", "r.tsv.gz", "r.parquet"],
)
def test_every_type_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, ROWS)
    assert list(raw_rows(file)) == [(f"{name} row 1", ROWS[0]), (f"{name} row 2", ROWS[1])]
    assert list(raw_rows(str(file), limit=1)) == [(f"{name} row 1", ROWS[0])]
    assert data_files(file) == [file]


def test_the_demo() -> None:
    assert len(list(raw_rows("demo"))) >= 300
    assert [file.name for file in data_files("demo")] == ["preferences.jsonl"]


def test_rows_of_jsonl_are_numbered_by_line_and_a_broken_one_does_not_hide_the_others(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\n\n{"a": \n{"a": NaN}\n' + b"[" * 100_000 + b'\n{"a": "\xff"}')
    found = dict(raw_rows(file))
    assert list(found) == [f"r.jsonl row {i}" for i in (1, 3, 4, 5, 6)]
    assert found["r.jsonl row 1"] == {"a": 1}
    for number in (3, 5):
        broken = found[f"r.jsonl row {number}"]
        assert isinstance(broken, Broken) and "not a JSON object" in broken.cause
    assert found["r.jsonl row 6"] == {"a": "\udcff"}  # refused by whoever reads the text


@pytest.mark.parametrize(
    "text",
    ['[{"a": 1}, {"a": [2]}]', ' \n[\n {"a": 1},\n {"a": [2]}\n]\n', '{"data": [{"a": 1}, {"a": [2]}]}',
     '{ "rows" : [{"a": 1}, {"a": [2]}] }', '{"a": 1}\n{"a": [2]}\n', '\n{"a": 1}\n\n{"a": [2]}'],
    ids=["array", "indented", "object", "spaced-object", "lines", "lines-with-blanks"],
)  # fmt: skip
def test_forms_of_json(tmp_path: Path, text: str) -> None:
    file = tmp_path / "r.json"
    file.write_text(text)
    assert [row for _, row in raw_rows(file)] == [{"a": 1}, {"a": [2]}]


LEAVES = st.none() | st.booleans() | st.integers() | st.text()
VALUES = st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=9)


@settings(deadline=None, max_examples=50)
@given(rows=st.lists(VALUES), chunk=st.integers(1, 9), indent=st.none() | st.integers(0, 2))
def test_an_array_that_is_read_in_chunks_is_the_array(
    tmp_path_factory: pytest.TempPathFactory, rows: list[object], chunk: int, indent: int | None
) -> None:
    file = tmp_path_factory.mktemp("chunks") / "r.json"
    file.write_text(json.dumps(rows, indent=indent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rlhf_ray.data.text_rows._CHUNK", chunk)
        assert [row for _, row in json_rows(file)] == rows == json.loads(file.read_text())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[{"a": 1}, {"a": }]', "row 2 is not JSON"),
        ('[{"a": 1} {"a": 2}]', "row 1 must be followed by a comma"),
        ('[{"a": 1}', "row 1 must be followed by a comma or the closing bracket"),
        ('[{"a": 1}] x', "nothing may follow"),
        ("[" * 100_000, "nested too deeply"),
        ('{"data": [{"a": 1}], "more": 2}', "remove its other keys"),
        ('{"prompt": "a"}', "one object a line in .jsonl"),
        ("3", "must be a list of objects"),
        ("", "is empty"),
        ("[]", "is empty"),
    ],
)
def test_damaged_json(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "r.json"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        list(raw_rows(file, key="data.heldout_path"))
    assert says in str(caught.value) and str(file) in str(caught.value)
    assert str(caught.value).startswith("data.heldout_path: ")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("r.txt", b"x", "must end in .jsonl"),
        ("r.jsonl", b"\n \n", "is empty"),
        ("r.csv", b"", "is empty"),
        ("r.csv", b"prompt,chosen\n", "is empty"),
        ("r.csv", b"prompt,prompt\na,b\n", "must name each column once"),
        ("r.csv", b'a,b\n1,2\n3,"4\n', "line 3: unexpected end of data"),
        ("r.jsonl.gz", b"text", "cannot be read as gzipped JSON lines"),
        ("r.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 10_000)[:-9], "cannot be read as gzipped JSON lines"),
        ("r.parquet", b"PAR1 no", "cannot be read as Parquet"),
        ("r.parquet", b"", "cannot be read as Parquet"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        list(raw_rows(file))
    assert says in str(caught.value) and str(file) in str(caught.value)


def test_a_missing_file_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.path: file .*none\.jsonl does not exist"):
        raw_rows(tmp_path / "none.jsonl")


def test_a_csv_record_of_the_wrong_length_is_one_bad_row(tmp_path: Path) -> None:
    file = tmp_path / "r.csv"
    file.write_text("prompt,chosen\na,b\nc\nd,e,f\n\ng,h\n")
    found = [row for _, row in raw_rows(file)]
    assert found[0] == {"prompt": "a", "chosen": "b"} and found[3] == {"prompt": "g", "chosen": "h"}
    assert [row.cause for row in found if isinstance(row, Broken)] == [
        "has 1 cells for 2 columns", "has 3 cells for 2 columns"
    ]  # fmt: skip


def test_the_index_that_pandas_writes_does_no_harm(tmp_path: Path) -> None:
    file = tmp_path / "r.csv"
    file.write_text(",prompt\n0,a\n1,b\n")
    assert [row for _, row in raw_rows(file)] == [{"": "0", "prompt": "a"}, {"": "1", "prompt": "b"}]


def test_a_folder_is_all_its_files_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.csv", "sub/c.parquet", ".hidden/d.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, ROWS[:1])
    (tmp_path / "README.md").write_text("no data")
    (tmp_path / "dataset_infos.json").write_text("{}")
    assert [where for where, _ in raw_rows(tmp_path)] == ["a.csv row 1", "b.jsonl row 1", "sub/c.parquet row 1"]
    assert [file.name for file in data_files(tmp_path)] == ["a.csv", "b.jsonl", "c.parquet"]


@pytest.mark.parametrize(
    ("names", "split", "wanted"),
    [
        (["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet", "data/test-00000-of-00001.parquet"],
         "train", ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]),
        (["data/train_prefs-00000-of-00001.parquet", "data/test_prefs-00000-of-00001.parquet"],
         "test_prefs", ["data/test_prefs-00000-of-00001.parquet"]),
        (["train.jsonl", "test.jsonl"], "test", ["test.jsonl"]),
        (["train/0.parquet", "validation/0.parquet"], "train", ["train/0.parquet"]),
    ],
)  # fmt: skip
def test_names_that_tell_the_split(tmp_path: Path, names: list[str], split: str, wanted: list[str]) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, ROWS)
    assert [file.relative_to(tmp_path).as_posix() for file in data_files(tmp_path, split)] == wanted
    with pytest.raises(UserError, match=r"has no split other; set data\.split to one of"):
        data_files(tmp_path, "other")


def test_folders_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x.arrow").write_text("")
    with pytest.raises(UserError, match=r"holds no file ending in .*to_parquet"):
        raw_rows(tmp_path)
    write(tmp_path / "train.jsonl", ROWS)
    write(tmp_path / "more.jsonl", ROWS)
    with pytest.raises(UserError, match=r"also more\.jsonl, whose name tells no split"):
        raw_rows(tmp_path)


def test_hub_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_hub_id("owner/name") and not is_hub_id("owner/name.csv") and not is_hub_id("./name")
    asked: dict[str, object] = {}

    def load_dataset(name: str, **options: object) -> list[dict[str, str]]:
        asked.update(options, name=name)
        return ROWS if options["split"] == "train" else []

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert list(raw_rows("owner/name")) == [("owner/name row 1", ROWS[0]), ("owner/name row 2", ROWS[1])]
    assert asked == {"name": "owner/name", "split": "train", "streaming": True} and data_files("owner/name") == []
    with pytest.raises(UserError, match=r"owner/name \(split test\) is empty"):
        list(raw_rows("owner/name", "test"))


def test_a_hub_id_without_a_network() -> None:
    with pytest.raises(UserError, match=r"owner/none-such \(split train\) .* cannot be loaded from the hub"):
        list(raw_rows("owner/none-such"))


@pytest.mark.parametrize("name", ["r.jsonl", "r.json", "r.csv"])
def test_rows_before_the_damage_come_first(tmp_path: Path, name: str) -> None:
    file = write(tmp_path / name, [{"a": f"{i}" * 50, "b": "x"} for i in range(5_000)])
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] + b'"' + content[len(content) // 2 :] + b'"')
    rows = raw_rows(file)
    assert len(list(islice(rows, 1_000))) == 1_000


@pytest.mark.parametrize("name", ["r.jsonl", "r.jsonl.gz", "r.json", "r.csv", "r.parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    def peak(rows: int) -> int:
        file = write(tmp_path / name, [{"a": f"{i:04}" * 200, "b": "x"} for i in range(rows)])
        list(raw_rows(file, limit=1))  # imports
        return measured(lambda: sum(1 for _ in raw_rows(file)))

    small, large = peak(1_000), peak(8_000)
    assert large < 1.5 * small + 100_000 and large < 2_500_000  # the large file has 6.5 MB of text


def measured(work: Callable[[], object]) -> int:
    """The peak bytes of Python objects that `work` needed."""
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("inside", [False, True], ids=["flat", "in a list"])
def test_a_column_whose_values_are_made_by_code_is_refused(tmp_path: Path, inside: bool) -> None:
    """Ray Data, which Ray Train imports, registers such a type: its values are unpickled when they are read."""
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType
    from ray.data.extensions import ArrowPythonObjectArray

    column = ArrowPythonObjectArray.from_objects(["harmless", "here"])
    if inside:
        kind = pa.list_(pa.field("item", ArrowPythonObjectType()))
        column = pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), column, type=kind)
    pq.write_table(pa.table({"prompt": column}), tmp_path / "r.parquet")
    with pytest.raises(UserError, match="prompt is of an extension type"):
        list(raw_rows(tmp_path / "r.parquet"))
