"""Files that are whole or not there: everything the project writes goes through `write_beside`."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def read_json_lines(path: str | Path) -> list[Any]:
    """The values of a file of JSON lines. A text may hold other line ends of Unicode's: only \\n ends a line."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n") if line.strip()]


def check_replaceable(out: str | Path, marker: str, sign: str) -> None:
    """Refuse, with a ValueError, to put a directory of our own in the place of anything else.

    What may be replaced is nothing, an empty directory, or one with the file `marker` in whose head `sign` stands: what
    an earlier run has written.
    """
    out = Path(out).resolve()
    if Path.cwd().is_relative_to(out):
        raise ValueError(f"{out} is where you are, and would be replaced as a whole; choose another")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file, and would be lost; choose another")
    if out.is_dir() and any(out.iterdir()) and not _has_sign(out / marker, sign):
        raise ValueError(f"{out} is not empty and has no {marker} of ours: it would be lost; choose another")


def _has_sign(path: Path, sign: str) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return sign.encode() in file.read(4096)


@contextmanager
def write_beside(path: str | Path) -> Iterator[Path]:
    """Give a temporary path next to `path`, and move what was written there onto `path` at the end.

    The body may write a file or make a directory. When it fails, the temporary is removed and what stood at `path`
    stays as it was; a directory is replaced by renaming, so that `path` is never half-written. A link is followed.
    A file in the place of a directory is no directory: NotADirectoryError.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield beside
        _replace(beside, path)
    finally:
        _remove(beside)


def _replace(source: Path, target: Path) -> None:
    if not source.is_dir() or not target.exists():
        os.replace(source, target)
        return
    if not target.is_dir():
        raise NotADirectoryError(f"{target} is a file; a directory is to be written there")
    old = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.old")
    os.replace(target, old)
    try:
        os.replace(source, target)
    except BaseException:
        os.replace(old, target)
        raise
    _remove(old)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
