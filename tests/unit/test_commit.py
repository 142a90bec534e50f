"""Commits are whole or absent: killed at every call, flipped at every byte."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_ray.rundir import commit as commit_module
from rlhf_ray.rundir.commit import commit_directory, fork_commit, latest_commit, prune, set_aside, verify


class Killed(BaseException):
    """Stands for the process dying: no `except Exception` may tidy up after it."""


def write(content: str) -> Callable[[Path], None]:
    def into(folder: Path) -> None:
        (folder / "policy").mkdir()
        (folder / "policy" / "weights.bin").write_text(content * 100)
        (folder / "state.json").write_text("{}")

    return into


def kill_at(monkeypatch: pytest.MonkeyPatch, fatal: int | None, how: BaseException | None = None) -> list[str]:
    """Counts the durable operations; dies, or raises `how`, instead of doing number `fatal` (0-based). Returns the
    log."""
    log: list[str] = []

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def shim(*args: object) -> None:
            if len(log) == fatal:
                log.append("the fatal one")
                raise how or Killed
            target = os.readlink(f"/proc/self/fd/{args[0]}") if name == "fsync" else str(args[0])
            log.append(f"{name} {target}")
            real(*args)

        monkeypatch.setattr(os, name, shim)

    for name in ("fsync", "rename", "replace"):
        wrap(name)
    return log


def test_a_commit_returns_its_meta_and_verifies(tmp_path: Path) -> None:
    meta = {"step": 10, "beta": 0.1, "by_rank": {10: 1, 2: 3}}
    path = commit_directory(tmp_path, "step-000010", write("a"), meta)
    commit = latest_commit(tmp_path)
    assert commit is not None
    assert (commit.path, commit.skipped, verify(path)) == (tmp_path / "step-000010", [], [])
    assert commit.meta == {"step": 10, "beta": 0.1, "by_rank": {"10": 1, "2": 3}}
    assert (tmp_path / "latest").read_text() == "step-000010\n"
    assert latest_commit(tmp_path / "absent") is None


def test_killed_at_every_call_the_old_or_the_new_commit_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        log = kill_at(patch, None)
        commit_directory(tmp_path / "count", "step-000002", write("b"), {"step": 2})
    rename = next(index for index, line in enumerate(log) if line.startswith("rename"))
    assert len(log) > 8
    for fatal in range(len(log)):
        parent = tmp_path / f"killed-{fatal}"
        commit_directory(parent, "step-000001", write("a"), {"step": 1})
        with monkeypatch.context() as patch, pytest.raises(Killed):
            kill_at(patch, fatal)
            commit_directory(parent, "step-000002", write("b"), {"step": 2})
        found = latest_commit(parent)
        assert found is not None
        assert found.meta == {"step": 2 if fatal > rename else 1}
        assert found.skipped == []
        assert verify(found.path) == []
        if fatal <= rename:
            commit_directory(parent, "step-000002", write("b"), {"step": 2})
            assert sorted(p.name for p in parent.iterdir()) == ["latest", "step-000001", "step-000002"]


def test_everything_is_on_the_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = kill_at(monkeypatch, None)
    commit_directory(tmp_path, "step-000001", write("a"), {})
    rename = next(index for index, line in enumerate(log) if line.startswith("rename"))
    hidden = tmp_path / ".tmp-step-000001"
    flushed = {line.removeprefix("fsync ") for line in log[:rename]}
    names = ("", "/policy", "/policy/weights.bin", "/state.json", "/manifest.json")
    assert flushed == {f"{hidden}{name}" for name in names}
    assert log[rename + 1] == f"fsync {tmp_path}"
    assert log[-2].startswith("replace") and log[-1] == f"fsync {tmp_path}"


def test_a_flipped_bit_anywhere_refuses_the_commit(tmp_path: Path) -> None:
    commit_directory(tmp_path, "step-000001", write("a"), {"step": 1})
    path = commit_directory(tmp_path, "step-000002", write("b"), {"step": 2, "beta": 0.125})
    for file in (path / "policy" / "weights.bin", path / "state.json", path / "manifest.json"):
        whole = file.read_bytes()
        for position in range(0, len(whole), max(1, len(whole) // 60)):
            flipped = bytearray(whole)
            flipped[position] ^= 1
            file.write_bytes(flipped)
            problems = verify(path)
            if file.name == "manifest.json" and whole[position : position + 1].isspace():
                file.write_bytes(whole)
                continue  # the layout of the manifest means nothing
            assert problems and file.name in problems[0], (file, position)
        commit = latest_commit(tmp_path) if problems else None
        file.write_bytes(whole)
        if commit is not None:
            assert commit.meta == {"step": 1}
            assert commit.skipped[0].startswith("step-000002 is damaged")
    assert verify(path) == []


def test_missing_extra_and_shortened_files_are_named(tmp_path: Path) -> None:
    path = commit_directory(tmp_path, "step-000001", write("a"), {})
    (path / "extra.bin").write_text("x")
    (path / "state.json").unlink()
    (path / "policy" / "weights.bin").write_text("a")
    assert sorted(verify(path)) == [
        "extra.bin is not in the manifest",
        "policy/weights.bin has 1 bytes instead of 100",
        "state.json is missing",
    ]
    assert latest_commit(tmp_path) is None


def test_a_name_is_never_overwritten_and_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    commit_directory(tmp_path, "step-000001", write("a"), {})
    with pytest.raises(FileExistsError, match="never overwritten"):
        commit_directory(tmp_path, "step-000001", write("b"), {})

    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        commit_directory(tmp_path, "step-000002", fail, {})
    with pytest.raises(ValueError, match="link"):
        commit_directory(tmp_path, "step-000002", lambda folder: (folder / "l").symlink_to("/etc/hostname"), {})
    with pytest.raises(ValueError, match="JSON compliant"):
        commit_directory(tmp_path, "step-000002", write("b"), {"loss": float("nan")})
    for name in ("../up", ".hidden", "latest", "x.damaged"):
        with pytest.raises(ValueError, match="cannot be the name"):
            commit_directory(tmp_path, name, write("b"), {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-000001"]


def test_prune_keeps_the_newest_and_never_the_last_good_one_goes(tmp_path: Path) -> None:
    for step in range(1, 6):
        commit_directory(tmp_path, f"step-{step:06d}", write("a"), {"step": step})
    assert [p.name for p in prune(tmp_path, 3)] == ["step-000002", "step-000001"]
    for step in (4, 5):
        (tmp_path / f"step-{step:06d}" / "state.json").write_text("broken")
    assert prune(tmp_path, 2) == []
    commit = latest_commit(tmp_path)
    assert commit is not None and commit.meta == {"step": 3} and len(commit.skipped) == 2
    (tmp_path / "step-000003" / "state.json").write_text("broken")
    assert prune(tmp_path, 1) == []
    with pytest.raises(ValueError, match="keep = 0"):
        prune(tmp_path, 0)


def test_what_was_sealed_just_now_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(1, 4):
        sealed = commit_directory(tmp_path, f"step-{step:06d}", write("a"), {"step": step})
    monkeypatch.setattr(commit_module, "verify", lambda path: pytest.fail(f"{path.name} was read"))
    assert [p.name for p in prune(tmp_path, 1, sealed=sealed)] == ["step-000002", "step-000001"]


def test_a_damaged_commit_set_aside_frees_its_name(tmp_path: Path) -> None:
    for _ in range(2):
        path = commit_directory(tmp_path, "step-000001", write("a"), {})
        set_aside(path)
    assert latest_commit(tmp_path) is None
    assert sorted(p.name for p in tmp_path.glob("*.damaged")) == ["step-000001.2.damaged", "step-000001.damaged"]


def test_a_fork_is_a_commit_of_its_own(tmp_path: Path) -> None:
    """It stays when the original goes, and a damaged original is not copied."""
    source = commit_directory(tmp_path / "donor", "step-000002", write("a"), {"step": 2})
    copy = fork_commit(source, tmp_path / "heir")
    assert not verify(copy) and (copy / "policy" / "weights.bin").samefile(source / "policy" / "weights.bin")
    commit_directory(tmp_path / "donor", "step-000004", write("b"), {"step": 4})
    prune(tmp_path / "donor", keep=1)
    found = latest_commit(tmp_path / "heir")
    assert not source.exists() and found is not None and found.path == copy and found.meta == {"step": 2}
    with pytest.raises(FileExistsError):
        fork_commit(copy, tmp_path / "heir")
    (copy / "state.json").unlink()
    with pytest.raises(ValueError, match=r"state\.json is missing"):
        fork_commit(copy, tmp_path / "third")
    assert not list((tmp_path / "third").glob("step-*"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_fails_at_any_call_leaves_the_commit_before_and_no_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    with monkeypatch.context() as patch:
        log = kill_at(patch, None)
        commit_directory(tmp_path / "count", "step-000002", write("b"), {"step": 2})
    rename = next(index for index, line in enumerate(log) if line.startswith("rename"))
    for fatal in range(len(log)):
        parent = tmp_path / f"failed-{fatal}"
        commit_directory(parent, "step-000001", write("a"), {"step": 1})
        with monkeypatch.context() as patch, pytest.raises(OSError, match=os.strerror(number)):
            kill_at(patch, fatal, OSError(number, os.strerror(number)))
            commit_directory(parent, "step-000002", write("b"), {"step": 2})
        found = latest_commit(parent)
        assert found is not None and found.meta == {"step": 2 if fatal > rename else 1} and found.skipped == []
        if fatal <= rename:
            assert sorted(p.name for p in parent.iterdir()) == ["latest", "step-000001"], "the space is free again"
            commit_directory(parent, "step-000002", write("b"), {"step": 2})


def test_a_full_disk_while_the_weights_are_written(tmp_path: Path) -> None:
    def full(folder: Path) -> None:
        write("b")(folder)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    commit_directory(tmp_path, "step-000001", write("a"), {"step": 1})
    with pytest.raises(OSError, match="No space left"):
        commit_directory(tmp_path, "step-000002", full, {"step": 2})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["latest", "step-000001"]


def test_the_best_commit_stays_beside_the_newest(tmp_path: Path) -> None:
    worth: dict[int, float | str] = {1: 0.1, 2: 0.9, 3: "0.95", 4: 0.9, 5: 0.3, 6: 0.2, 7: 0.4}
    for step, value in worth.items():
        commit_directory(tmp_path, f"step-{step:06d}", write("a"), {"worth": value})
        prune(tmp_path, 2, "worth")
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-000004", "step-000006", "step-000007"]
