"""Rows of text files (JSON lines, JSON, CSV, TSV; each also gzipped), one in memory at a time."""

from __future__ import annotations

import csv
import gzip
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

_CHUNK = 2**16
_MAX_ROW = 64 * 2**20  # characters: what is longer is no row but a missing newline, bracket or quote
_BLANK = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True, slots=True)
class Broken:
    """Stands for a row that is there but cannot be read, while those after it can. `shapes.parse` refuses it."""

    cause: str
    fix: str


def jsonl_rows(file: Path) -> Iterator[tuple[int, object]]:
    """`(line, row)` of the lines that are not blank; a line that is not JSON has a `Broken` row."""
    with _open(file) as text:
        for number, line in enumerate(iter(lambda: text.readline(_MAX_ROW), ""), start=1):
            if len(line) == _MAX_ROW:
                raise ValueError(f"line {number} is longer than {_MAX_ROW} characters")
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                row = Broken(f"not a JSON object ({error})", "write one object a line")
            yield number, row


def json_rows(file: Path) -> Iterator[tuple[int, object]]:
    """`(position, row)` of the elements of a JSON array, which may be the only value of an object (`{"data": [...]}`).

    A file of several objects, one a line, is read as JSON lines. `ValueError` if the text is none of these.
    """
    with _open(file) as text:
        stream = _Stream(text)
        first = stream.peek()
        if first == "[":
            yield from _elements(stream)
            stream.expect("", "nothing may follow the list of rows")
    if first == "{" and _has_lines(file):
        yield from jsonl_rows(file)
    elif first not in ("[", ""):
        yield from _only_list(file)


def csv_rows(file: Path, delimiter: str) -> Iterator[tuple[int, object]]:
    """`(record, row)` of the records after the header, counted from 1; all values are strings.

    A record with more or fewer cells than the header has a `Broken` row. `ValueError` names the line of a quote that is
    not closed, and a header that names a column twice. A column without a name, as pandas writes its index, is "".
    """
    csv.field_size_limit(_MAX_ROW)
    with _open(file) as text:
        records = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            names = [name.strip() for name in next(records, [])]
            if len(set(names)) < len(names):
                raise ValueError(f"its first line must name each column once (it reads {', '.join(names)[:200]})")
            for number, cells in enumerate(filter(None, records), start=1):
                if len(cells) == len(names):
                    yield number, dict(zip(names, cells, strict=True))
                else:
                    problem = f"has {len(cells)} cells for {len(names)} columns"
                    yield number, Broken(problem, "put cells that contain separators in quotes")
        except csv.Error as error:
            raise ValueError(f"line {records.line_num}: {error}") from None


def _open(file: Path) -> TextIO:
    # Bytes that are no UTF-8 become lone surrogates, which are refused with the row they stand in.
    if file.suffix == ".gz":
        return gzip.open(file, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="")
    return file.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _has_lines(file: Path) -> bool:
    """True if the first line that is not blank is a whole JSON value and another line follows."""
    with _open(file) as text:
        lines = iter(lambda: text.readline(_MAX_ROW), "")
        try:
            json.loads(next(line for line in lines if line.strip()))
        except (ValueError, RecursionError):
            return False
        return any(line.strip() for line in lines)


def _only_list(file: Path) -> Iterator[tuple[int, object]]:
    hint = "it must be a list of objects, or an object with such a list as its only value"
    with _open(file) as text:
        stream = _Stream(text)
        stream.expect("{", hint)
        if stream.peek() != '"':
            raise ValueError(hint)
        stream.value("the key")
        stream.expect(":", hint)
        if stream.peek() != "[":
            raise ValueError(f"{hint}; end the name of a file with one object a line in .jsonl")
        yield from _elements(stream)
        stream.expect("}", "after its list of rows the object must end; remove its other keys")
        stream.expect("", "nothing may follow the object with the rows")


def _elements(stream: _Stream) -> Iterator[tuple[int, object]]:
    stream.expect("[", "the list of rows must begin")
    number = 0
    while stream.peek() != "]":
        if number:
            stream.expect(",", f"row {number} must be followed by a comma or the closing bracket")
        number += 1
        yield number, stream.value(f"row {number}")
    stream.expect("]", "the list of rows must end")


class _Stream:
    """JSON text of any length, of which little more than the current value is in memory."""

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self._buffer = ""
        self._position = 0
        self._ended = False
        self._decoder = json.JSONDecoder()

    def peek(self) -> str:
        """The next character that is not blank, or "" at the end."""
        while True:
            blank = _BLANK.match(self._buffer, self._position)
            self._position = blank.end() if blank else self._position
            if self._position < len(self._buffer):
                return self._buffer[self._position]
            if not self._read(_CHUNK):
                return ""

    def expect(self, character: str, hint: str) -> None:
        """Steps over `character` ("": the end), or raises `ValueError` with `hint`."""
        found = self.peek()
        if found != character:
            raise ValueError(f"{hint} (found {found!r})" if found else f"{hint} (the file ends)")
        self._position += len(character)

    def value(self, name: str) -> object:
        """The next whole value; `ValueError` calls it `name`."""
        self.peek()
        size = _CHUNK
        while True:
            value: object = None
            problem = ""
            end = len(self._buffer)
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._position)
            except json.JSONDecodeError as error:
                problem = error.msg
            except RecursionError:
                raise ValueError(f"{name} is nested too deeply") from None
            # A value that ends where the buffer ends may go on: 12 may be the beginning of 123.
            if not problem and (end < len(self._buffer) or self._ended):
                self._position = end
                return value
            if len(self._buffer) - self._position > _MAX_ROW:
                raise ValueError(f"{name} is not JSON, or longer than {_MAX_ROW} characters")
            if not self._read(size) and problem:
                raise ValueError(f"{name} is not JSON ({problem})")
            size *= 2

    def _read(self, size: int) -> bool:
        chunk = self._text.read(size)
        self._buffer = self._buffer[self._position :] + chunk
        self._position = 0
        self._ended = not chunk
        return bool(chunk)
