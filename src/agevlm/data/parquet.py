"""The project's grounded datasets on disk: a directory of Parquet shards that other tools open too.

One row is one `Record`: a sample's pictures, its conversations with the masks of their object words, and, where known,
all annotated instances of the picture. pandas, pyarrow and `datasets.load_dataset(DIR)` read the shards; the last shows
`images` as pictures, for the schema carries the Hugging Face feature types and the directory a card.

    DIR/data-00000-of-00002.parquet …   the rows
    DIR/dataset.json                    schema version, name, shards, counts, vocabulary
    DIR/README.md                       the card

What is in the rows is decided elsewhere (`formats`, `scenes`); how a record becomes a row is in `rows.py`.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from agevlm.data.row_check import USED_BEFORE, Fault, checked_record, row_faults, schema_fault
from agevlm.data.rows import SCHEMA_VERSION, Record, arrow_schema, to_row
from agevlm.documents import NO_TEXT, first_broken_text, read_json
from agevlm.files import check_replaceable, recover, write_beside

SHARD_BYTES = 200_000_000
OWN_FILE = (
    "dataset.json",
    '"format": "agevlm"',
)  # by this file, with this in its head, ours is known
_GROUP_BYTES = 4_000_000  # a row group is what one random access reads: this many bytes of pictures
_GROUP_ROWS = 64  # or this many rows
CACHED_GROUPS = 8  # in memory at a time
DAMAGED = (pa.ArrowException, OSError, UnicodeDecodeError)  # what reading a damaged Parquet file raises

__all__ = ["OWN_FILE", "SCHEMA_VERSION", "ParquetDataset", "Record", "Summary", "read_parquet", "write_parquet"]


@dataclass
class Summary:
    """What a written dataset holds; `kinds` counts conversations by their kind, `shards` rows by file."""

    name: str
    vocabulary: list[str]
    num_samples: int = 0
    num_images: int = 0
    num_instances: int = 0
    num_conversations: int = 0
    num_groundings: int = 0
    kinds: dict[str, int] = field(default_factory=dict)
    shards: dict[str, int] = field(default_factory=dict)


def write_parquet(
    directory: str | Path,
    records: Iterable[Record],
    *,
    name: str | None = None,
    vocabulary: Sequence[str] | None = None,
    shard_bytes: int = SHARD_BYTES,
    embed_images: bool = True,
) -> Summary:
    """Write records as a dataset directory, whole or not at all, and say what it holds.

    `records` is drawn once, one row group in memory at a time. A shard ends after `shard_bytes` of pictures and masks.
    `vocabulary` (None: the categories met, in alphabetical order) names all categories of the dataset, also those in no
    picture; categories outside it are a ValueError. With `embed_images=False` pictures that are files are kept as
    absolute paths, which only readers with `allow_outside` follow. A picture that is missing, two samples of one id, no
    record at all, and a `directory` that holds anything but a dataset of ours are ValueErrors, and what stood there
    before stays.
    """
    directory = Path(directory)
    check_replaceable(directory, *OWN_FILE)
    with write_beside(directory) as beside:
        beside.mkdir()
        writer = _Writer(beside, shard_bytes, embed_images)
        try:
            for record in records:
                writer.add(record)
        finally:
            writer.end_shard()
        if not writer.tally.ids:
            raise ValueError(f"{directory}: no samples to write; an empty dataset is of no use")
        summary = writer.summary(name or directory.name, vocabulary)
        write_summary(beside, summary)
    return summary


def read_parquet(
    directory: str | Path, *, allow_outside: bool = False, share: float = 1.0, seed: int = 0
) -> ParquetDataset:
    """Open a dataset directory; see `ParquetDataset`."""
    return ParquetDataset(directory, allow_outside=allow_outside, share=share, seed=seed)


class ParquetDataset(Sequence[Record]):
    """The records of a dataset directory, read when asked for: `len`, index, slice and iterate.

    Only a few row groups are in memory at a time, so any order works and orders that stay near are faster. Pickles as
    its path. Pictures that the rows name by paths are files of the directory, or of any other with `allow_outside`. A
    directory that is missing or no dataset of ours, of another schema version, with a shard that is missing or damaged,
    is a ValueError that names it; so is a record with a fault (see `row_check.py`), and any record where two samples
    share an id.

    With a `share` below 1 it is that part of the samples, in their order, at least one: which ones, `seed` decides, and
    what a smaller share of the same seed has, a larger one has too. `summary` is of the whole dataset all the same.
    """

    def __init__(
        self, directory: str | Path, *, allow_outside: bool = False, share: float = 1.0, seed: int = 0
    ) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"share must lie in (0, 1], got {share}")
        self.directory, self.allow_outside = Path(directory), allow_outside
        self.share, self.seed = share, seed
        self.summary = _read_summary(self.directory)
        self._kept = np.arange(self.summary.num_samples)  # places in the whole dataset
        if share < 1:
            shuffled = np.random.default_rng(seed).permutation(self._kept)
            self._kept = np.sort(shuffled[: max(1, round(share * len(shuffled)))])
        self._categories = frozenset(self.summary.vocabulary)
        self._groups: list[tuple[str, int, int]] | None = None  # (shard, row group, first row) in order
        self._files: dict[str, pq.ParquetFile] = {}
        self._cache: OrderedDict[int, pa.Table] = OrderedDict()

    @property
    def name(self) -> str:
        return self.summary.name

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """All categories of the dataset, also those in none of its pictures."""
        return tuple(self.summary.vocabulary)

    def __len__(self) -> int:
        return len(self._kept)

    def __getitem__(self, index: Any) -> Any:
        """The record at an index, counted from the end where negative; a list of records for a slice."""
        if isinstance(index, slice):
            return [self[position] for position in range(*index.indices(len(self)))]
        return self._record(self.row(index))

    def row(self, index: int) -> dict[str, Any]:
        """The row at an index as it is on disk, column → value, whatever is in it."""
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"{self.directory}: no record {index}, the dataset has {len(self)}")
        place = int(self._kept[position])
        group = self._group_of(place)
        return self._values(group, self._table(group).slice(place - self._layout()[group][2], 1))

    def group_sizes(self) -> list[int]:
        """Rows of each row group, in order: what one access reads. The heads of all shards are read."""
        starts = [int(np.searchsorted(self._kept, first)) for _, _, first in self._layout()]
        return [end - start for start, end in pairwise([*starts, len(self)]) if end > start]

    def ids(self) -> list[str]:
        """The ids of all samples in order; nothing else is read."""
        return self._of_kept(name for shard in self.summary.shards for name in self._column(shard, "id", "id"))

    def categories(self) -> list[tuple[str, ...] | None]:
        """The categories of every record's instances, each once, in order; None where they are not annotated.

        Nothing else is read.
        """
        found: list[tuple[str, ...] | None] = []
        for name in self.summary.shards:
            for row in self._column(name, "instances", "instances.list.element.category"):
                met = None if row is None else tuple(dict.fromkeys(thing["category"] for thing in row if thing))
                found.append(met)
        return self._of_kept(found)

    def words(self) -> list[str] | None:
        """The categories and colours of all annotated instances, in alphabetical order; None where some are not."""
        columns = [f"instances.list.element.{name}" for name in ("category", "colour")]
        rows = (row for name in self.summary.shards for row in self._file(name).read(columns)["instances"].to_pylist())
        words: set[str] = set()
        for row in self._of_kept(rows):
            if row is None:
                return None
            words.update(word for thing in row for word in thing.values() if word)
        return sorted(words)

    def __iter__(self) -> Iterator[Record]:
        return map(self._record, self.rows())

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows as they are on disk, column → value, whatever is in them."""
        return map(self.row, range(len(self)))

    def faults(self, row: Mapping[str, Any]) -> Iterator[Fault]:
        """What is wrong with a row of the dataset: (kind, place in the row)."""
        return row_faults(row, self._categories, self.directory, self.allow_outside)

    @cached_property
    def _used_before(self) -> str | None:
        """The first id that a sample before it has, too."""
        seen: set[str] = set()
        for name in self.ids():
            if name in seen:
                return name
            seen.add(name)
        return None

    def _record(self, row: dict[str, Any]) -> Record:
        try:
            if self._used_before is not None:
                raise ValueError(f"sample {self._used_before}: {USED_BEFORE}")
            return checked_record(row, self._categories, self.directory, self.allow_outside)
        except ValueError as error:
            advice = f"`agevlm data inspect {self.directory}` names all that is wrong"
            raise ValueError(f"{self.directory}: {error}; {advice}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("directory", "allow_outside", "share", "seed")}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"ParquetDataset({str(self.directory)!r}, {len(self)} samples)"

    def _of_kept(self, values: Iterable[Any]) -> list[Any]:
        """Of a value for each sample of the whole dataset, those of the samples that are here."""
        self._layout()  # all that the summary counts are there
        every = list(values)
        return [every[place] for place in self._kept]

    def _layout(self) -> list[tuple[str, int, int]]:
        if self._groups is None:
            groups, row = [], 0
            for shard, num_rows in self.summary.shards.items():
                metadata = self._file(shard).metadata
                if metadata.num_rows != num_rows:
                    raise ValueError(
                        f"{self.directory / shard}: has {metadata.num_rows} rows, dataset.json says {num_rows}; "
                        "copy or write the dataset again"
                    )
                for group in range(metadata.num_row_groups):
                    groups.append((shard, group, row))
                    row += metadata.row_group(group).num_rows
            self._groups = groups
        return self._groups

    def _group_of(self, position: int) -> int:
        return bisect_right(self._layout(), position, key=lambda group: group[2]) - 1

    def _table(self, group: int) -> pa.Table:
        if group not in self._cache:
            self._cache[group] = self._read(group)
            if len(self._cache) > CACHED_GROUPS:
                self._cache.popitem(last=False)
        self._cache.move_to_end(group)
        return self._cache[group]

    def _read(self, group: int) -> pa.Table:
        shard, number, _ = self._layout()[group]
        try:
            table = self._file(shard).read_row_group(number, use_threads=False)
            table.validate(full=True)
        except DAMAGED as error:
            raise self._damaged(shard, error) from error
        return table

    def _values(self, group: int, row: pa.Table | pa.RecordBatch) -> dict[str, Any]:
        """The values of a table of one row."""
        try:
            values: dict[str, Any] = row.to_pylist()[0]
        except DAMAGED as error:
            raise self._damaged(self._layout()[group][0], error) from error
        return values

    def _column(self, shard: str, name: str, path: str) -> list[Any]:
        try:
            values: list[Any] = self._file(shard).read([path])[name].to_pylist()
        except (*DAMAGED, KeyError) as error:
            raise self._damaged(shard, error) from error
        return values

    def _file(self, shard: str) -> pq.ParquetFile:
        if shard not in self._files:
            path = self.directory / shard
            if not path.is_file():
                raise ValueError(f"{path}: no such shard, dataset.json names it; copy or write the dataset again")
            try:
                file = pq.ParquetFile(path, page_checksum_verification=True)
                fault = schema_fault(file.schema_arrow)
            except DAMAGED as error:
                raise self._damaged(shard, error) from error
            if fault is not None:
                raise ValueError(f"{path}: {fault}; write the dataset again")
            self._files[shard] = file
        return self._files[shard]

    def _damaged(self, shard: str, error: Exception) -> ValueError:
        fault = " ".join(str(error).split())[:200]
        return ValueError(
            f"{self.directory / shard}: the shard cannot be read ({fault}); copy or write the dataset again"
        )


def _read_summary(directory: Path) -> Summary:
    if not directory.is_dir():
        recover(directory.parent, directory.name)
    if not directory.is_dir():
        raise ValueError(f"{directory}: no such dataset directory; make one with `agevlm data coco`")
    path = directory / "dataset.json"
    if not path.is_file():
        raise ValueError(
            f"{directory}: holds no dataset.json, so it is no agevlm dataset; give the directory that has it"
        )
    content = read_json(path, "copy or write the dataset again")
    if not isinstance(content, dict) or content.pop("format", None) != "agevlm":
        raise ValueError(f'{path}: does not say "format": "agevlm"; it is not one of our datasets')
    version = content.pop("schema_version", None)
    if type(version) is not int or version != SCHEMA_VERSION:
        raise ValueError(
            f"{path}: schema version {str(version)[:60]}, this agevlm reads version {SCHEMA_VERSION}; "
            "write the dataset again with this agevlm, or read it with the one that wrote it"
        )
    summary = _summary_of(content, path)
    num_rows = sum(summary.shards.values())
    if summary.num_samples < 1 or num_rows != summary.num_samples or min(summary.shards.values()) < 0:
        raise ValueError(f"{path}: {summary.num_samples} samples in shards of {num_rows} rows; write the dataset again")
    return summary


def _summary_of(content: dict[str, Any], path: Path) -> Summary:
    """The summary that a file holds; ValueError where a field is missing or another one's, or a shard is elsewhere."""
    try:
        summary = Summary(**content)
    except TypeError as error:
        raise ValueError(f"{path}: its fields are not those of a dataset ({error}); write the dataset again") from error
    for name, value in vars(summary).items():
        if not _fits(value, getattr(Summary("", []), name)):
            raise ValueError(f"{path}: its {name} is {value!r:.60}; write the dataset again")
    if (text := first_broken_text(content)) is not None:
        raise ValueError(f"{path}: {text[:80]!r} has {NO_TEXT}; write the dataset again")
    _check_vocabulary(summary.vocabulary, str(path))
    elsewhere = [shard for shard in summary.shards if Path(shard).name != shard or "\0" in shard]
    if elsewhere:
        raise ValueError(f"{path}: names the shard {elsewhere[0][:80]!r}; shards lie beside it, by their plain names")
    return summary


def _check_vocabulary(names: Sequence[str], where: str) -> None:
    twice = [name for name, number in Counter(names).items() if number > 1]
    if twice or not all(name.strip() for name in names):
        fault = f"the category {twice[0]!r:.60} twice" if twice else "a category without a name"
        raise ValueError(f"{where}: its vocabulary has {fault}; give each its own")


def _fits(value: Any, example: Any) -> bool:
    """Whether a value is text, a count, texts or counts by name, as its example is."""
    if isinstance(example, dict):
        return isinstance(value, dict) and all(_fits(number, 0) for number in value.values())
    if isinstance(example, list):
        return isinstance(value, list) and all(isinstance(text, str) for text in value)
    return type(value) is type(example) and (isinstance(value, str) or value >= 0)


class Tally:
    """What records hold, counted as they come: ids, kinds of conversation, categories."""

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.categories: Counter[str] = Counter()

    def add(self, record: Record) -> None:
        """Count a record. An id that was there before is a ValueError."""
        sample = record.sample
        if sample.id in self.ids:
            raise ValueError(f"two samples have the id {sample.id!r}; ids must be unique in a dataset")
        self.ids.add(sample.id)
        instances = record.annotated.instances if record.annotated else ()
        self.counts["num_samples"] += 1
        self.counts["num_images"] += len(sample.images)
        self.counts["num_instances"] += len(instances)
        self.counts["num_conversations"] += len(sample.conversations)
        self.counts["num_groundings"] += sum(len(conversation.groundings) for conversation in sample.conversations)
        self.categories.update(instance.category for instance in instances)
        self.kinds.update(conversation.kind for conversation in sample.conversations)

    def merge(self, other: Tally) -> None:
        """Add what was counted elsewhere. An id that both have is a ValueError."""
        if shared := self.ids & other.ids:
            raise ValueError(f"two samples have the id {min(shared)!r}; ids must be unique in a dataset")
        self.ids |= other.ids
        for own, others in (
            (self.counts, other.counts),
            (self.kinds, other.kinds),
            (self.categories, other.categories),
        ):
            own.update(others)

    def summary(self, name: str, vocabulary: Sequence[str] | None, shards: Mapping[str, int]) -> Summary:
        """The summary of a dataset of these records in shards, file name → rows."""
        unknown = sorted(set(self.categories) - set(vocabulary or self.categories))
        if unknown:
            raise ValueError(f"category {unknown[0]!r} of the instances is not in the vocabulary; add it there")
        kinds, names = dict(sorted(self.kinds.items())), list(vocabulary or sorted(self.categories))
        _check_vocabulary(names, name)
        return Summary(name, names, **self.counts, kinds=kinds, shards=dict(shards))


class _ShardFile:
    """One shard under construction: rows are collected into row groups."""

    def __init__(self, path: Path, group_bytes: int = _GROUP_BYTES) -> None:
        self.file = pq.ParquetWriter(path, arrow_schema(), compression="zstd", write_page_checksum=True)
        self.max_group_bytes = group_bytes
        self.rows: list[dict[str, Any]] = []
        self.group_bytes = self.written_bytes = self.num_rows = 0

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.num_rows += 1
        self.group_bytes += sum(len(image["bytes"] or b"") for image in row["images"])
        if len(self.rows) >= _GROUP_ROWS or self.group_bytes >= self.max_group_bytes:
            self._flush()

    def close(self) -> None:
        try:
            self._flush()
        finally:
            self.file.close()

    def _flush(self) -> None:
        if self.rows:
            table = pa.Table.from_pylist(self.rows, schema=self.file.schema)
            self.file.write_table(table, row_group_size=len(self.rows))
            self.written_bytes += table.nbytes
            self.rows, self.group_bytes = [], 0


class _Writer:
    """Writes records into shards under temporary names, and counts them."""

    def __init__(self, directory: Path, shard_bytes: int, embed_images: bool) -> None:
        self.directory, self.shard_bytes, self.embed_images = directory, shard_bytes, embed_images
        self.tally = Tally()
        self.shard_rows: list[int] = []
        self.file: _ShardFile | None = None

    def add(self, record: Record) -> None:
        self.tally.add(record)
        row = to_row(record, self.embed_images)
        if self.file is None:
            self.file = _ShardFile(self._part(len(self.shard_rows)), min(_GROUP_BYTES, self.shard_bytes))
        self.file.add(row)
        if self.file.written_bytes >= self.shard_bytes:
            self.end_shard()

    def summary(self, name: str, vocabulary: Sequence[str] | None) -> Summary:
        """Give the shards their final names and sum up."""
        names = [shard_name(number, len(self.shard_rows)) for number in range(len(self.shard_rows))]
        summary = self.tally.summary(name, vocabulary, dict(zip(names, self.shard_rows, strict=True)))
        for number, shard in enumerate(names):
            self._part(number).rename(self.directory / shard)
        return summary

    def _part(self, number: int) -> Path:
        return self.directory / f"part-{number:05d}"

    def end_shard(self) -> None:
        """Close the file; the next row opens another."""
        if self.file is not None:
            file, self.file = self.file, None
            file.close()
            self.shard_rows.append(file.num_rows)


def shard_name(number: int, num_shards: int) -> str:
    """The file of a shard."""
    return f"data-{number:05d}-of-{num_shards:05d}.parquet"


def write_shard(path: str | Path, records: Iterable[Record], *, embed_images: bool = True) -> Tally:
    """Write one shard of a dataset that grows shard by shard, whole or not at all, and say what is in it."""
    tally = Tally()
    with write_beside(path) as beside:
        file = _ShardFile(beside)
        try:
            for record in records:
                tally.add(record)
                file.add(to_row(record, embed_images))
        finally:
            file.close()
    return tally


def write_summary(directory: str | Path, summary: Summary) -> None:
    """Make a dataset of a directory that has its shards: write its card, and last `dataset.json`."""
    content = {"format": "agevlm", "schema_version": SCHEMA_VERSION, **asdict(summary)}
    files = {"README.md": _card(summary), "dataset.json": json.dumps(content, indent=1, ensure_ascii=False) + "\n"}
    for name, text in files.items():
        with write_beside(Path(directory) / name) as beside:
            beside.write_text(text, "utf-8")


def _card(summary: Summary) -> str:
    kinds = "\n".join(f"| {kind} | {number} |" for kind, number in summary.kinds.items())
    return (
        '---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: "data-*.parquet"\n---\n'
        f"# {summary.name}\n\nA grounded dataset of agevlm: {summary.num_samples} samples, "
        f"{summary.num_images} images, {summary.num_instances} instances, "
        f"{summary.num_conversations} conversations.\n\n"
        f"| kind | conversations |\n|---|---|\n{kinds}\n"
    )
