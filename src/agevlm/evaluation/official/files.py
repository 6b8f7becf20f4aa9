"""The files of a benchmark: tables of Parquet, JSON, JSON lines, TSV and CSV, and the pictures that rows name.

A directory is read as it lies there; a hub id is fetched, when it is named and only then. Pictures inside Parquet stay
there until they are asked for. A file that is damaged is left out and says so.
"""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from agevlm.data.images import ImageError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_TABLES = (".parquet", ".json", ".jsonl", ".tsv", ".csv")
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_SHOWN_COLUMNS, _SHOWN_TABLES = 8, 4
_END_BYTES = 1 << 15  # of a file: so much of its head and of its tail is looked at to know it again

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Picture:
    """A picture that a question is about; `read` gives its file or its bytes, None where it is missing.

    `fingerprint` tells it from another of the same name, by no more than the ends of a file.
    """

    name: str
    read: Callable[[], Path | bytes] | None
    fingerprint: Callable[[], str] = lambda: ""


@dataclass(frozen=True)
class Table:
    """The rows of one file, in order, and the names of their columns; or the `problem` why it cannot be read."""

    path: Path
    columns: tuple[str, ...]
    rows: Sequence[Row]
    problem: str = ""

    def described(self) -> str:
        """The file and its columns, or what is wrong with it, for errors."""
        if self.problem or (self.columns and not self.rows):
            return f"{self.path.name} ({self.problem or 'no rows'})"
        more = ", …" if len(self.columns) > _SHOWN_COLUMNS else ""
        return f"{self.path.name} ({', '.join(self.columns[:_SHOWN_COLUMNS]) or 'no table'}{more})"


@dataclass(frozen=True)
class Embedded:
    """A picture in row `row` of a Parquet file, not yet read."""

    path: Path
    column: str
    group: int
    row: int

    def read(self) -> bytes:
        """Its bytes. A cell without any is an `ImageError`."""
        cell = _column(self.path, self.group, self.column)[self.row].as_py()
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes):
            message = f"the cell of column {self.column!r} holds no picture; take the file from its source again"
            raise ImageError(str(self.path), "cell without a picture", message)
        return data

    def fingerprint(self) -> str:
        """The file's, and where in it."""
        return f"{_fingerprint(self.path)}/{self.column}/{self.group}/{self.row}"


@dataclass
class Source:
    """A directory of a benchmark's files. `images` is where else picture files lie; `revision` that of the hub."""

    root: Path
    images: Path | None = None
    revision: str | None = None
    _known: dict[str, list[Path]] | None = field(default=None, repr=False)

    @cached_property
    def tables(self) -> list[Table]:
        """Every table below the root, in the order of their paths. A damaged one has a `problem` and no columns."""
        if self.root.is_file():
            return [_read(self.root)]
        paths = sorted(p for p in self.root.rglob("*") if p.suffix.lower() in _TABLES and not _hidden(p, self.root))
        return [_read(path) for path in paths]

    @property
    def damaged(self) -> list[str]:
        """The files that cannot be read, each with the reason."""
        return [table.described() for table in self.tables if table.problem]

    def described(self) -> str:
        """What was found, for errors: damaged files first."""
        found = [table.described() for table in sorted(self.tables, key=lambda table: not table.problem)]
        return "; ".join(found[:_SHOWN_TABLES]) + ("; …" if len(found) > _SHOWN_TABLES else "") or "no table at all"

    def documents(self) -> dict[Path, Any]:
        """The JSON files that are one object and no table, as COCO's annotations are."""
        found = {}
        for table in self.tables:
            if table.path.suffix.lower() == ".json" and not table.columns and not table.problem:
                found[table.path] = json.loads(table.path.read_text(encoding="utf-8"))
        return found

    def file(self, name: str) -> Path | None:
        """The file called `name` below the root; None where there is none."""
        root = self.root if self.root.is_dir() else self.root.parent
        return next(iter(sorted(root.rglob(name))), None)

    def picture(self, cell: Any, name: str | None = None) -> Picture:
        """The picture that a cell means: one in the table, base64 text, or the name of a file."""
        if isinstance(cell, Embedded):
            place = f"{cell.path.parent.name}/{cell.path.name}, group {cell.group}, row {cell.row}"
            return Picture(name or place, cell.read, cell.fingerprint)
        if isinstance(cell, bytes):
            return Picture(name or f"{len(cell)} bytes", lambda: cell, lambda: _short_hash(cell))
        text = "" if cell is None else str(cell)
        if len(text) > 255 and not text.lower().endswith(_PICTURES):
            known = _short_hash(text.encode())
            return Picture(name or f"base64 {known}", lambda: _decoded(text), lambda: known)
        found = self._find(text)
        if found is None:
            return Picture(name or text or "a picture without a name", None)
        return Picture(name or text, lambda: found, lambda: _fingerprint(found))

    def _find(self, name: str) -> Path | None:
        """The file that shares most of its last folders with `name`; None where it may be another picture.

        A file in other folders is taken only where no other name of the tables fits it as well, and where no folder
        with pictures is called as that of `name`. Of several that fit, all must be the same, by `_fingerprint`.
        """
        wanted = Path(name).parts
        files = self._files.get(wanted[-1], []) if wanted else []
        most = max((_shared(path.parts, wanted) for path in files), default=0)
        found = [path for path in files if _shared(path.parts, wanted) == most]
        if most < len(wanted):
            others = self._names.get(wanted[-1], set()) - {wanted}
            if any(_shared(path.parts, other) >= most for path in found for other in others):
                return None
            if most == 1 and wanted[-2] in self._folders:
                return None
        return found[0] if found and (len(found) == 1 or len(set(map(_fingerprint, found))) == 1) else None

    @cached_property
    def _names(self) -> dict[str, set[tuple[str, ...]]]:
        """The names of pictures in all tables, as parts of a path, by the last of them."""
        found: dict[str, set[tuple[str, ...]]] = defaultdict(set)
        for cell in (cell for table in self.tables for row in table.rows for cell in row.values()):
            if isinstance(cell, str) and cell[-5:].lower().endswith(_PICTURES) and (parts := Path(cell).parts):
                found[parts[-1]].add(parts)
        return found

    @cached_property
    def _folders(self) -> set[str]:
        return {path.parent.name for paths in self._files.values() for path in paths}

    @property
    def _files(self) -> dict[str, list[Path]]:
        if self._known is None:
            self._known = defaultdict(list)
            for root in (self.root if self.root.is_dir() else self.root.parent, self.images):
                for path in sorted(root.absolute().rglob("*")) if root is not None else ():
                    if path.suffix.lower() in _PICTURES:
                        self._known[path.name].append(path)
        return self._known


def open_source(data: str | Path, images: str | Path | None = None) -> Source:
    """What `data` means: a directory or a file that exists, or a data set of the hub, "organisation/name[@revision]".

    Neither, and a data set that cannot be had, are ValueErrors.
    """
    folder = Path(images) if images is not None else None
    if folder is not None and not folder.is_dir():
        raise ValueError(f"{folder} is no directory of pictures: name one that exists")
    if Path(data).exists():
        return Source(Path(data), folder)
    if not _HUB_ID.fullmatch(str(data)):
        raise ValueError(f"no benchmark data {str(data)!r}: expected a directory, a file, or a hub id such as org/name")
    name, _, revision = str(data).partition("@")
    root = _fetched(name, revision or None)
    return Source(root, folder, revision=root.name)


def _fetched(name: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    patterns = [f"*{suffix}" for suffix in (*_TABLES, *_PICTURES, ".txt")]
    try:
        return Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=patterns))
    except Exception as error:  # no network, no such data set, no right to it: the hub's client has an error for each
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise ValueError(
            f"the data set {name!r} cannot be had from the hub ({reason}): "
            "check the name and the network, or name a directory that holds its files"
        ) from error


# What a damaged file makes its parser raise; pyarrow's errors are of these kinds.
_DAMAGES = (ValueError, TypeError, LookupError, OSError, NotImplementedError, RecursionError, csv.Error)


def _hidden(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _shared(path: Sequence[str], wanted: Sequence[str]) -> int:
    """How many of the last parts of two paths are the same."""
    same = 0
    for one, other in zip(reversed(path), reversed(wanted), strict=False):
        if one != other:
            break
        same += 1
    return same


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=False)
    except (binascii.Error, ValueError) as error:
        message = f"its {len(text)} characters are no base64; take the file from its source again"
        raise ImageError("a picture in a table", "broken base64", message) from error


def _short_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


def _fingerprint(path: Path) -> str:
    """A file's size and a hash of its ends."""
    facts = path.stat()
    return _ends(path, facts.st_size, facts.st_mtime_ns)


@lru_cache(maxsize=256)
def _ends(path: Path, num_bytes: int, _age: int) -> str:
    with path.open("rb") as file:
        head = file.read(_END_BYTES)
        file.seek(max(num_bytes - _END_BYTES, 0))
        return f"{num_bytes}-{_short_hash(head + file.read(_END_BYTES))}"


def _read(path: Path) -> Table:
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            return _parquet(path)
        if suffix in (".tsv", ".csv"):
            return _delimited(path, "\t" if suffix == ".tsv" else ",")
        return _table(path, _json_rows(path))
    except _DAMAGES as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        return Table(path, (), (), f"cannot be read as {suffix[1:]}: {reason:.200}")


def _table(path: Path, rows: Iterable[Any]) -> Table:
    rows = list(rows)
    if not rows or not all(isinstance(row, dict) for row in rows):
        return Table(path, (), ())
    columns = [name for name in rows[0] if all(name in row for row in rows)]
    return Table(path, tuple(columns), rows)


def _json_rows(path: Path) -> list[Any]:
    """A JSON list, or a JSON value a line; one object alone is no table."""
    text = path.read_text(encoding="utf-8").strip()
    if text.startswith("["):
        return list(json.loads(text))
    lines = [line for line in text.split("\n") if line.strip()]
    try:
        rows = [json.loads(line) for line in lines]
    except ValueError:
        json.loads(text)  # an object over many lines; what is neither is an error
        return []
    return rows if len(rows) > 1 or path.suffix.lower() == ".jsonl" else []


def _delimited(path: Path, delimiter: str) -> Table:
    csv.field_size_limit(sys.maxsize)  # base64 pictures are long
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter=delimiter)
        columns = tuple(reader.fieldnames or ())
        rows = [{name: value for name, value in row.items() if value is not None} for row in reader if _is_filled(row)]
    if {"index", "image"} <= set(columns):  # VLMEvalKit: a picture may stand in another row
        pictures = {row["index"]: row["image"] for row in rows if "image" in row and "index" in row}
        rows = [row | {"image": pictures.get(row["image"], row["image"])} if "image" in row else row for row in rows]
    return Table(path, columns, rows)


def _is_filled(row: Mapping[Any, Any]) -> bool:
    return any(value and not (isinstance(value, str) and value.isspace()) for value in row.values())


def _parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(path)
    schema = file.schema_arrow
    pictures = [name for name in schema.names if _holds_bytes(schema.field(name).type, pa)]
    rows: list[Row] = []
    for group in range(file.num_row_groups):
        plain = file.read_row_group(group, [name for name in schema.names if name not in pictures])
        found = plain.to_pylist() if plain.num_columns else [{} for _ in range(file.metadata.row_group(group).num_rows)]
        rows += [
            row | {name: Embedded(path, name, group, number) for name in pictures} for number, row in enumerate(found)
        ]
    return Table(path, tuple(schema.names), rows)


def _holds_bytes(kind: Any, pa: Any) -> bool:
    """Whether a column is a picture: bytes, or the hub's struct of bytes and path."""
    binary = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    return binary or (pa.types.is_struct(kind) and any(kind.field(i).name == "bytes" for i in range(kind.num_fields)))


@lru_cache(maxsize=4)
def _column(path: Path, group: int, column: str) -> Any:
    import pyarrow.parquet as pq

    return pq.ParquetFile(path).read_row_group(group, [column]).column(0).combine_chunks()
