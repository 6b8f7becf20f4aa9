"""What can be wrong with one row of a dataset: the one check that reading, inspecting, grounding and training share.

A file's columns are compared once, when it is opened (`schema_fault`); a row's values whenever it is read
(`row_faults`). Pictures are not opened here. The package's own writers cannot write such rows; other tools, and disks,
can.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa

from agevlm.data.images import is_size
from agevlm.data.masks import MaskError, check_mask
from agevlm.data.rows import COLUMNS, Record, to_record
from agevlm.data.schema import Role
from agevlm.documents import NO_TEXT, first_broken_text, is_text
from agevlm.files import inside

NO_CONVERSATION = "sample without a conversation"
NO_ANSWER = "conversation without an answer"
HARMLESS = (NO_CONVERSATION, NO_ANSWER)  # there is nothing to learn then, and nothing in the way of reading
HOLE = "no value for "
USED_BEFORE = "id used before"
IMPOSSIBLE = "picture of an impossible size"
REFUSED = "path of a picture that is not followed"
_MAY_BE_NULL = ("instances", "colour", "present", "bytes", "path")
_ROLES = get_args(Role)

Fault = tuple[str, str]  # its kind, and the place in the row
Size = tuple[int, int]  # height, width


def schema_fault(found: pa.Schema) -> str | None:
    """What is wrong with the columns of a file, or None. Columns that are not ours do not matter."""
    for name, kind in COLUMNS:
        if name not in found.names:
            return f"has no column {name!r}"
        if (fault := _type_fault(found.field(name).type, kind, name)) is not None:
            return fault
    return None


def _type_fault(found: pa.DataType, kind: pa.DataType, name: str) -> str | None:
    types = pa.types
    if types.is_null(found):
        return None
    if types.is_list(kind):
        if types.is_list(found) or types.is_large_list(found) or types.is_fixed_size_list(found):
            return _type_fault(found.value_type, kind.value_type, name)
    elif types.is_struct(kind):
        if types.is_struct(found):
            return _fields_fault(found, kind, name)
    elif any(
        is_one(found) and is_one(kind) for is_one in (_is_text, _is_bytes, types.is_boolean, types.is_integer)
    ) or (types.is_floating(kind) and (types.is_floating(found) or types.is_integer(found))):
        return None
    return f"has {name} of the type {str(found)[:60]}, and {str(kind)[:60]} was expected"


def _fields_fault(found: pa.DataType, kind: pa.DataType, name: str) -> str | None:
    own, others = ({field.name: field.type for field in struct} for struct in (kind, found))
    if different := sorted(own.keys() ^ others.keys()):
        return f"has {name} {'without' if different[0] in own else 'with'} the field {different[0]!r}"
    return next((fault for key in own if (fault := _type_fault(others[key], own[key], f"{name}.{key}"))), None)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def checked_record(row: Mapping[str, Any], vocabulary: Collection[str], root: Path, allow_outside: bool) -> Record:
    """The record of a row. A row with a fault that is not `HARMLESS` is a ValueError that names sample and place."""
    for kind, place in row_faults(row, vocabulary, root, allow_outside):
        if kind not in HARMLESS:
            raise ValueError(f"sample {row['id']}{place}: {kind}")
    return to_record(row, root)


def row_faults(row: Mapping[str, Any], vocabulary: Collection[str], root: Path, allow_outside: bool) -> Iterator[Fault]:
    """What is wrong with one row by itself, its pictures not opened: (kind, place in the row).

    Paths of pictures stay below `root`, the directory of the dataset, unless `allow_outside`.
    """
    for name, find_hole in _HOLES.items():
        if (hole := find_hole(row[name])) is not None:
            yield f"{HOLE}{name}{hole}", ""
            return  # what follows needs every value
    if not is_text("".join(texts := _texts(row))):
        yield "text that is none", f", {first_broken_text(texts)!r:.60} has {NO_TEXT}"
    sizes = [(info["height"], info["width"]) for info in row["image_info"]]
    if len(row["images"]) != len(sizes):
        yield "pictures without a size", ""
    if not all(is_size(*size) for size in sizes):
        yield IMPOSSIBLE, f", {sizes}"
        return
    yield from _path_faults(row["images"], root, allow_outside)
    if row["instances"] is not None and len(sizes) != 1:
        yield "instances in no picture, or in one of several", ""
        return
    for instance in row["instances"] or ():
        for kind, place in _instance_faults(instance, sizes[0], vocabulary):
            yield kind, f", instance {instance['category']!r}{place}"
    if not row["conversations"]:
        yield NO_CONVERSATION, ""
    for conversation in row["conversations"]:
        for kind, place in _conversation_faults(conversation, sizes):
            yield kind, f", conversation {conversation['id']}{place}"


def _texts(row: Mapping[str, Any]) -> list[str]:
    """What a row says: ids, words and contents. Phrases stand in their contents, and paths are checked as such."""
    things, conversations = row["instances"] or (), row["conversations"]
    return [
        row["id"],
        *(info["id"] for info in row["image_info"]),
        *(word for thing in things for word in (thing["category"], thing["colour"]) if word),
        *(text for conversation in conversations for text in (conversation["id"], conversation["kind"])),
        *(message["content"] for conversation in conversations for message in conversation["messages"]),
    ]


def _path_faults(images: Collection[Mapping[str, Any]], root: Path, allow_outside: bool) -> Iterator[Fault]:
    for image in images:
        if image["bytes"] is None and image["path"] is not None:
            try:
                inside(root, image["path"], allow_outside)
            except ValueError as error:
                yield REFUSED, f", {error}"


def _instance_faults(instance: Mapping[str, Any], size: Size, vocabulary: Collection[str]) -> Iterator[Fault]:
    if instance["category"] not in vocabulary:
        yield "category outside the vocabulary", ""
    if not _is_box(instance["box"], size) or not 0 <= instance["area"] <= math.prod(size):
        yield "box or area that is none", f": {str(instance['box'])[:60]}, {instance['area']}, in {size[0]} × {size[1]}"
    yield from _mask_faults(instance["mask"], size, "")


def _is_box(box: Collection[float], size: Size) -> bool:
    """Whether it is (x, y, width, height) inside a picture, give or take a pixel."""
    if len(box) != 4:
        return False
    x, y, width, height = box
    return -1 <= x <= x + width <= size[1] + 1 and -1 <= y <= y + height <= size[0] + 1


def _conversation_faults(conversation: Mapping[str, Any], sizes: list[Size]) -> Iterator[Fault]:
    messages = conversation["messages"]
    if not any(message["role"] == "assistant" and message["content"].strip() for message in messages):
        yield NO_ANSWER, ""
    unknown = [message["role"] for message in messages if message["role"] not in _ROLES]
    if unknown:
        yield "message of an unknown role", f", {unknown[0]!r:.60}"
    shown = [message["num_images"] for message in messages]
    if sum(shown) > len(sizes) or min(shown, default=0) < 0:
        yield "more pictures shown than there are", ""
    for grounding in conversation["groundings"]:
        place = f", phrase {grounding['phrase']!r:.60}"
        if not 0 <= grounding["message"] < len(messages):
            yield "grounding of no message", place
        else:
            content, start, end = messages[grounding["message"]]["content"], grounding["start"], grounding["end"]
            if not 0 <= start < end or content[start:end] != grounding["phrase"]:
                yield "span that is not its phrase", f"{place} in {content!r:.120}"
        if bool(grounding["masks"]) != bool(grounding["present"]):
            yield "masks that disagree with present", place
        if not 0 <= grounding["image"] < len(sizes):
            yield "grounding in no picture", place
            continue
        for mask in grounding["masks"]:
            yield from _mask_faults(mask, sizes[grounding["image"]], place)


def _mask_faults(mask: Mapping[str, Any], size: Size, place: str) -> Iterator[Fault]:
    try:
        if not check_mask(mask, size):
            yield "mask without a pixel", place
    except MaskError as error:
        yield error.kind, f"{place}: {error}"


def _hole_finder(kind: pa.DataType) -> Callable[[Any], str | None]:
    """A function that gives the place of the first value of a column that is missing and must not be, or None."""
    if pa.types.is_list(kind):
        find_in_item = _hole_finder(kind.value_type)
        if not pa.types.is_struct(kind.value_type):
            return lambda items: "" if items is None or None in items else None
        return lambda items: (
            "" if items is None else next((h for i in items if (h := find_in_item(i)) is not None), None)
        )
    if pa.types.is_struct(kind):
        fields = [(field.name, field.name in _MAY_BE_NULL, _hole_finder(field.type)) for field in kind]

        def find(value: Any) -> str | None:
            if value is None:
                return ""
            for name, may_be_null, find_inside in fields:
                inner = value[name]
                if inner is None:
                    if not may_be_null:
                        return f".{name}"
                elif (hole := find_inside(inner)) is not None:
                    return f".{name}{hole}"
            return None

        return find
    return lambda value: "" if value is None else None


def _or_null(find: Callable[[Any], str | None]) -> Callable[[Any], str | None]:
    return lambda value: None if value is None else find(value)


_HOLES = {name: _or_null(_hole_finder(kind)) if name in _MAY_BE_NULL else _hole_finder(kind) for name, kind in COLUMNS}
