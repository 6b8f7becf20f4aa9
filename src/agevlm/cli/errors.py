"""Turns an exception into the line that a person reads. The rooms say what is wrong; this only puts it on one line."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

_WORKER_TRACEBACK = "Original Traceback (most recent call last)"
_BESIDE = re.compile(r"\.([^/]+?)\.[0-9a-f]{16,20}\.part")  # what `write_beside` calls a file until it is whole
_FULL_DISK = ("no space left on device", "os error 28", "os error 27", "disk quota exceeded", "file too large")
_TORCH_SAVE = ("pytorchstreamwriter failed", "inline_container.cc")  # its only reason is a disk that takes no more
_LONGEST = 1000  # characters of a line


def explain(error: BaseException) -> list[str]:
    """Say what went wrong, one line for each thing that is wrong: wrong keys of a recipe have a line each.

    Errors that are not the user's (anything but ValueError and OSError) keep the name of their class. A file that was
    being written goes by the name that it would have had. Halves of letters, which no terminal takes, are escaped.
    """
    return [_printable(_shortened(_BESIDE.sub(r"\1", line))) for line in _lines(error)]


def _printable(line: str) -> str:
    return line.encode("utf-8", "backslashreplace").decode("utf-8")


def _shortened(line: str) -> str:
    half = _LONGEST // 2
    return line if len(line) <= _LONGEST else f"{line[:half]} … {line[-half:]}"


def _lines(error: BaseException) -> list[str]:
    if any(_is_full_disk(link) for link in _chain(error)):
        return [_full_disk(error)]
    if (lines := _pydantic_lines(error) or _yaml_lines(error)) is not None:
        return lines
    if isinstance(error, MemoryError):
        return ["the memory does not suffice: give less at once (smaller batches, pictures or files)"]
    if isinstance(error, OSError) and error.strerror:
        return [_os_error(error)]
    if isinstance(error, ValueError) and not isinstance(error, UnicodeError):
        return [" ".join(line.split()) for line in _text(error).splitlines() if line.strip()]
    return [f"{type(error).__name__}: {_one_line(error)} (run it again with --debug to see where)"]


def _chain(error: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__ or link.__context__


def _text(error: BaseException) -> str:
    text = str(error)
    if _WORKER_TRACEBACK in text:  # a data worker's error comes wrapped in its own traceback
        last = [line for line in text.splitlines() if line and not line.startswith(" ")][-1]
        text = last.split(": ", 1)[-1]
    return text if text.strip() else "no message"


def _one_line(error: BaseException) -> str:
    return " ".join(_text(error).split())


def _is_full_disk(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    if isinstance(error, ValueError):
        return False
    words = (*_FULL_DISK, *_TORCH_SAVE) if isinstance(error, RuntimeError) else _FULL_DISK
    return any(part in str(error).lower() for part in words)


def _full_disk(error: BaseException) -> str:
    names = [link.filename for link in _chain(error) if isinstance(link, OSError) and link.filename]
    place = f"where {os.fspath(names[0])} is written" if names else "where the output is written"
    return f"no space left on the disk {place}: free some or choose another --out; what was written before is whole"


def _os_error(error: OSError) -> str:
    name = os.fspath(error.filename) if error.filename is not None else None
    advice = {
        errno.ENOENT: "there is no such file or directory: check the path",
        errno.EACCES: "permission denied: change its rights or choose another path",
        errno.EPERM: "permission denied: change its rights or choose another path",
        errno.EROFS: "the file system is read-only: choose another path",
        errno.EISDIR: "this is a directory, and a file was expected",
        errno.ENOTDIR: "a part of this path is a file, and a directory was expected",
        errno.EEXIST: "it exists already: remove it or choose another path",
    }.get(error.errno or 0, error.strerror)
    return f"{name}: {advice}" if name else str(advice)


def _pydantic_lines(error: BaseException) -> list[str] | None:
    from pydantic import ValidationError

    if not isinstance(error, ValidationError):
        return None
    lines = []
    for detail in error.errors(include_url=False):
        key = ".".join(str(part) for part in detail["loc"]) or error.title
        lines.append(f"{key}: {detail['msg'].lower()}, got {detail['input']!r}")
    return lines


def _yaml_lines(error: BaseException) -> list[str] | None:
    from yaml import MarkedYAMLError, YAMLError

    if not isinstance(error, YAMLError):
        return None
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return [f"not YAML: {_one_line(error)}"]
    mark = error.problem_mark
    return [f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}: not YAML: {error.problem}"]
