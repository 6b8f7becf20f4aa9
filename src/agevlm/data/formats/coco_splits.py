"""One COCO instances file → datasets to train on, to choose settings on and to test on, split by picture.

Which pictures go where depends on the seed and their contents alone: a picture that stands in the file twice, under two
names, does not teach what it is tested with. What cannot be used is left out, counted and named.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from agevlm.data.formats.coco import EMPTY, CocoOptions, read_coco, write_annotated
from agevlm.data.formats.report import Report
from agevlm.data.images import read_bytes
from agevlm.data.schema import AnnotatedImage

TRAIN, VAL, TEST = "train", "val", "test"
HELD_OUT_RATIO = 0.15  # of the pictures, for val, and as many for the test
FEW = 10  # training pictures, below which a category is named as one that can hardly be learned
_NAMED = 12


@dataclass(frozen=True)
class Split:
    """What became of an instances file: its datasets, the pictures in each, categories, and what was left out.

    `few` are the categories of fewer than `FEW` training pictures, with that number; `always` those of every picture,
    `never` those of none, which no dataset knows.
    """

    directory: Path
    num_pictures: Mapping[str, int]
    vocabulary: tuple[str, ...]
    few: Mapping[str, int]
    always: tuple[str, ...]
    never: tuple[str, ...]
    reports: tuple[Report, ...]

    def notes(self) -> Iterator[str]:
        """A line for each thing that people should know."""
        counts = self.num_pictures
        yield (
            f"{sum(counts.values())} pictures with {len(self.vocabulary)} categories: {counts[TRAIN]} to train on, "
            f"{counts[VAL]} to choose settings on (val), {counts[TEST]} for the test"
        )
        for report in self.reports:
            for reason, number in (+report.left_out).items():
                first = f"; the first: {report.first[reason]}" if reason in report.first else ""
                yield f"left out: {number} {reason}{first}"
            for what, number in report.mended.items():
                yield f"mended: {number} {what}"
        for what, names in (("no picture", self.never), ("every picture", self.always)):
            if names:
                yield f"in {what}, so that nothing is learned of it: {len(names)} categories ({_some(names)})"
        if self.few:
            told = [f"{name} ({number})" for name, number in self.few.items()]
            yield (
                f"hardly learned, for they are in fewer than {FEW} training pictures: {len(told)} of "
                f"{len(self.vocabulary)} categories ({_some(told)})"
            )


def split_coco(instances: str | Path, images: str | Path, out: str | Path, options: CocoOptions | None = None) -> Split:
    """Write the datasets `out`/train, `out`/val and `out`/test of a COCO instances file, and say what is in them.

    Val and test get `HELD_OUT_RATIO` of the pictures each. Pictures and annotations that cannot be used are left out
    and counted, whatever `options` say; categories in no picture are in no vocabulary. Frequencies of POPE's questions
    are those of each dataset. ValueErrors: as `read_coco`, nothing annotated, and fewer than three different pictures.
    """
    options = replace(options or CocoOptions(), skip_broken=True, skip_missing=True)
    annotated, report = read_coco(
        instances, images, limit=options.limit, skip_missing=True, skip_broken=True, boxes=options.boxes
    )
    told = [picture for picture in annotated if picture.instances or options.keep_empty]
    report.left_out[EMPTY] += len(annotated) - len(told)
    held = Counter(category for picture in told for category in picture.categories)
    vocabulary = tuple(category for category in report.vocabulary if held[category])
    if not vocabulary:
        left_out = f"; left out: {reasons}" if (reasons := report.reasons()) else ""
        raise ValueError(f"{instances}: nothing is annotated in its {len(told)} pictures that can be used{left_out}")
    reports = [report]
    parts = _divide(told, options.seed)
    counts = {}
    for name, pictures in parts.items():
        reports.append(Report(f"{instances} ({name})", vocabulary))
        counts[name] = write_annotated(pictures, reports[-1], Path(out) / name, options).num_samples
    learned = Counter(category for picture in parts[TRAIN] for category in picture.categories)
    return Split(
        directory=Path(out),
        num_pictures=counts,
        vocabulary=vocabulary,
        few={category: learned[category] for category in vocabulary if learned[category] < FEW},
        always=tuple(category for category in vocabulary if held[category] == len(told)),
        never=tuple(category for category in report.vocabulary if not held[category]),
        reports=(reports[0], _merged(reports[1:])),
    )


def _divide(pictures: Sequence[AnnotatedImage], seed: int) -> dict[str, list[AnnotatedImage]]:
    """The pictures of each dataset, in their order; those of the same contents stay together."""
    contents = [hashlib.sha256(read_bytes(picture.image)).hexdigest() for picture in pictures]
    distinct = sorted(set(contents))
    if len(distinct) < 3:
        raise ValueError(
            f"{len(distinct)} different pictures with something annotated are too few to train on some, choose "
            "settings on others and test on yet others; give three at least, and hundreds to learn anything"
        )
    order = np.random.default_rng(seed).permutation(len(distinct))
    num = max(1, round(HELD_OUT_RATIO * len(distinct)))
    place = {distinct[n]: TEST if rank < num else VAL if rank < 2 * num else TRAIN for rank, n in enumerate(order)}
    named = list(zip(pictures, contents, strict=True))
    return {name: [p for p, content in named if place[content] == name] for name in (TRAIN, VAL, TEST)}


def _merged(reports: Sequence[Report]) -> Report:
    merged = Report(reports[0].source)
    for report in reports:
        merged.left_out.update(report.left_out)
        merged.mended.update(report.mended)
        merged.first.update({reason: detail for reason, detail in report.first.items() if reason not in merged.first})
    return merged


def _some(names: Sequence[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
