"""A whole dataset → the same dataset grounded: `agevlm ground`.

Work goes shard by shard. A shard is written beside and renamed, and what is counted in it follows in a file of its own:
a shard with both is done. A run that was stopped, by whatever, goes on with the shards that are not, and since nothing
passes from shard to shard it leaves the files of one that was never stopped. `dataset.json` comes last.

    OUT/.grounding/settings.json        what is being done; another run must be told the same
    OUT/.grounding/00000.json …         the counts of finished shards
    OUT/data-00000-of-00012.parquet …   the shards
    OUT/grounding.json                  all counts, when all are done
    OUT/dataset.json, OUT/README.md     the dataset, see `data/parquet.py`
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch.utils.data import DataLoader, Dataset

from agevlm.data.check import USED_BEFORE, Faults
from agevlm.data.images import ImageError, open_image
from agevlm.data.masks import union_mask
from agevlm.data.parquet import (
    ParquetDataset,
    Record,
    Summary,
    Tally,
    read_parquet,
    shard_name,
    write_shard,
    write_summary,
)
from agevlm.data.phrases import PhraseFinder
from agevlm.data.row_check import HARMLESS
from agevlm.data.rows import to_record
from agevlm.files import recover, write_beside
from agevlm.teachers.base import Request, Teacher, Verdict
from agevlm.teachers.phrasing import phrases_of, with_verdicts
from agevlm.teachers.stopwatch import Stopwatch

AREA_BINS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)  # edges of the histogram of masks' shares of their pictures
_WORK = ".grounding"


@dataclass(frozen=True)
class GroundOptions:
    """How a dataset is gone through; none of it changes what is found."""

    batch_size: int = 8  # pictures before the teacher at once
    samples_per_shard: int = 512
    num_workers: int = 0  # processes that decode pictures
    embed_images: bool = True
    allow_outside: bool = False  # pictures from outside of the dataset's directory, where its rows name such


@dataclass
class Counts:
    """What was found: `verdicts` on phrases by reason, `areas` of masks by `AREA_BINS`, and samples `left_out`."""

    images: int = 0
    phrases: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    areas: list[int] = field(default_factory=lambda: [0] * (len(AREA_BINS) - 1))
    left_out: Faults = field(default_factory=Faults)

    def add(self, other: Counts) -> None:
        """Add what was found elsewhere."""
        self.images += other.images
        self.phrases += other.phrases
        self.verdicts.update(other.verdicts)
        self.left_out.merge(other.left_out)
        self.areas = [one + two for one, two in zip(self.areas, other.areas, strict=True)]

    def rows(self) -> list[tuple[str, int, str]]:
        """(what, number, the first) for a table; only what occurred."""
        edges = zip(AREA_BINS[:-1], AREA_BINS[1:], self.areas, strict=True)
        rows = [("pictures", self.images), ("phrases", self.phrases)]
        rows += [(f"phrases {reason}", number) for reason, number in sorted(self.verdicts.items())]
        rows += [(f"masks of {100 * low:g} to {100 * high:g} % of the picture", n) for low, high, n in edges]
        left_out = [(f"samples left out: {kind}", number, first) for kind, number, first in self.left_out.rows()]
        return [*((what, number, "") for what, number in rows if number), *left_out]

    def content(self) -> dict[str, Any]:
        """As JSON."""
        return {**vars(self), "left_out": vars(self.left_out)}

    @classmethod
    def of(cls, content: dict[str, Any]) -> Counts:
        """From what `content` gave."""
        left_out = Faults(Counter(content["left_out"]["counts"]), content["left_out"]["first"])
        return cls(**{**content, "verdicts": Counter(content["verdicts"]), "left_out": left_out})

    def see(self, verdict: Verdict) -> None:
        """Count the verdict on one phrase."""
        self.phrases += 1
        self.verdicts[verdict.reason] += 1
        if verdict.present:
            share = float(union_mask(verdict.masks).mean())
            self.areas[sum(share > edge for edge in AREA_BINS[1:-1])] += 1


class GroundingRun:
    """The grounding of one dataset by one teacher into one directory.

    `identity` is everything that decides what is found (the teacher, its weights and thresholds, the vocabulary): a
    directory that was begun with another one is a ValueError, so is one that holds anything else.
    """

    def __init__(
        self,
        source: str | Path,
        out: str | Path,
        identity: dict[str, Any],
        options: GroundOptions | None = None,
    ) -> None:
        self.out, self.options = Path(out), options or GroundOptions()
        self.source = read_parquet(source, allow_outside=self.options.allow_outside)
        if self.out.resolve() == self.source.directory.resolve():
            raise ValueError(f"{self.out}: is the dataset that is read; choose another directory to write to")
        per_shard = self.options.samples_per_shard
        if min(per_shard, self.options.batch_size) < 1:
            raise ValueError(f"samples_per_shard and batch_size must be at least 1, got {self.options}")
        self.num_shards = -(-len(self.source) // per_shard)
        self.identity = {
            "source": self.source.name,
            "num_samples": len(self.source),
            "shards": self.source.summary.shards,
            "samples_per_shard": per_shard,
            "embed_images": self.options.embed_images,
            **identity,
        }
        ids = self.source.ids()
        firsts = {name: number for number, name in reversed(list(enumerate(ids)))}
        self.repeated = frozenset(number for number, name in enumerate(ids) if firsts[name] != number)
        self._open()

    def _open(self) -> None:
        known, text = self.out / _WORK / "settings.json", json.dumps(self.identity, indent=1, sort_keys=True)
        if known.exists():
            if known.read_text("utf-8") != text:
                changed = _difference(json.loads(known.read_text("utf-8")), json.loads(text))
                raise ValueError(f"{self.out}: was begun with other settings ({changed}); choose another directory")
        elif self.out.exists() and any(self.out.iterdir()):
            raise ValueError(
                f"{self.out}: is not empty and holds no grounding that was begun; choose another directory"
            )
        else:
            _write(known, text)

    def remove_leftovers(self) -> None:
        """Remove what a killed run had begun to write; not while another one is at work on the directory."""
        for directory in (self.out, self.out / _WORK):
            recover(directory, anybodys=True)

    @property
    def todo(self) -> list[int]:
        """The numbers of the shards that are not done."""
        return [number for number in range(self.num_shards) if not self._is_done(number)]

    def num_samples(self, shards: Sequence[int]) -> int:
        """How many samples the shards of these numbers take."""
        per_shard = self.options.samples_per_shard
        return sum(min(per_shard, len(self.source) - number * per_shard) for number in shards)

    def _is_done(self, number: int) -> bool:
        return self._shard(number).exists() and self._counts(number).exists()

    def _shard(self, number: int) -> Path:
        return self.out / shard_name(number, self.num_shards)

    def _counts(self, number: int) -> Path:
        return self.out / _WORK / f"{number:05d}.json"

    def run(
        self,
        teacher: Teacher,
        finder: PhraseFinder | None,
        shards: Sequence[int] | None = None,
        stopwatch: Stopwatch | None = None,
        advance: Callable[[int], None] = lambda samples: None,
    ) -> None:
        """Ground the shards of these numbers, or all that are not done; `advance` is told of samples as they pass.

        Several processes may work on one directory, each on shards of its own.
        """
        stopwatch = stopwatch or Stopwatch()
        for number in self.todo if shards is None else shards:
            counts = Counts()
            records = list(self._grounded(number, teacher, finder, counts, stopwatch, advance))
            with stopwatch("write", len(records)):
                tally = write_shard(self._shard(number), records, embed_images=self.options.embed_images)
                _write(self._counts(number), json.dumps({"tally": _portable(tally), "counts": counts.content()}))

    def _grounded(
        self,
        number: int,
        teacher: Teacher,
        finder: PhraseFinder | None,
        counts: Counts,
        stopwatch: Stopwatch,
        advance: Callable[[int], None],
    ) -> Iterator[Record]:
        """The records of a shard with their groundings, without samples that have something wrong."""
        start = number * self.options.samples_per_shard
        indices = range(start, min(start + self.options.samples_per_shard, len(self.source)))
        size = self.options.batch_size
        batches = [indices[first : first + size] for first in range(0, len(indices), size)]
        loader = DataLoader(
            _Decoded(self.source, batches, self.repeated),
            batch_size=None,
            num_workers=self.options.num_workers,
            shuffle=False,
        )
        decoded = iter(loader)
        for positions in batches:
            with stopwatch("decode", len(positions)):
                batch = next(decoded)
            for fault in batch:
                if isinstance(fault, _Fault):
                    counts.left_out.add(*fault)
            readable = [decoded for decoded in batch if not isinstance(decoded, _Fault)]
            yield from self._answered(readable, teacher, finder, counts)
            advance(len(batch))

    def _answered(
        self,
        batch: Sequence[tuple[Record, list[Image.Image]]],
        teacher: Teacher,
        finder: PhraseFinder | None,
        counts: Counts,
    ) -> Iterator[Record]:
        requests = [
            Request(image, names, record.annotated)
            for record, images in batch
            for image, names in zip(images, phrases_of(record.sample, finder), strict=True)
        ]
        answers = zip(requests, teacher.ground(requests), strict=True)
        verdicts = [dict(zip(request.phrases, known, strict=True)) for request, known in answers]
        counts.images += len(requests)
        for known in verdicts:
            for verdict in known.values():
                counts.see(verdict)
        own = iter(verdicts)
        for record, images in batch:
            sample = with_verdicts(record.sample, finder, [next(own) for _ in images])
            yield Record(sample, record.annotated)

    def finish(self) -> tuple[Summary, Counts] | None:
        """Make a dataset of the shards if all are done, and sum up; None if not."""
        if self.todo:
            return None
        tally, counts, shards = Tally(), Counts(), {}
        for number in range(self.num_shards):
            content = json.loads(self._counts(number).read_text("utf-8"))
            shards[shard_name(number, self.num_shards)] = content["tally"]["counts"].get("num_samples", 0)
            tally.merge(_tally(content["tally"]))
            counts.add(Counts.of(content["counts"]))
        if not tally.ids:
            faults = "; ".join(f"{kind} ({number}), first {place}" for kind, number, place in counts.left_out.rows())
            raise ValueError(f"{self.out}: no sample of the dataset could be read: {faults}")
        summary = tally.summary(self.source.name, self.source.summary.vocabulary, shards)
        _write(
            self.out / "grounding.json", json.dumps({"settings": self.identity, "counts": counts.content()}, indent=1)
        )
        write_summary(self.out, summary)
        return summary, counts


class _Fault(NamedTuple):
    """Why a sample is left out, and which it is."""

    kind: str
    place: str


class _Decoded(Dataset[Any]):
    """Batches of records with their pictures decoded, or what is wrong with them."""

    def __init__(self, source: ParquetDataset, batches: Sequence[range], repeated: frozenset[int]) -> None:
        self.source, self.batches, self.repeated = source, batches, repeated

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> list[tuple[Record, list[Image.Image]] | _Fault]:
        return [self._decode(position) for position in self.batches[index]]

    def _decode(self, position: int) -> tuple[Record, list[Image.Image]] | _Fault:
        row = self.source.row(position)
        name = f"sample {row['id']}"
        if position in self.repeated:
            return _Fault(USED_BEFORE, name)
        for kind, place in self.source.faults(row):
            if kind not in HARMLESS:
                return _Fault(kind, f"{name}{place}")
        record = to_record(row, self.source.directory)
        try:
            return record, [open_image(source) for source in record.sample.images]
        except ImageError as error:
            return _Fault(error.kind, f"{name}, {error}")


def _portable(tally: Tally) -> dict[str, Any]:
    return {**vars(tally), "ids": sorted(tally.ids)}


def _tally(content: dict[str, Any]) -> Tally:
    tally = Tally()
    tally.ids = set(content["ids"])
    tally.counts, tally.kinds, tally.categories = (Counter(content[key]) for key in ("counts", "kinds", "categories"))
    return tally


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return ", ".join(f"{key}: {str(old.get(key))[:60]} then, {str(new.get(key))[:60]} now" for key in keys)


def _write(path: Path, text: str) -> None:
    with write_beside(path) as beside:
        beside.write_text(text, "utf-8")
