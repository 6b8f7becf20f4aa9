"""Everything that can be wrong with a written dataset, found and named: rows are read as they are, not as records.

The package's own writers cannot write such rows; other tools, and disks, can.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agevlm.data.images import ImageError, open_image
from agevlm.data.masks import decode_mask
from agevlm.data.parquet import read_parquet
from agevlm.data.schema import ImageSource

USED_BEFORE = "id used before"
NO_CONVERSATION = "sample without a conversation"
NO_ANSWER = "conversation without an answer"


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


def check_dataset(directory: str | Path, *, decode: bool = True) -> Faults:
    """Go through a whole dataset: ids, conversations, spans, masks and, with `decode`, every picture.

    A directory that is no dataset, or one with a shard that cannot be read, is a ValueError.
    """
    dataset, faults = read_parquet(directory), Faults()
    samples: set[str] = set()
    pictures: set[str] = set()
    for row in dataset.rows():
        name = f"sample {row['id']}"
        if row["id"] in samples:
            faults.add(USED_BEFORE, name)
        samples.add(row["id"])
        for info in row["image_info"] or []:
            if info["id"] in pictures:
                faults.add("picture's id used before", f"{name}, picture {info['id']}")
            pictures.add(info["id"])
        for image, info in zip(row["images"] or [], row["image_info"] or [], strict=False):
            if decode and (error := _error_of(image, info)):
                faults.add(error.kind, f"{name}, {error}")
        for kind, place in row_faults(row, dataset.vocabulary):
            faults.add(kind, f"{name}{place}")
    return faults


def row_faults(row: Mapping[str, Any], vocabulary: Collection[str]) -> Iterator[tuple[str, str]]:
    """What is wrong with one row by itself, its pictures not decoded: (kind, place in the row)."""
    sizes = [(info["height"], info["width"]) for info in row["image_info"] or []]
    if len(row["images"] or []) != len(row["image_info"] or []):
        yield "pictures without a size", ""
    for instance in row["instances"] or []:
        if instance["category"] not in vocabulary:
            yield "category outside the vocabulary", f", {instance['category']!r}"
        yield from _mask_faults(instance["mask"], sizes[0] if sizes else None, f", instance {instance['category']!r}")
    if not row["conversations"]:
        yield NO_CONVERSATION, ""
    for conversation in row["conversations"] or []:
        for kind, place in _conversation_faults(conversation, sizes):
            yield kind, f", conversation {conversation['id']}{place}"


def _conversation_faults(conversation: Mapping[str, Any], sizes: list[tuple[int, int]]) -> Iterator[tuple[str, str]]:
    messages = conversation["messages"] or []
    if not any(message["role"] == "assistant" and (message["content"] or "").strip() for message in messages):
        yield NO_ANSWER, ""
    if sum(message["num_images"] or 0 for message in messages) > len(sizes):
        yield "more pictures shown than there are", ""
    for grounding in conversation["groundings"] or []:
        place = f", phrase {grounding['phrase']!r}"
        if not 0 <= grounding["message"] < len(messages):
            yield "grounding of no message", place
        else:
            content = messages[grounding["message"]]["content"] or ""
            if not grounding["phrase"] or content[grounding["start"] : grounding["end"]] != grounding["phrase"]:
                yield "span that is not its phrase", f"{place} in {content!r}"
        masks = grounding["masks"] or []
        if bool(masks) != bool(grounding["present"]):
            yield "masks that disagree with present", place
        if not 0 <= grounding["image"] < len(sizes):
            yield "grounding in no picture", place
            continue
        for mask in masks:
            yield from _mask_faults(mask, sizes[grounding["image"]], place)


def _mask_faults(mask: Mapping[str, Any], size: tuple[int, int] | None, place: str) -> Iterator[tuple[str, str]]:
    if size is not None and tuple(mask["size"]) != size:
        yield "mask of another size than its picture", f"{place}: {mask['size']}, the picture is {list(size)}"
        return
    try:
        empty = not decode_mask({"size": list(mask["size"]), "counts": mask["counts"]}).any()
    except (ValueError, TypeError, AttributeError):  # pycocotools raises what it meets
        yield "mask that cannot be decoded", place
        return
    if empty:
        yield "mask without a pixel", place


def _error_of(image: Mapping[str, Any], info: Mapping[str, Any]) -> ImageError | None:
    path = None if image["path"] is None or image["bytes"] is not None else Path(image["path"])
    try:
        open_image(ImageSource(info["id"], info["height"], info["width"], path=path, data=image["bytes"]))
    except ImageError as error:
        return error
    return None
