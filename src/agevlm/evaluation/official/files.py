"""The files of a benchmark: tables of Parquet, JSON, JSON lines, TSV and CSV, and the pictures that rows name.

A directory is read as it lies there; a hub id is fetched, when it is named and only then. Pictures inside Parquet stay
there until they are asked for.
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

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")
_TABLES = (".parquet", ".json", ".jsonl", ".tsv", ".csv")
_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_SHOWN_COLUMNS = 8

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Picture:
    """A picture that a question is about; `read` gives its file or its bytes, None where it is missing."""

    name: str
    read: Callable[[], Path | bytes] | None


@dataclass(frozen=True)
class Table:
    """The rows of one file, in order, and the names of their columns."""

    path: Path
    columns: tuple[str, ...]
    rows: Sequence[Row]

    def described(self) -> str:
        """The file and its columns, for errors."""
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
        """Its bytes. A cell without any is a ValueError."""
        cell = _column(self.path, self.group, self.column)[self.row].as_py()
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes):
            raise ValueError(f"{self.path}: the cell of column {self.column!r} holds no picture")
        return data


@dataclass
class Source:
    """A directory of a benchmark's files. `images` is where else picture files lie; `revision` that of the hub."""

    root: Path
    images: Path | None = None
    revision: str | None = None
    _known: dict[str, list[Path]] | None = field(default=None, repr=False)

    @cached_property
    def tables(self) -> list[Table]:
        """Every table below the root, in the order of their paths. A file that is damaged is a ValueError."""
        if self.root.is_file():
            return [_read(self.root)]
        paths = sorted(p for p in self.root.rglob("*") if p.suffix.lower() in _TABLES and not _hidden(p, self.root))
        return [_read(path) for path in paths]

    def documents(self) -> dict[Path, Any]:
        """The JSON files that are one object and no table, as COCO's annotations are."""
        found = {}
        for table in self.tables:
            if table.path.suffix.lower() == ".json" and not table.columns:
                found[table.path] = json.loads(table.path.read_text(encoding="utf-8"))
        return found

    def file(self, name: str) -> Path | None:
        """The file called `name` below the root; None where there is none."""
        root = self.root if self.root.is_dir() else self.root.parent
        return next(iter(sorted(root.rglob(name))), None)

    def picture(self, cell: Any, name: str | None = None) -> Picture:
        """The picture that a cell means: one in the table, base64 text, or the name of a file."""
        if isinstance(cell, Embedded):
            return Picture(
                name or f"{cell.path.parent.name}/{cell.path.name}, group {cell.group}, row {cell.row}", cell.read
            )
        if isinstance(cell, bytes):
            return Picture(name or f"{len(cell)} bytes", lambda: cell)
        text = str(cell)
        if len(text) > 255 and not text.lower().endswith(_PICTURES):
            return Picture(name or f"base64 {hashlib.sha256(text.encode()).hexdigest()[:12]}", lambda: _decoded(text))
        found = self._find(text)
        return Picture(name or text, None if found is None else lambda: found)

    def _find(self, name: str) -> Path | None:
        """The file that shares most of its last folders with `name`; the first by its path where several do."""
        wanted = Path(name).parts
        return max(self._files.get(wanted[-1], []), key=lambda path: _shared(path.parts, wanted), default=None)

    @property
    def _files(self) -> dict[str, list[Path]]:
        if self._known is None:
            self._known = defaultdict(list)
            for root in (self.root if self.root.is_dir() else self.root.parent, self.images):
                for path in sorted(root.rglob("*")) if root is not None else ():
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
        raise ValueError(
            f"a picture of {len(text)} characters is no base64: take the file from its source again"
        ) from error


def _read(path: Path) -> Table:
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            return _parquet(path)
        if suffix in (".tsv", ".csv"):
            return _delimited(path, "\t" if suffix == ".tsv" else ",")
        return _table(path, _json_rows(path))
    except (ValueError, csv.Error, OSError) as error:
        raise ValueError(f"{path} cannot be read as {suffix[1:]} ({error}): take it from its source again") from error


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
        table = _table(path, csv.DictReader(file, delimiter=delimiter))
    if not {"index", "image"} <= set(table.columns):
        return table
    pictures = {row["index"]: row["image"] for row in table.rows}  # VLMEvalKit: a picture may stand in another row
    return Table(
        path, table.columns, [{**row, "image": pictures.get(row["image"], row["image"])} for row in table.rows]
    )


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
