"""Pictures and masks → COCO files: annotated scenes, and datasets whose masks a teacher found."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agevlm.data.images import ImageError, upright_bytes
from agevlm.data.masks import check_mask, mask_box
from agevlm.data.rows import Record
from agevlm.data.schema import RLE, AnnotatedImage, Instance
from agevlm.files import check_replaceable, write_beside

OWN_ID = "agevlm_id"  # extra keys of what `write_coco` writes; other readers pass over them
OWN_COLOUR = "agevlm_colour"
OWN_FILE = ("instances.json", "written by agevlm")  # by this file, with this in its head, ours is known


def export_coco(directory: str | Path, records: Iterable[Record]) -> Path:
    """Write the pictures and masks of a dataset as COCO files, see `write_coco`.

    A picture's instances are the annotated ones where there are any, else the masks of its phrases: the category is the
    phrase in small letters, and a mask that two conversations share is one instance. Pictures are written upright; one
    that cannot be read is a ValueError.
    """
    try:
        return write_coco(directory, (pair for record in records for pair in _pictures(record)))
    except ImageError as error:
        raise ValueError(f"{error}; nothing is written to {directory}") from error


def _pictures(record: Record) -> Iterator[tuple[AnnotatedImage, bytes]]:
    for number, image in enumerate(record.sample.images):
        annotated = record.annotated or AnnotatedImage(image, tuple(_grounded(record, number)))
        yield annotated, upright_bytes(image)


def _grounded(record: Record, number: int) -> Iterator[Instance]:
    """The instances that the groundings in a picture make, each once."""
    found: dict[tuple[str, str], RLE] = {}
    for conversation in record.sample.conversations:
        for known in conversation.groundings:
            if known.image == number:
                found |= {(known.phrase.lower(), mask["counts"]): mask for mask in known.masks}
    for (phrase, _), mask in found.items():
        yield Instance(phrase, mask, mask_box(mask), float(check_mask(mask)))


def write_coco(
    directory: str | Path,
    pictures: Iterable[tuple[AnnotatedImage, bytes]],
    vocabulary: Sequence[str] | None = None,
) -> Path:
    """Write annotated pictures and their encoded files as `DIR/instances.json` and `DIR/images`; returns the first.

    pycocotools' COCO class and `read_coco` open it; ids and colours ride along under keys of our own. Masks are RLEs.
    `vocabulary` (None: the categories met, in alphabetical order) becomes the categories, numbered from 1; a category
    outside it, two pictures of one id, no pictures at all and a `directory` that holds anything but an export of ours
    are ValueErrors. Written whole or not at all.
    """
    directory = Path(directory)
    check_replaceable(directory, *OWN_FILE)
    listed: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    with write_beside(directory) as beside:
        (beside / "images").mkdir(parents=True)
        for number, (annotated, data) in enumerate(pictures, start=1):
            image = annotated.image
            suffix = "png" if data.startswith(b"\x89PNG") else "jpg"
            entry = {"id": number, "file_name": f"{number:012d}.{suffix}", "height": image.height, "width": image.width}
            (beside / "images" / str(entry["file_name"])).write_bytes(data)
            listed.append({**entry, OWN_ID: image.id})
            annotations += [_annotation(instance, number) for instance in annotated.instances]
        names = _check_written(directory, listed, annotations, vocabulary)
        numbers = {name: number for number, name in enumerate(names, start=1)}
        for number, annotation in enumerate(annotations, start=1):
            annotation.update(id=number, category_id=numbers[annotation.pop("category")])
        categories = [{"id": number, "name": name, "supercategory": name} for name, number in numbers.items()]
        content = {
            "info": {"description": f"{directory.name}, {OWN_FILE[1]}"},
            "licenses": [],
            "images": listed,
            "annotations": annotations,
            "categories": categories,
        }
        (beside / "instances.json").write_text(json.dumps(content), "utf-8")
    return directory / "instances.json"


def _annotation(instance: Instance, image: int) -> dict[str, Any]:
    colour = {OWN_COLOUR: instance.colour} if instance.colour else {}
    return {
        "image_id": image,
        "category": instance.category,
        "segmentation": dict(instance.mask),
        "area": instance.area,
        "bbox": list(instance.box),
        "iscrowd": int(instance.crowd),
        **colour,
    }


def _check_written(
    directory: Path,
    listed: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    vocabulary: Sequence[str] | None,
) -> list[str]:
    if not listed:
        raise ValueError(f"{directory}: no pictures to write; an empty dataset is of no use")
    twice = [identity for identity, number in Counter(image[OWN_ID] for image in listed).items() if number > 1]
    if twice:
        raise ValueError(f"two pictures have the id {twice[0]!r}; ids must be unique in a dataset")
    met = sorted({annotation["category"] for annotation in annotations})
    unknown = sorted(set(met) - set(vocabulary or met))
    if unknown:
        raise ValueError(f"category {unknown[0]!r} of the instances is not in the vocabulary; add it there")
    return list(vocabulary or met)
