"""The embedded world as files: COCO instances for other tools, or the project's own Parquet with its text.

Draws and hands over; the files themselves are written by `data/formats/coco_export.py` and `data/parquet.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from agevlm.data.formats.coco_export import write_coco
from agevlm.data.language import make_conversations
from agevlm.data.parquet import OWN_FILE, Summary, write_parquet
from agevlm.data.pope import picture_rng, pope_conversations
from agevlm.data.rows import Record
from agevlm.data.scenes.drawing import draw_scene, scene_png
from agevlm.data.scenes.world import CATEGORIES, WorldSpec
from agevlm.data.schema import AnnotatedImage, Sample
from agevlm.files import check_replaceable


def export_coco(out: str | Path, spec: WorldSpec, seed: int, num: int) -> Path:
    """Write `num` scenes as `out`/instances.json and `out`/images, and give the first; see `write_coco`."""
    return write_coco(out, ((scene, scene.image.data or b"") for scene in _scenes(spec, seed, num)), CATEGORIES)


def export_parquet(out: str | Path, spec: WorldSpec, seed: int, num: int, num_per_image: int = 6) -> Summary:
    """Write `num` scenes as a grounded dataset: `num_per_image` conversations on each, and POPE's questions.

    POPE's frequencies are those of the scenes written. Deterministic in all arguments; see `write_parquet`.
    """
    check_replaceable(out, *OWN_FILE)
    scenes = list(_scenes(spec, seed, num))
    pope = pope_conversations(scenes, seed=seed, vocabulary=CATEGORIES)

    def record(scene: AnnotatedImage) -> Record:
        identity = scene.image.id
        drawn = make_conversations(scene, picture_rng(identity, seed), CATEGORIES, num=num_per_image)
        return Record(Sample(identity, (scene.image,), (*drawn, *pope.get(identity, ()))), scene)

    return write_parquet(out, map(record, scenes), vocabulary=CATEGORIES)


def _scenes(spec: WorldSpec, seed: int, num: int) -> Iterator[AnnotatedImage]:
    """Annotated scenes, each with its picture as the bytes of a PNG file."""
    for index in range(num):
        scene = draw_scene(spec, seed, index)
        yield replace(scene.annotation, image=replace(scene.annotation.image, data=scene_png(scene)))
