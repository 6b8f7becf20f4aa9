"""One record as one row of a Parquet file, and back: the schema of `parquet.py`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from agevlm.data.images import read_bytes
from agevlm.data.schema import RLE, AnnotatedImage, Conversation, Grounding, ImageSource, Instance, Message, Sample

SCHEMA_VERSION = 1

_MASK = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])
_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_IMAGE_INFO = pa.struct([("id", pa.string()), ("height", pa.int32()), ("width", pa.int32())])
_INSTANCE = pa.struct(
    [
        ("category", pa.string()),
        ("colour", pa.string()),
        ("crowd", pa.bool_()),
        ("area", pa.float64()),
        ("box", pa.list_(pa.float64())),  # x, y, width, height
        ("mask", _MASK),
    ]
)
_MESSAGE = pa.struct([("role", pa.string()), ("content", pa.string()), ("num_images", pa.int32())])
_GROUNDING = pa.struct(
    [
        ("message", pa.int32()),
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("phrase", pa.string()),
        ("present", pa.bool_()),  # null: nobody knows
        ("image", pa.int32()),
        ("masks", pa.list_(_MASK)),
    ]
)
_CONVERSATION = pa.struct(
    [
        ("id", pa.string()),
        ("kind", pa.string()),
        ("messages", pa.list_(_MESSAGE)),
        ("groundings", pa.list_(_GROUNDING)),
    ]
)
COLUMNS = [
    ("id", pa.string()),
    ("images", pa.list_(_IMAGE)),
    ("image_info", pa.list_(_IMAGE_INFO)),  # beside `images`, which has to be Hugging Face's own struct
    ("instances", pa.list_(_INSTANCE)),  # null: not annotated
    ("conversations", pa.list_(_CONVERSATION)),
]


@dataclass(frozen=True)
class Record:
    """One row: a sample and what is known of its picture. `annotated` is of the only picture of the sample, or None."""

    sample: Sample
    annotated: AnnotatedImage | None = None

    def __post_init__(self) -> None:
        if self.annotated is not None and [image.id for image in self.sample.images] != [self.annotated.image.id]:
            raise ValueError(
                f"sample {self.sample.id}: instances are known of image {self.annotated.image.id} and the sample shows "
                f"{[image.id for image in self.sample.images]}; annotate samples of that one image"
            )
        if self.annotated is not None and self.annotated.labels:
            raise ValueError(
                f"sample {self.sample.id}: the label {self.annotated.labels[0]!r} has no mask, and a dataset stores "
                "instances with masks; keep such pictures in a folder for each class, a recipe's source `labels`"
            )


def to_row(record: Record, embed_images: bool) -> dict[str, Any]:
    """The values of a record by column; pictures that are files stay paths where `embed_images` is False."""
    sample, annotated = record.sample, record.annotated
    return {
        "id": sample.id,
        "images": [_image_row(image, embed_images) for image in sample.images],
        "image_info": [{"id": i.id, "height": i.height, "width": i.width} for i in sample.images],
        "instances": None if annotated is None else [vars(instance) for instance in annotated.instances],
        "conversations": [_conversation_row(conversation) for conversation in sample.conversations],
    }


def _conversation_row(conversation: Conversation) -> dict[str, Any]:
    messages = [vars(message) for message in conversation.messages]
    groundings = [vars(grounding) for grounding in conversation.groundings]
    return {"id": conversation.id, "kind": conversation.kind, "messages": messages, "groundings": groundings}


def _image_row(image: ImageSource, embed: bool) -> dict[str, Any]:
    if image.path is not None and image.data is None and not embed:
        return {"bytes": None, "path": str(image.path.resolve())}
    return {"bytes": read_bytes(image), "path": image.path.name if image.path else None}


def to_record(row: Mapping[str, Any], root: Path) -> Record:
    """The record that `to_row` made this row of. Paths that are not absolute are those of files below `root`."""
    images = tuple(_image(*pair, root) for pair in zip(row["images"], row["image_info"], strict=True))
    sample = Sample(row["id"], images, tuple(_conversation(conversation) for conversation in row["conversations"]))
    if row["instances"] is None:
        return Record(sample)
    return Record(sample, AnnotatedImage(images[0], tuple(_instance(instance) for instance in row["instances"])))


def _image(image: Mapping[str, Any], info: Mapping[str, Any], root: Path) -> ImageSource:
    embedded = image["bytes"] is not None
    path = None if embedded or image["path"] is None else root / image["path"]
    return ImageSource(info["id"], info["height"], info["width"], path=path, data=image["bytes"])


def _instance(row: Mapping[str, Any]) -> Instance:
    return Instance(**{**row, "mask": _mask(row["mask"]), "box": tuple(row["box"])})


def _conversation(row: Mapping[str, Any]) -> Conversation:
    messages = tuple(Message(**message) for message in row["messages"])
    groundings = tuple(
        Grounding(**{**grounding, "masks": tuple(_mask(mask) for mask in grounding["masks"])})
        for grounding in row["groundings"]
    )
    return Conversation(row["id"], row["kind"], messages, groundings)


def _mask(row: Mapping[str, Any]) -> RLE:
    return RLE(size=list(row["size"]), counts=row["counts"])


def arrow_schema() -> pa.Schema:
    """Our columns, with the types of Hugging Face datasets in the metadata, where `images` are pictures."""
    features = {name: _feature(kind) for name, kind in COLUMNS}
    features["images"] = {"feature": {"_type": "Image"}, "_type": "List"}
    information = json.dumps({"info": {"features": features}})
    return pa.schema([pa.field(name, kind) for name, kind in COLUMNS], metadata={"huggingface": information})


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    if pa.types.is_struct(kind):
        return {kind.field(i).name: _feature(kind.field(i).type) for i in range(kind.num_fields)}
    name = {"double": "float64"}.get(str(kind), str(kind))
    return {"dtype": name, "_type": "Value"}
