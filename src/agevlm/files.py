"""Files that are whole or not there: everything the project writes goes through `write_beside`.

What is being written goes by a hidden name that says which process writes it, so that whoever comes next can tell what
a killed one has left.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import shutil
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from agevlm.documents import is_text

_MAX_NAME_BYTES = 255  # of a file or a directory
# .NAME.….part while it is written, .NAME.….old what stood at NAME while the new one takes its place; between the dots a
# host, a process, when it started, and chance (older releases: without its start, and before that chance alone)
_BESIDE = re.compile(
    r"\.(?P<name>.+)\.((?P<host>[0-9a-f]{4})(?P<pid>[0-9a-f]{6})(?P<start>[0-9a-f]{4})?[0-9a-f]{6}|[0-9a-f]{8})"
    r"\.(?P<kind>part|old)",
    re.DOTALL,
)
_BETWEEN_RENAMES_S = 60.0  # far more than a directory goes without its name while it is replaced


def read_json_lines(path: str | Path) -> list[Any]:
    """The values of a file of JSON lines. A text may hold other line ends of Unicode's: only \\n ends a line."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").split("\n") if line.strip()]


def inside(root: str | Path, name: str, allow_outside: bool = False) -> Path:
    """The path of a file that somebody else's data names, below `root`.

    A name that leads out of `root` (absolute, or by ..) is a ValueError unless `allow_outside`; where links in `root`
    lead is its owner's affair. So is a name that no file system takes.
    """
    path = Path(root) / name
    if not name or "\0" in name or not is_text(name) or max(len(n.encode()) for n in name.split("/")) > _MAX_NAME_BYTES:
        raise ValueError(f"{name[:80]!r} is no file name; correct it")
    if not allow_outside and (os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir):
        raise ValueError(
            f"{name}: leads out of {root}; put the file there, or allow it with --allow-outside (in a recipe "
            "`allow_outside: true` of the source, in Python allow_outside=True)"
        )
    return path


def check_replaceable(out: str | Path, marker: str, sign: str) -> None:
    """Refuse, with a ValueError, to put a directory of our own in the place of anything else.

    What may be replaced is nothing, an empty directory, or one with the file `marker` in whose head `sign` stands: what
    an earlier run has written. What a killed run left beside it is cleared away first, see `recover`.
    """
    out = Path(out).resolve()
    recover(out.parent, out.name)
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
    stays as it was; a directory is replaced by renaming, so that `path` is never half-written. What a killed process
    left of `path` is cleared away first, see `recover`. A link is followed.
    A file in the place of a directory is no directory: NotADirectoryError.
    """
    path = Path(path).resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    recover(path.parent, path.name)
    beside = _hidden(path, "part")
    try:
        yield beside
        _replace(beside, path)
    finally:
        _remove(beside)


def reserve(descriptor: int, num_bytes: int, path: Path) -> None:
    """Take this much of the disk, behind what an open file has; OSError, with the file's name, where there is not.

    Where a file system cannot, nothing is taken.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, os.fstat(descriptor).st_size, num_bytes)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise OSError(error.errno, error.strerror, str(path)) from error


def recover(directory: str | Path, name: str | None = None, *, anybodys: bool = False) -> None:
    """Clear away what killed writers left in a directory; what one caught between two renames gets its name back.

    Only what was to become `name`, where it is given. What a process on this machine still writes, and what one of
    another machine may, stays, unless `anybodys`: the caller knows that nobody writes there. A name that has been
    missing for a minute is given back whoever took it.
    """
    for leftover in [*_leftovers(Path(directory), "old", name, anybodys)]:
        with suppress(FileNotFoundError):  # somebody else is clearing away, too
            target = leftover.with_name(_BESIDE.fullmatch(leftover.name)["name"])  # type: ignore[index]
            if target.exists():
                _remove(leftover)
            else:
                os.replace(leftover, target)
    for leftover in [*_leftovers(Path(directory), "part", name, anybodys)]:
        _remove(leftover)


def _leftovers(directory: Path, kind: str, name: str | None, anybodys: bool) -> Iterator[Path]:
    if not directory.is_dir():
        return
    for entry in os.listdir(directory):
        found = _BESIDE.fullmatch(entry) if entry.endswith(kind) else None
        if found is not None and found["kind"] == kind and name in (None, found["name"]):
            path = directory / entry
            if anybodys or _is_left(found) or (kind == "old" and _is_missed(path, directory / found["name"])):
                yield path


def _is_left(found: re.Match[str]) -> bool:
    """Whether a process of this machine wrote it that is no more."""
    return found["host"] == _host() and not _is_alive(int(found["pid"], 16), found["start"])


def _is_missed(old: Path, target: Path) -> bool:
    try:
        return not target.exists() and time.time() - old.lstat().st_ctime > _BETWEEN_RENAMES_S
    except FileNotFoundError:
        return False


def _host() -> str:
    return f"{zlib.crc32(platform.node().encode()) & 0xFFFF:04x}"


def _start(pid: int) -> str:
    """A mark of when a process started, for another one may have its number by now; zeros where no system tells."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return f"{int(fields[19]) & 0xFFFF:04x}"
    except (OSError, ValueError, IndexError):
        return "0000"


def _is_alive(pid: int, start: str | None) -> bool:
    if os.name != "posix":
        return True  # a signal of 0 would end it
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # somebody else's
    return start is None or start == _start(pid)


def _hidden(path: Path, kind: str) -> Path:
    process = f"{os.getpid() & 0xFFFFFF:06x}{_start(os.getpid())}"
    return path.with_name(f".{path.name}.{_host()}{process}{uuid.uuid4().hex[:6]}.{kind}")


def _replace(source: Path, target: Path) -> None:
    if not source.is_dir() or not target.exists():
        os.replace(source, target)
        return
    if not target.is_dir():
        raise NotADirectoryError(f"{target} is a file; a directory is to be written there")
    old = _hidden(target, "old")
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
