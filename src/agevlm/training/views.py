"""Annotated pictures as a source whose every question is made from the annotation: augmented, or labelled alone.

A picture has a fixed number of views, so that their features can be cached like those of any pictures. How a view is
made is in `data/augmentation.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from agevlm.data.augmentation import Augmentation, Drawn, draw_view
from agevlm.data.formats.labels import read_labels
from agevlm.data.images import open_image
from agevlm.data.parquet import ParquetDataset
from agevlm.data.schema import AnnotatedImage
from agevlm.training.sources import DrawnSource, dataset_key


class Pictures(Protocol):
    """Annotated pictures by index, with file or bytes, what may be asked about them, and what was left out."""

    vocabulary: tuple[str, ...]
    notes: tuple[str, ...]

    def words(self) -> Sequence[str] | None: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> AnnotatedImage: ...

    def key(self) -> dict[str, Any]: ...


class StoredPictures:
    """The annotated pictures of a stored dataset. A sample without annotation, or of no picture, is a ValueError."""

    def __init__(self, dataset: ParquetDataset) -> None:
        self.dataset = dataset
        self.vocabulary = self.dataset.vocabulary
        self.notes: tuple[str, ...] = ()
        found = self.dataset.categories()
        if None in found:
            first = self.dataset[found.index(None)].sample.id
            raise ValueError(
                f"{dataset.directory}: {found.count(None)} of {len(found)} samples are not annotated, the first is "
                f"{first}: views are made of annotated pictures; leave out `augment`, or these samples"
            )

    def words(self) -> Sequence[str] | None:
        return self.dataset.words()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> AnnotatedImage:
        annotated = self.dataset[index].annotated
        assert annotated is not None, index
        return annotated

    def key(self) -> dict[str, Any]:
        return dataset_key(self.dataset)


class LabelledPictures:
    """The pictures of a directory of class folders."""

    def __init__(self, directory: Path, names: Mapping[str, str | None]) -> None:
        self.pictures, report = read_labels(directory, names)
        self.vocabulary = report.vocabulary
        self.notes = tuple(f"{number} {reason}" for reason, number in report.left_out.items() if number)

    def words(self) -> Sequence[str] | None:
        return self.vocabulary

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> AnnotatedImage:
        return self.pictures[index]

    def key(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        for picture in self.pictures:
            assert picture.image.path is not None
            stamp = picture.image.path.stat()
            digest.update(repr((str(picture.image.path.resolve()), stamp.st_size, stamp.st_mtime_ns)).encode())
            digest.update(repr(picture.labels).encode())
        return {"labels": digest.hexdigest()}


class ViewSource(DrawnSource):
    """All views of some pictures, the pictures themselves first; without `augmentation` these alone."""

    def __init__(self, pictures: Pictures, augmentation: Augmentation | None, seed: int) -> None:
        self.pictures, self.augmentation = pictures, augmentation
        own = augmentation.seed if augmentation else None
        self.seed = seed if own is None else own

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return self.pictures.vocabulary

    def words(self) -> Sequence[str] | None:
        return self.pictures.words()

    def __len__(self) -> int:
        return len(self.pictures) * (self.augmentation.views if self.augmentation else 1)

    def key(self) -> dict[str, Any]:
        made = {"augment": self.augmentation.model_dump(), "seed": self.seed} if self.augmentation else {}
        return {"pictures": self.pictures.key(), **made}

    def draw(self, index: int) -> Drawn:
        view, number = divmod(index, len(self.pictures))
        if self.augmentation is not None:
            return draw_view(self.pictures.__getitem__, len(self.pictures), number, view, self.augmentation, self.seed)
        annotated = self.pictures[number]
        image = replace(annotated.image, path=None, data=None)
        return Drawn(np.asarray(open_image(annotated.image)), replace(annotated, image=image))
