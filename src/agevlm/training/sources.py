"""Where training samples come from: the embedded world or a Parquet dataset, behind one small interface.

A source gives the sample at an index with conversations drawn by a random generator, and the pictures of that sample.
A source never knows the network; cached feature maps stand beside it (`features.py`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch.utils.data import DataLoader, Dataset

from agevlm.data.language import KINDS, make_conversations
from agevlm.data.parquet import read_parquet
from agevlm.data.scenes import CATEGORIES, WorldSpec, draw_scene, scene_png
from agevlm.data.schema import AnnotatedImage, Conversation, ImageSource, Instance, Sample
from agevlm.files import write_beside

Kinds = Mapping[str, float] | None


class Source(Protocol):
    """Samples by index."""

    def __len__(self) -> int: ...

    def key(self) -> dict[str, Any]:
        """What determines the pictures: names the cache of their features."""
        ...

    def sample(self, index: int, rng: np.random.Generator, kinds: Kinds, num: int) -> Sample:
        """The sample at `index`, with up to `num` conversations of the given kinds; none where it offers none."""
        ...


class SceneSource:
    """Scenes of the embedded world. Annotations are kept where given; pictures are drawn where they are asked for."""

    def __init__(self, spec: WorldSpec, seed: int, num_scenes: int, annotations: list[AnnotatedImage] | None = None):
        self.spec, self.seed, self.num_scenes = spec, seed, num_scenes
        self.annotations = annotations

    def __len__(self) -> int:
        return self.num_scenes

    def key(self) -> dict[str, Any]:
        return {"scenes": self.spec.model_dump(mode="json"), "seed": self.seed, "num_scenes": self.num_scenes}

    def sample(self, index: int, rng: np.random.Generator, kinds: Kinds, num: int) -> Sample:
        if self.annotations is not None:
            annotated = self.annotations[index]
        else:
            scene = draw_scene(self.spec, self.seed, index)
            annotated = replace(scene.annotation, image=replace(scene.annotation.image, data=scene_png(scene)))
        conversations = make_conversations(annotated, rng, CATEGORIES, kinds, num)
        return Sample(annotated.image.id, (annotated.image,), conversations)


class ParquetSource:
    """A stored dataset. Conversations are drawn from the stored ones; POPE's questions are kept for evaluation.

    A sample that has fewer of the kinds than are asked for gives some of them again; one that has none of them has them
    made from its annotated instances, where it has any.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.dataset = read_parquet(directory)

    def __len__(self) -> int:
        return len(self.dataset)

    def key(self) -> dict[str, Any]:
        stamp = (self.directory / "dataset.json").stat()
        return {"parquet": str(self.directory.resolve()), "size": len(self), "written": stamp.st_mtime_ns}

    def sample(self, index: int, rng: np.random.Generator, kinds: Kinds, num: int) -> Sample:
        record = self.dataset[index]
        sample = record.sample
        weights = np.array([_weight(conversation, kinds) for conversation in sample.conversations])
        if not weights.any():
            return replace(sample, conversations=self._made(record.annotated, rng, kinds, num))
        again = bool(np.count_nonzero(weights) < num)
        chosen = rng.choice(len(weights), size=num, replace=again, p=weights / weights.sum())
        return replace(sample, conversations=tuple(sample.conversations[number] for number in chosen))

    def _made(
        self, annotated: AnnotatedImage | None, rng: np.random.Generator, kinds: Kinds, num: int
    ) -> tuple[Conversation, ...]:
        known = {kind: weight for kind, weight in (kinds or {}).items() if kind in KINDS and weight > 0}
        if annotated is None or not known:
            return ()
        return make_conversations(annotated, rng, self.dataset.vocabulary, known, num)


def _weight(conversation: Conversation, kinds: Kinds) -> float:
    if kinds is not None:
        return kinds.get(conversation.kind, 0.0)
    return 0.0 if conversation.kind.startswith("pope.") else 1.0


class DrawnScenes(Dataset[tuple[np.ndarray, AnnotatedImage]]):
    """Pixels (H, W, 3) and annotation of the scenes of a source, for worker processes to draw."""

    def __init__(self, source: SceneSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[np.ndarray, AnnotatedImage]:
        scene = draw_scene(self.source.spec, self.source.seed, index)
        return scene.image, scene.annotation

    def batches(self, batch_size: int, num_workers: int) -> Iterable[list[tuple[np.ndarray, AnnotatedImage]]]:
        """All scenes in order, drawn by worker processes."""
        return DataLoader(self, batch_size=batch_size, num_workers=num_workers, collate_fn=list)


def write_annotations(path: Path, annotations: Iterable[AnnotatedImage]) -> None:
    """Write annotations as one line of JSON each."""
    with write_beside(path) as beside, beside.open("w", encoding="utf-8") as file:
        for annotated in annotations:
            image = {"id": annotated.image.id, "height": annotated.image.height, "width": annotated.image.width}
            file.write(json.dumps({"image": image, "instances": [asdict(i) for i in annotated.instances]}) + "\n")


def read_annotations(path: Path) -> list[AnnotatedImage]:
    """Read what `write_annotations` wrote."""
    with path.open(encoding="utf-8") as file:
        return [_annotated(json.loads(line)) for line in file]


def _annotated(record: dict[str, Any]) -> AnnotatedImage:
    instances = tuple(Instance(**{**instance, "box": tuple(instance["box"])}) for instance in record["instances"])
    return AnnotatedImage(ImageSource(**record["image"]), instances)
