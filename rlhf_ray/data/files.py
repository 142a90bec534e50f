"""Rows of data files, one at a time: JSONL, JSON, CSV, TSV, Parquet, a folder of them, or a data set of the hub."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from rlhf_ray.data.text_rows import csv_rows, json_rows, jsonl_rows
from rlhf_ray.errors import UserError

DEMO = Path(__file__).parent / "demo"
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".json.gz", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
_NOT_HUB = {*SUFFIXES, ".txt", ".gz", ".zip", ".yaml", ".yml", ".arrow", ".tar"}
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}")
_SPLITS = {"train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "heldout"}
_METADATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_PARQUET_ROWS = 256


def is_hub_id(path: str) -> bool:
    """True for `owner/name` that is neither a local path nor looks like a file."""
    return bool(_HUB_ID.fullmatch(path)) and not Path(path).exists() and Path(path).suffix not in _NOT_HUB


def data_files(path: str | Path, split: str = "train", *, key: str = "data.path") -> list[Path]:
    """The local files behind `path`, sorted; none for a hub id. `demo` is the package's own preferences.

    Of a folder all files count, those in its subfolders too; if their names tell the split they hold (`train.jsonl`,
    `data/train-00000-of-00002.parquet`, `train/0.parquet`), those of `split`. Raises `UserError`, beginning with the
    config key `key`, for a path that is missing or of an unknown type.
    """
    if is_hub_id(str(path)):
        return []
    found = DEMO / "preferences.jsonl" if str(path) == "demo" else Path(path).expanduser()
    if found.is_dir():
        return _files_of_folder(found, split, key)
    if not found.exists():
        raise UserError(f"{key}: file {path} does not exist (nor is it a hub id of the form owner/name)")
    if not found.name.endswith(SUFFIXES):
        raise UserError(f"{key}: file {path} must end in {', '.join(SUFFIXES)}; convert or rename it")
    return [found]


def raw_rows(
    path: str | Path, split: str = "train", limit: int | None = None, *, key: str = "data.path"
) -> Iterator[tuple[str, object]]:
    """`(where, row)` of the first `limit` rows, each read when it is asked for.

    `where` is for people: "name.jsonl row 3", counted from 1 (the line of a JSONL file, the record of a CSV file). A
    row is what JSON or Parquet say, a dictionary of strings from CSV, or `Broken`. Raises `UserError` naming the file
    and the fix: at once if the file is missing or of an unknown type, while reading if it is corrupt or empty.
    """
    files = data_files(path, split, key=key)
    if not files:
        return islice(_hub_rows(str(path), split, key), limit)
    folder = Path(path).expanduser()
    return islice(_rows_of_files(files, folder if folder.is_dir() else None, key), limit)


def _rows_of_files(files: list[Path], folder: Path | None, key: str) -> Iterator[tuple[str, object]]:
    for file in files:
        name = file.relative_to(folder).as_posix() if folder else file.name
        empty = True
        for number, row in _rows_of_file(file, key):
            empty = False
            yield f"{name} row {number}", row
        if empty:
            raise UserError(f"{key}: file {file} is empty; write rows into it or remove it")


def _rows_of_file(file: Path, key: str) -> Iterator[tuple[int, object]]:
    """The numbered rows of one file; whatever its reader raises becomes a `UserError` that names the file."""
    from pyarrow import ArrowException  # type: ignore[import-untyped]  # pyarrow ships no types

    kind = file.name.removesuffix(".gz").rsplit(".", 1)[-1]
    try:
        if kind == "parquet":
            yield from _parquet_rows(file)
        elif kind == "jsonl":
            yield from jsonl_rows(file)
        elif kind == "json":
            yield from json_rows(file)
        else:
            yield from csv_rows(file, "\t" if kind == "tsv" else ",")
    except (OSError, EOFError, zlib.error, ValueError, ArrowException) as error:
        name = {"jsonl": "JSON lines", "parquet": "Parquet"}.get(kind, kind.upper())
        packed = "gzipped " if file.suffix == ".gz" else ""
        raise UserError(
            f"{key}: file {file} cannot be read as {packed}{name}: {error or type(error).__name__}; repair the file or "
            "write it again"
        ) from error


def _parquet_rows(file: Path) -> Iterator[tuple[int, object]]:
    import pyarrow.parquet as pq  # type: ignore[import-untyped]  # pyarrow ships no types

    number = 0
    with pq.ParquetFile(file, pre_buffer=False, buffer_size=2**20) as table:  # not a whole row group
        for field in table.schema_arrow:
            if _is_extension(field.type):
                raise ValueError(f"column {field.name} is of an extension type, which can run code when it is read")
        for batch in table.iter_batches(batch_size=_PARQUET_ROWS):
            for row in batch.to_pylist():
                number += 1
                yield number, row


def _is_extension(kind: Any) -> bool:
    """Whether a Python class makes the values, at any depth. Ray Data registers one that unpickles them."""
    import pyarrow as pa

    if isinstance(kind, pa.ExtensionType):
        return True
    inner = [kind.value_type] if pa.types.is_dictionary(kind) else [kind.field(i).type for i in range(kind.num_fields)]
    return any(map(_is_extension, inner))


def _hub_rows(name: str, split: str, key: str) -> Iterator[tuple[str, object]]:
    import datasets  # type: ignore[import-untyped]  # datasets ships no types

    number = 0
    try:
        for number, row in enumerate(datasets.load_dataset(name, split=split, streaming=True), start=1):
            yield f"{name} row {number}", row
    except Exception as error:  # the hub client raises a dozen unrelated types; all mean "not available"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{key}: {name} (split {split}) is not a local file and cannot be loaded from the hub: {reason}; check the "
            "name, the split and the network, or give a local file"
        ) from error
    if not number:
        raise UserError(f"{key}: {name} (split {split}) is empty; choose another split")


def _files_of_folder(folder: Path, split: str, key: str) -> list[Path]:
    inside = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
    usable = [file for file in inside if file.name.endswith(SUFFIXES) and file.name not in _METADATA]
    files = sorted(file for file in usable if not any(part.startswith(".") for part in file.parts))
    if not files:
        arrow = "; write its Arrow files again with to_parquet" if any(f.suffix == ".arrow" for f in inside) else ""
        raise UserError(f"{key}: folder {folder} holds no file ending in {', '.join(SUFFIXES)}{arrow}")
    splits = {file: _split_of(file) for file in files}
    named = sorted({name for name in splits.values() if name})
    if not named:
        return [folder / file for file in files]
    nameless = next((file for file in files if splits[file] is None), None)
    if nameless:
        raise UserError(
            f"{key}: folder {folder} has files of the split {named[0]} and also {nameless.as_posix()}, whose name "
            "tells no split; rename it, or give one file instead of the folder"
        )
    chosen = [folder / file for file in files if splits[file] == split]
    if not chosen:
        setting = f"{key.rsplit('.', 1)[0]}.split"
        raise UserError(f"{key}: folder {folder} has no split {split}; set {setting} to one of {', '.join(named)}")
    return chosen


def _split_of(file: Path) -> str | None:
    """The split that a file's name or folder tells, e.g. `train` for `data/train-00000-of-00001.parquet`."""
    stem = file.name.split(".")[0]
    shard = _SHARD.fullmatch(stem)
    if shard:
        return shard[1]
    return next((part for part in (stem, *reversed(file.parts[:-1])) if part in _SPLITS), None)
