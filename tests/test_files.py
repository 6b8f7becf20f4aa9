"""`write_beside`: a file or directory is whole or as it was, whatever happens on the way."""

from __future__ import annotations

import errno
import json
import os
import platform
import time
import zlib
from pathlib import Path

import pytest

from agevlm.files import _start, check_replaceable, inside, read_json_lines, recover, write_beside

FAILURES = [OSError(errno.ENOSPC, "No space left on device"), ValueError("a bad record"), KeyboardInterrupt()]


def contents(directory: Path) -> dict[str, str]:
    return {str(p.relative_to(directory)): p.read_text() for p in directory.rglob("*") if p.is_file()}


def test_a_new_file_and_its_parents_appear(tmp_path: Path) -> None:
    with write_beside(tmp_path / "a" / "b.txt") as beside:
        beside.write_text("new")
        assert not (tmp_path / "a" / "b.txt").exists()
    assert contents(tmp_path) == {"a/b.txt": "new"}


def test_the_temporary_lies_in_the_same_directory_so_that_renaming_is_atomic(tmp_path: Path) -> None:
    with write_beside(tmp_path / "b.txt") as beside:
        beside.write_text("new")
        assert beside.parent == tmp_path


def test_a_file_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_text("old")
    with write_beside(tmp_path / "b.txt") as beside:
        beside.write_text("new")
    assert contents(tmp_path) == {"b.txt": "new"}


def test_a_directory_is_replaced_whole(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stale.txt").write_text("old")
    with write_beside(tmp_path / "run") as beside:
        beside.mkdir()
        (beside / "fresh.txt").write_text("new")
    assert contents(tmp_path) == {"run/fresh.txt": "new"}


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path: Path, failure: BaseException) -> None:
    (tmp_path / "b.txt").write_text("old")
    with pytest.raises(type(failure)), write_beside(tmp_path / "b.txt") as beside:
        beside.write_text("ne")
        raise failure
    assert contents(tmp_path) == {"b.txt": "old"}


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_a_failure_leaves_the_old_directory_and_nothing_else(tmp_path: Path, failure: BaseException) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model.txt").write_text("old")
    with pytest.raises(type(failure)), write_beside(tmp_path / "run") as beside:
        beside.mkdir()
        (beside / "model.txt").write_text("ne")
        raise failure
    assert contents(tmp_path) == {"run/model.txt": "old"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_directory_in_the_place_of_a_file_is_kept(tmp_path: Path) -> None:
    (tmp_path / "b.txt").mkdir()
    (tmp_path / "b.txt" / "inside.txt").write_text("old")
    with pytest.raises(OSError, match=r"b\.txt"), write_beside(tmp_path / "b.txt") as beside:
        beside.write_text("new")
    assert contents(tmp_path) == {"b.txt/inside.txt": "old"}


def test_only_a_newline_ends_a_line_of_json(tmp_path: Path) -> None:
    records = [{"answer": text} for text in ("a", "b\u2028c", "d\u0085e", "f\u2029")]
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    assert read_json_lines(path) == records
    from agevlm.training.trainer import read_log

    assert read_log(path) == records


def test_a_directory_never_takes_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("years of work")
    with pytest.raises(NotADirectoryError, match=r"notes\.md is a file"), write_beside(tmp_path / "notes.md") as beside:
        beside.mkdir()
        (beside / "a.txt").write_text("new")
    assert contents(tmp_path) == {"notes.md": "years of work"}


def test_behind_a_link_its_target_is_replaced_and_nothing_is_left_beside(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "a.txt").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    with write_beside(tmp_path / "link") as beside:
        beside.mkdir()
        (beside / "b.txt").write_text("new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["disk", "link"]
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "disk") == {"b.txt": "new"}


def test_what_may_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sign = ("dataset.json", '"format": "agevlm"')
    check_replaceable(tmp_path / "new", *sign)
    check_replaceable(tmp_path, *sign)
    (tmp_path / "dataset.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match=r"no dataset\.json of ours"):
        check_replaceable(tmp_path, *sign)
    with pytest.raises(ValueError, match=r"dataset\.json is a file"):
        check_replaceable(tmp_path / "dataset.json", *sign)
    (tmp_path / "dataset.json").write_text('{\n "format": "agevlm"}')
    check_replaceable(tmp_path, *sign)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="is where you are"):
        check_replaceable(".", *sign)


def leave(directory: Path, name: str, kind: str, pid: int = 999_999_9) -> Path:
    """What a process left that was killed while it wrote `name`."""
    host = f"{zlib.crc32(platform.node().encode()) & 0xFFFF:04x}"
    path = directory / f".{name}.{host}{pid:06x}abcdef.{kind}"
    path.mkdir()
    (path / "rows").write_text(kind)
    return path


def test_what_a_killed_writer_left_is_cleared_away_by_the_next(tmp_path: Path) -> None:
    leave(tmp_path, "data", "part")
    other = leave(tmp_path, "other", "part")
    with write_beside(tmp_path / "data") as beside:
        beside.write_text("new")
    assert contents(tmp_path) == {"data": "new", f"{other.name}/rows": "part"}


def test_what_stood_there_gets_its_name_back_after_a_kill_between_two_renames(tmp_path: Path) -> None:
    leave(tmp_path, "data", "old")
    leave(tmp_path, "data", "part")
    recover(tmp_path)
    assert contents(tmp_path) == {"data/rows": "old"}
    leave(tmp_path, "data", "old")  # killed after both: the new one stays
    recover(tmp_path)
    assert contents(tmp_path) == {"data/rows": "old"}


def test_what_somebody_still_writes_stays(tmp_path: Path) -> None:
    own = leave(tmp_path, "data", "part", os.getpid())
    elsewhere = leave(tmp_path, "data", "part").rename(tmp_path / ".data.000000000fabcdef.part")
    recover(tmp_path)
    assert own.exists() and elsewhere.exists()
    recover(tmp_path, anybodys=True)
    assert not own.exists() and not elsewhere.exists()


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no system tells when a process started")
def test_a_number_that_another_process_has_by_now_keeps_nothing(tmp_path: Path) -> None:
    def left(start: str) -> Path:
        path = leave(tmp_path, "data", "old", os.getpid())
        return path.rename(path.with_name(path.name.replace("abcdef", f"{start}abcdef")))

    own = left(_start(os.getpid()))
    recover(tmp_path)
    assert own.exists()
    own.rename(own.with_name(own.name.replace(_start(os.getpid()), f"{int(_start(os.getpid()), 16) ^ 1:04x}")))
    recover(tmp_path)
    assert contents(tmp_path) == {"data/rows": "old"}


def test_a_name_that_has_long_been_missing_is_given_back_whoever_took_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = leave(tmp_path, "data", "old").rename(tmp_path / ".data.000000000fabcdef.old")
    recover(tmp_path)
    assert elsewhere.exists()  # its writer may be between two renames
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    recover(tmp_path)
    assert contents(tmp_path) == {"data/rows": "old"}


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", ".."])
def test_names_of_others_stay_in_their_directory(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--allow-outside"):
        inside(tmp_path, name)
    assert inside(tmp_path, name, allow_outside=True) == tmp_path / name
    assert inside(tmp_path, "a/../b/..c.png") == tmp_path / "a/../b/..c.png"


@pytest.mark.parametrize("name", ["", "a\0b", "\udcff.png", "a" * 300])
def test_what_is_no_file_name_is_said_to_be_none(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no file name"):
        inside(tmp_path, name, allow_outside=True)
