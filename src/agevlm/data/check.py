"""Everything that can be wrong with a written dataset, found and named: rows are read as they are, not as records.

What can be wrong with one row by itself is decided in `row_check.py`, for every reader alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agevlm.data.images import ImageError, open_image
from agevlm.data.parquet import Summary, Tally, read_parquet
from agevlm.data.row_check import HOLE, IMPOSSIBLE, REFUSED, USED_BEFORE
from agevlm.data.rows import to_record
from agevlm.data.schema import ImageSource

MISCOUNTED = "count that is not that of the rows"


@dataclass
class Faults:
    """What is wrong, by kind, and the first place of each kind."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, kind: str, place: str) -> None:
        """Count one."""
        self.counts[kind] += 1
        self.first.setdefault(kind, place)

    def merge(self, other: Faults) -> None:
        """Add what was found later."""
        self.counts.update(other.counts)
        self.first = {**other.first, **self.first}

    def rows(self) -> list[tuple[str, int, str]]:
        """(kind, number, first place) for a table."""
        return [(kind, number, self.first[kind]) for kind, number in self.counts.items()]


def check_dataset(directory: str | Path, *, decode: bool = True, allow_outside: bool = False) -> Faults:
    """Go through a whole dataset: ids, conversations, spans, masks, counts and, with `decode`, every picture.

    Pictures outside of the directory are faults, and not opened, unless `allow_outside`. A directory that is no
    dataset, or one with a shard that cannot be read, is a ValueError.
    """
    dataset, faults = read_parquet(directory, allow_outside=allow_outside), Faults()
    samples: set[str] = set()
    pictures: set[str] = set()
    tally = Tally()
    for row in dataset.rows():
        name = f"sample {row['id']}"
        if row["id"] in samples:
            faults.add(USED_BEFORE, name)
        samples.add(row["id"])
        found = list(dataset.faults(row))
        for kind, place in found:
            faults.add(kind, f"{name}{place}")
        if any(kind.startswith(HOLE) for kind, _ in found):
            continue  # what is not there cannot be gone into
        if not faults.counts:
            tally.add(to_record(row, dataset.directory))
        for image, info in zip(row["images"], row["image_info"], strict=False):
            if info["id"] in pictures:
                faults.add("picture's id used before", f"{name}, picture {info['id']}")
            pictures.add(info["id"])
            if (
                decode
                and not {IMPOSSIBLE, REFUSED} & dict(found).keys()
                and (error := _error_of(image, info, dataset.directory))
            ):
                faults.add(error.kind, f"{name}, {error}")
    if not faults.counts:
        _compare(dataset.summary, tally, faults)
    return faults


def _compare(stated: Summary, tally: Tally, faults: Faults) -> None:
    """Add what a summary says of its rows that is not so."""
    for name, found in vars(tally.summary(stated.name, stated.vocabulary, stated.shards)).items():
        if (said := getattr(stated, name)) != found:
            faults.add(MISCOUNTED, f"dataset.json, {name}: {said!s:.200}, the rows have {found!s:.200}")


def _error_of(image: Mapping[str, Any], info: Mapping[str, Any], root: Path) -> ImageError | None:
    path = None if image["path"] is None or image["bytes"] is not None else root / image["path"]
    try:
        open_image(ImageSource(info["id"], info["height"], info["width"], path=path, data=image["bytes"]))
    except ImageError as error:
        return error
    return None
