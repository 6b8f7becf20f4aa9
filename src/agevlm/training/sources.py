"""Where training samples come from: the embedded world or a Parquet dataset, behind one small interface.

A source gives the sample at an index with conversations drawn by a random generator, and the pictures of that sample.
A source never knows the network; cached feature maps stand beside it (`features.py`).
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch.utils.data import DataLoader, Dataset

from agevlm.data.augmentation import Drawn
from agevlm.data.images import png_bytes
from agevlm.data.language import DEFAULT_KINDS, KINDS, Chooser, make_conversations
from agevlm.data.parquet import ParquetDataset
from agevlm.data.scenes import CATEGORIES, COLOURS, WorldSpec, draw_scene
from agevlm.data.schema import AnnotatedImage, Conversation, ImageSource, Instance, Sample
from agevlm.files import write_beside

Kinds = Mapping[str, float] | None
MAX_COUNTED = 2000  # pictures that are drawn to learn what all of them hold


class Source(Protocol):
    """Samples by index."""

    def __len__(self) -> int: ...

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """The categories that may be asked for."""
        ...

    def words(self) -> Sequence[str] | None:
        """What its pictures show, by name: things, and colours where they are annotated; None where it is not known."""
        ...

    def key(self) -> dict[str, Any]:
        """What determines the pictures: names the cache of their features."""
        ...

    def categories(self) -> Sequence[Collection[str]]:
        """What the pictures hold, for all of them or for many that speak for the rest. ValueError where unknown."""
        ...

    def sample(
        self, index: int, rng: np.random.Generator, kinds: Kinds, num: int, choose: Chooser | None = None
    ) -> Sample:
        """The sample at `index`, with up to `num` conversations of the given kinds; none where it offers none.

        With `choose` all of them are made from what is annotated, presence asked of the categories that it names.
        """
        ...


class DrawnSource(ABC):
    """Pictures that are made and annotated by their index. Annotations are kept where given, pictures never are.

    `notes` counts what people should know of how they were made, where all were.
    """

    annotations: list[AnnotatedImage] | None = None
    notes: Counter[str] | None = None

    @property
    @abstractmethod
    def vocabulary(self) -> tuple[str, ...]: ...

    @abstractmethod
    def words(self) -> Sequence[str] | None: ...

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def key(self) -> dict[str, Any]: ...

    @abstractmethod
    def draw(self, index: int) -> Drawn:
        """A picture and its annotation, whose `image` holds neither file nor bytes."""

    def categories(self) -> Sequence[Collection[str]]:
        if self.annotations is not None:
            return [annotated.categories for annotated in self.annotations]
        num = min(len(self), MAX_COUNTED)
        return [self.draw(number * len(self) // num).annotated.categories for number in range(num)]

    def sample(
        self, index: int, rng: np.random.Generator, kinds: Kinds, num: int, choose: Chooser | None = None
    ) -> Sample:
        if self.annotations is not None:
            annotated = self.annotations[index]
        else:
            drawn = self.draw(index)
            image = replace(drawn.annotated.image, data=png_bytes(drawn.pixels))
            annotated = replace(drawn.annotated, image=image)
        conversations = make_conversations(annotated, rng, self.vocabulary, kinds, num, choose)
        return Sample(annotated.image.id, (annotated.image,), conversations)


class SceneSource(DrawnSource):
    """Scenes of the embedded world."""

    def __init__(self, spec: WorldSpec, seed: int, num_scenes: int, annotations: list[AnnotatedImage] | None = None):
        self.spec, self.seed, self.num_scenes = spec, seed, num_scenes
        self.annotations = annotations

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return CATEGORIES

    def words(self) -> Sequence[str] | None:
        return (*CATEGORIES, *COLOURS)

    def __len__(self) -> int:
        return self.num_scenes

    def key(self) -> dict[str, Any]:
        return {"scenes": self.spec.model_dump(mode="json"), "seed": self.seed, "num_scenes": self.num_scenes}

    def draw(self, index: int) -> Drawn:
        scene = draw_scene(self.spec, self.seed, index)
        return Drawn(scene.image, scene.annotation)


class ParquetSource:
    """A stored dataset. Conversations are drawn from the stored ones; POPE's questions are kept for evaluation.

    A sample that has fewer of the kinds than are asked for gives some of them again; one that has none of them has them
    made from its annotated instances, where it has any.
    """

    def __init__(self, dataset: ParquetDataset) -> None:
        self.dataset = dataset

    @property
    def vocabulary(self) -> tuple[str, ...]:
        return self.dataset.vocabulary

    def words(self) -> Sequence[str] | None:
        return self.dataset.words()

    def __len__(self) -> int:
        return len(self.dataset)

    def key(self) -> dict[str, Any]:
        return dataset_key(self.dataset)

    def categories(self) -> Sequence[Collection[str]]:
        found = self.dataset.categories()
        if None in found:
            raise ValueError(
                f"{self.dataset.directory}: {found.count(None)} of {len(found)} samples are not annotated, the first "
                f"is {self.dataset[found.index(None)].sample.id}: what is in their pictures is not known, so presence "
                "cannot be balanced; leave out `presence`, or these samples"
            )
        return [categories for categories in found if categories is not None]

    def offers(self, kinds: Kinds) -> bool:
        """Whether it may have conversations of the kinds (None: of any): stored, or made from annotated instances."""
        held = self.dataset.summary
        if any(_weight(kind, kinds) for kind in held.kinds) or sum(held.kinds.values()) < held.num_conversations:
            return True
        return held.num_instances > 0 or any(found is not None for found in self.dataset.categories())

    def sample(
        self, index: int, rng: np.random.Generator, kinds: Kinds, num: int, choose: Chooser | None = None
    ) -> Sample:
        record = self.dataset[index]
        sample = record.sample
        weights = np.array([_weight(conversation.kind, kinds) for conversation in sample.conversations])
        if choose is not None or not weights.any():
            return replace(sample, conversations=self._made(record.annotated, rng, kinds, num, choose))
        again = bool(np.count_nonzero(weights) < num)
        chosen = rng.choice(len(weights), size=num, replace=again, p=weights / weights.sum())
        return replace(sample, conversations=tuple(sample.conversations[number] for number in chosen))

    def _made(
        self,
        annotated: AnnotatedImage | None,
        rng: np.random.Generator,
        kinds: Kinds,
        num: int,
        choose: Chooser | None,
    ) -> tuple[Conversation, ...]:
        if kinds is None and choose is not None:
            kinds = DEFAULT_KINDS
        known = {kind: weight for kind, weight in (kinds or {}).items() if kind in KINDS and weight > 0}
        if annotated is None or not known:
            return ()
        return make_conversations(annotated, rng, self.vocabulary, known, num, choose)


def dataset_key(dataset: ParquetDataset) -> dict[str, Any]:
    """What tells a stored dataset, or a share of it, from every other one, and from itself written again."""
    stamp = (dataset.directory / "dataset.json").stat()
    share = {"share": dataset.share, "seed": dataset.seed} if dataset.share < 1 else {}
    return {"parquet": str(dataset.directory.resolve()), "size": len(dataset), "written": stamp.st_mtime_ns, **share}


def _weight(kind: str, kinds: Kinds) -> float:
    if kinds is not None:
        return kinds.get(kind, 0.0)
    return 0.0 if kind.startswith("pope.") else 1.0


class DrawnPictures(Dataset[Drawn]):
    """The pictures of a source with their annotations, for worker processes to draw."""

    def __init__(self, source: DrawnSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Drawn:
        return self.source.draw(index)

    def batches(self, batch_size: int, num_workers: int) -> Iterable[list[Drawn]]:
        """All pictures in order, drawn by worker processes."""
        return DataLoader(self, batch_size=batch_size, num_workers=num_workers, collate_fn=list)


def write_annotations(path: Path, annotations: Iterable[AnnotatedImage]) -> None:
    """Write annotations as one line of JSON each."""
    with write_beside(path) as beside, beside.open("w", encoding="utf-8") as file:
        for annotated in annotations:
            image = {"id": annotated.image.id, "height": annotated.image.height, "width": annotated.image.width}
            instances = [asdict(instance) for instance in annotated.instances]
            file.write(json.dumps({"image": image, "instances": instances, "labels": annotated.labels}) + "\n")


def read_annotations(path: Path) -> list[AnnotatedImage]:
    """Read what `write_annotations` wrote."""
    with path.open(encoding="utf-8") as file:
        return [_annotated(json.loads(line)) for line in file]


def _annotated(record: dict[str, Any]) -> AnnotatedImage:
    instances = tuple(Instance(**{**instance, "box": tuple(instance["box"])}) for instance in record["instances"])
    return AnnotatedImage(ImageSource(**record["image"]), instances, tuple(record.get("labels", ())))
