"""Directories that appear whole or not at all, and that can prove that they are still whole.

A commit is written into a hidden directory, every file is flushed to the disk, a manifest with the SHA-256 and size of
every file is added, and one `rename` makes it visible. Whoever resumes trusts the manifest, never a pointer alone: a
crash between the rename and the pointer leaves a good commit that the pointer does not name yet.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

MANIFEST = "manifest.json"
LATEST = "latest"
_TEMPORARY = ".tmp-"
_DAMAGED = ".damaged"


@dataclass(frozen=True, slots=True)
class Commit:
    """A commit that verified. `skipped` says, one sentence each, why newer ones were passed over."""

    path: Path
    meta: dict[str, object]
    skipped: list[str] = field(default_factory=list)


def commit_directory(parent: Path, name: str, write: Callable[[Path], None], meta: Mapping[str, object]) -> Path:
    """Calls `write(folder)` and makes what it wrote durable as `parent/name`; returns that path.

    `meta` (JSON values, finite numbers) is kept in the manifest. Raises `FileExistsError` if the name is taken,
    `TypeError` or `ValueError` if `meta` is not JSON, and `ValueError` if `write` leaves a symbolic link, a special
    file or a `manifest.json` of its own.
    """
    return finish_commit(begin_commit(parent, name, meta), write)


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A commit that is being written, in `folder`; the only one of its parent."""

    folder: Path
    final: Path
    meta_text: str


def begin_commit(parent: Path, name: str, meta: Mapping[str, object]) -> Unfinished:
    """The first half of `commit_directory`: an empty folder, after everything that can be wrong with name and meta."""
    meta_text = json.dumps(meta, allow_nan=False)
    parent.mkdir(parents=True, exist_ok=True)
    final = parent / name
    if name.startswith(".") or name in (MANIFEST, LATEST) or Path(name).name != name or name.endswith(_DAMAGED):
        raise ValueError(f"{name!r} cannot be the name of a commit")
    if final.exists():
        raise FileExistsError(f"{final} exists already; a commit is never overwritten")
    forget_unfinished(parent)
    folder = parent / f"{_TEMPORARY}{name}"
    folder.mkdir()
    return Unfinished(folder, final, meta_text)


def finish_commit(commit: Unfinished, write: Callable[[Path], object]) -> Path:
    """The second half: `write(folder)`, or wait there for those who write, and all that makes it durable."""
    folder, parent = commit.folder, commit.folder.parent
    try:
        write(folder)
        _seal(folder, commit.meta_text)
        os.rename(folder, commit.final)
    except Exception:
        shutil.rmtree(folder, ignore_errors=True)  # a full disk needs the space back now, not at the next commit
        raise
    _fsync(parent)
    _point(parent, commit.final.name)
    return commit.final


def unfinished(parent: Path) -> str | None:
    """The name of the commit that is being written, if one is."""
    return next((path.name.removeprefix(_TEMPORARY) for path in parent.glob(f"{_TEMPORARY}*") if path.is_dir()), None)


def fork_commit(source: Path, parent: Path) -> Path:
    """Makes the commit at `source` one of `parent` too, by `link`; returns the copy's path.

    `ValueError` if a byte of it is not as it was committed, `FileExistsError` if `parent` has that step already.
    """
    problems = verify(source)
    if problems:
        raise ValueError(f"{source} cannot be copied: {'; '.join(problems)}")

    def copy(folder: Path) -> None:
        skip = shutil.ignore_patterns(MANIFEST)
        shutil.copytree(source, folder, copy_function=link, dirs_exist_ok=True, ignore=skip)

    return commit_directory(parent, source.name, copy, _read_manifest(source)[1])


def link(source: str | Path, target: str | Path) -> None:
    """A hard link, or a copy where there can be none: on another disk."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def newest_first(parent: Path) -> list[Path]:
    """All commits of `parent` by their names, good or not; not those that were set aside."""
    if not parent.is_dir():
        return []
    named = [p for p in parent.iterdir() if p.is_dir() and not p.name.startswith(".") and p.suffix != _DAMAGED]
    return sorted(named, key=lambda path: path.name, reverse=True)


@dataclass(frozen=True, slots=True)
class Damage:
    """A commit that does not verify, and why."""

    path: Path
    problems: list[str]

    def __str__(self) -> str:
        return f"{self.path.name} is damaged and was not used: {'; '.join(self.problems)}"


def newest_good(parent: Path, below: str | None = None) -> tuple[Commit | None, list[Damage]]:
    """The newest commit (by name) that verifies, or None, and the damaged ones that are newer, newest first. With
    `below`, of those whose name comes before it."""
    damaged: list[Damage] = []
    for path in newest_first(parent):
        if below is not None and path.name >= below:
            continue
        problems = verify(path)
        if not problems:
            return Commit(path, _read_manifest(path)[1], [str(damage) for damage in damaged]), damaged
        damaged.append(Damage(path, problems))
    return None, damaged


def latest_commit(parent: Path) -> Commit | None:
    """The newest commit (by name) whose manifest verifies, or None; the damaged ones passed over are in `skipped`."""
    return newest_good(parent)[0]


def verify(path: Path) -> list[str]:
    """What is wrong with the commit at `path`, one phrase a problem; empty if every byte is as committed."""
    try:
        expected, _ = _read_manifest(path)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{MANIFEST} cannot be trusted ({error})"]
    problems: list[str] = []
    found: set[str] = set()
    try:
        for file in _plain_files(path):
            name = file.relative_to(path).as_posix()
            if name == MANIFEST:
                continue
            found.add(name)
            if name not in expected:
                problems.append(f"{name} is not in the manifest")
            elif file.stat().st_size != expected[name][1]:
                problems.append(f"{name} has {file.stat().st_size} bytes instead of {expected[name][1]}")
            elif file_sha256(file) != expected[name][0]:
                problems.append(f"{name} does not have the SHA-256 it was committed with")
    except (OSError, ValueError) as error:
        problems.append(str(error))
    return problems + [f"{name} is missing" for name in sorted(expected.keys() - found)]


def prune(parent: Path, keep: int, worth: str | None = None, sealed: Path | None = None) -> list[Path]:
    """Deletes all but the `keep` newest commits, and the one whose meta has the highest `worth`, the newest if several
    have; returns what was deleted.

    If none of the kept ones verifies, the newest good one among the others stays too; if none is good at all, nothing
    is deleted. `sealed` is the newest commit if the caller has made it just now: it is not read a second time.
    """
    if keep < 1:
        raise ValueError(f"keep = {keep}: at least one commit must stay")
    commits = newest_first(parent)
    kept, rest = commits[:keep], commits[keep:]
    if not rest:
        return []
    forget_unfinished(parent)
    good = sealed or next((path for path in kept + rest if not verify(path)), None)
    if good is None:
        return []
    best = _best(commits, worth) if worth else None
    doomed = [path for path in rest if path not in (good, best)]
    for path in doomed:
        hidden = parent / f"{_TEMPORARY}{path.name}"
        os.rename(path, hidden)  # so that a crash in the middle never leaves half a commit under its name
        shutil.rmtree(hidden)
    return doomed


def _best(commits: list[Path], worth: str) -> Path | None:
    """Of `commits`, the newest first."""
    found: dict[Path, float] = {}
    for path in commits:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            value = _read_manifest(path)[1].get(worth)
            if isinstance(value, int | float):
                found[path] = float(value)
    return max(found, key=found.__getitem__, default=None)


def set_aside(path: Path) -> Path:
    """Renames a damaged commit so that its name is free again and nobody resumes from it; returns the new path."""
    target, number = path.with_name(path.name + _DAMAGED), 1
    while target.exists():
        number += 1
        target = path.with_name(f"{path.name}.{number}{_DAMAGED}")
    os.rename(path, target)
    _fsync(path.parent)
    return target


def replace_file(path: Path, text: str) -> None:
    """Writes `text` as the whole content of `path`: after a crash the file holds the old text or the new one."""
    temporary = path.with_name(f"{_TEMPORARY}{path.name}")
    temporary.write_text(text, encoding="utf-8")
    _fsync(temporary)
    os.replace(temporary, path)
    _fsync(path.parent)


def _point(parent: Path, name: str) -> None:
    replace_file(parent / LATEST, name + "\n")


def _seal(folder: Path, meta_text: str) -> None:
    """Flushes every file and adds the manifest."""
    if (folder / MANIFEST).exists():
        raise ValueError(f"{MANIFEST} at the top of a commit is reserved")
    files: dict[str, dict[str, object]] = {}
    for file in _plain_files(folder):
        _fsync(file)
        files[file.relative_to(folder).as_posix()] = {"sha256": file_sha256(file), "size": file.stat().st_size}
    body: dict[str, object] = {"files": files, "meta": json.loads(meta_text)}
    body["sha256"] = _digest(body)
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps(body, indent=1, sort_keys=True, allow_nan=False), encoding="utf-8")
    _fsync(manifest)
    for directory, _, _ in os.walk(folder, topdown=False):
        _fsync(Path(directory))


def _read_manifest(path: Path) -> tuple[dict[str, tuple[str, int]], dict[str, object]]:
    """`{file: (sha256, size)}` and the meta; raises `ValueError` if the manifest is not the one that was committed."""
    raw: object = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(raw, dict):
        raise ValueError("not a JSON object")
    claimed = raw.pop("sha256", None)
    files, meta = raw.get("files"), raw.get("meta")
    if claimed != _digest(raw) or not isinstance(files, dict) or not isinstance(meta, dict):
        raise ValueError("its own SHA-256 does not match")
    return {str(name): (str(facts["sha256"]), int(facts["size"])) for name, facts in files.items()}, meta


def _digest(body: Mapping[str, object]) -> str:
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def _plain_files(folder: Path) -> Iterator[Path]:
    for directory, subdirectories, names in os.walk(folder):
        for name in sorted(names + subdirectories):
            path = Path(directory, name)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise ValueError(f"{path.relative_to(folder)} is a link or a special file, not plain data")
            if path.is_file():
                yield path


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def forget_unfinished(parent: Path) -> None:
    """Removes what a killed writer left; only one process writes into `parent`. What ranks of a dead controller still
    write to goes at the next call."""
    for path in parent.glob(f"{_TEMPORARY}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
