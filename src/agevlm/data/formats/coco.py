"""COCO instance annotations → the project's grounded dataset. Back to COCO goes `coco_export.py`.

Reads `instances_*.json` with polygons, RLEs and crowds. Nothing is left out in silence: what cannot be used is an
error that names it, or, where the caller allows, counted by reason in the `Report`. Captions, keypoints and panoptic
files are not read. What is asked about the pictures is made in `language.py` and `pope.py`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agevlm.data.augmentation import scaled_down
from agevlm.data.formats.coco_export import OWN_COLOUR, OWN_ID
from agevlm.data.formats.coco_masks import BOXES_AS_MASKS, NO_MASK, BrokenAnnotationError, segmentation_to_rle
from agevlm.data.formats.report import Report
from agevlm.data.images import image_size, open_image, read_bytes
from agevlm.data.language import MAX_CONVERSATIONS, check_kinds, make_conversations
from agevlm.data.masks import check_mask, mask_box
from agevlm.data.nouns import plain
from agevlm.data.parquet import Record, Summary, write_parquet
from agevlm.data.pope import Statistics, ask_pope, picture_rng
from agevlm.data.schema import AnnotatedImage, ImageSource, Instance, Sample
from agevlm.documents import NO_TEXT, first_broken_text, is_text, read_json
from agevlm.files import inside

_SKIP = "--skip-broken (skip_broken=True) leaves such things out and counts them"
OTHER_SIZE = "pictures of another size than stated"
MISSING = "pictures missing on disk"
_TYPES = {
    "id": int | str,
    "image_id": int | str,
    "name": str,
    "file_name": str,
    "caption": str,
    "height": int,
    "width": int,
}


EMPTY = "pictures without any instance (--keep-empty takes them for pictures that show none of the categories)"


@dataclass(frozen=True)
class CocoOptions:
    """What `convert_coco` makes of each picture.

    `num_per_image` conversations (captions and questions, weighed by `kinds`; see `language.py`) and POPE's questions
    on `pope_per_image` present and as many absent categories of each kind (0: none), of the first `limit` pictures.
    With `embed_images=False` the dataset points to the files of the pictures and does not hold them. `allow_outside`
    takes pictures from outside the directory of pictures, where the file names such. `keep_empty` takes pictures
    without any instance as such that show none of the categories; else they count as not annotated and are left out.
    A picture with a side above `max_side` pixels is held smaller, and its masks with it; None: as it is. `boxes` takes
    the box of an annotation without a mask for its mask.
    """

    seed: int = 0
    num_per_image: int = 6
    pope_per_image: int = 3
    kinds: Mapping[str, float] | None = None
    limit: int | None = None
    skip_missing: bool = False
    skip_broken: bool = False
    embed_images: bool = True
    max_side: int | None = None
    allow_outside: bool = False
    keep_empty: bool = False
    boxes: bool = False


def read_coco(
    instances: str | Path,
    images: str | Path,
    *,
    limit: int | None = None,
    skip_missing: bool = False,
    skip_broken: bool = False,
    allow_outside: bool = False,
    boxes: bool = False,
) -> tuple[list[AnnotatedImage], Report]:
    """The annotated pictures of a COCO instances file, in its order, and what became of it.

    `images` is the directory of the pictures; only their heads are read. Pictures without annotations are kept: none of
    the categories is in them. Areas are counted on the masks; boxes are the file's, or the mask's where the file's is
    missing or leaves the picture. `limit` takes the first so many usable pictures. With `boxes` an annotation without
    a mask has its box, filled, for one.

    ValueErrors: no such file, not JSON, not a COCO instances file, nothing in it, one id twice. A picture missing on
    disk is one, unless `skip_missing`. A picture outside of `images` (unless `allow_outside`), one that cannot be read
    or has another size than stated, an annotation of
    an unknown picture or category, and a mask that is malformed, outside its picture or of another size is one, unless
    `skip_broken`. A picture with a broken annotation is then left out as a whole, for what it shows is not known.
    """
    reader = _Reader(Path(instances), Path(images), skip_missing, skip_broken, allow_outside, boxes)
    annotated = reader.read(limit)
    return annotated, reader.report


def convert_coco(
    instances: str | Path, images: str | Path, out: str | Path, options: CocoOptions | None = None
) -> tuple[Report, Summary]:
    """Write the grounded dataset (`parquet.py`) of a COCO instances file to `out`: the `agevlm data coco` command.

    Each picture becomes one sample of captions, questions and POPE's questions, whose frequencies are those of the
    pictures read. Every picture is decoded once, to find the damaged ones. Deterministic in the seed and the picture's
    id. Pictures without instances have nothing to say and are counted as left out. Errors as in `read_coco`.
    """
    options = options or CocoOptions()
    if options.kinds is not None:
        check_kinds(options.kinds)
    if not all(0 <= number <= MAX_CONVERSATIONS for number in (options.num_per_image, options.pope_per_image)):
        raise ValueError(
            f"num_per_image and pope_per_image must be from 0 to {MAX_CONVERSATIONS}, got {options.num_per_image} and "
            f"{options.pope_per_image}"
        )
    annotated, report = read_coco(
        instances,
        images,
        limit=options.limit,
        skip_missing=options.skip_missing,
        skip_broken=options.skip_broken,
        allow_outside=options.allow_outside,
        boxes=options.boxes,
    )
    return report, write_annotated(annotated, report, out, options)


def write_annotated(
    annotated: Sequence[AnnotatedImage], report: Report, out: str | Path, options: CocoOptions
) -> Summary:
    """Write the dataset of annotated pictures, and count in `report`, which has the vocabulary, what became of them."""
    records = _records(annotated, report, options)
    name = Path(out).name
    return write_parquet(out, records, name=name, vocabulary=report.vocabulary, embed_images=options.embed_images)


def _records(annotated: Sequence[AnnotatedImage], report: Report, options: CocoOptions) -> Iterator[Record]:
    statistics = Statistics.of(annotated, report.vocabulary)
    report.kept.clear()
    for picture in annotated:
        if not picture.instances and not options.keep_empty:
            report.left_out[EMPTY] += 1
            continue
        try:
            picture = _held(picture, report, options)
        except ValueError as error:
            if not options.skip_broken:
                raise ValueError(f"{error}; {_SKIP}") from error
            report.leave_out("pictures that cannot be read", str(error))
            continue
        image = picture.image
        rng = picture_rng(image.id, options.seed)
        drawn = make_conversations(picture, rng, report.vocabulary, options.kinds, options.num_per_image)
        num_pope = options.pope_per_image
        pope = ask_pope(picture, statistics, num=num_pope, seed=options.seed) if num_pope else ()
        report.kept.update({"pictures": 1, "instances": len(picture.instances), "conversations": len(drawn)})
        report.kept.update({"crowds": sum(i.crowd for i in picture.instances), "POPE questions": len(pope)})
        yield Record(Sample(image.id, (image,), (*drawn, *pope)), picture)


def _held(picture: AnnotatedImage, report: Report, options: CocoOptions) -> AnnotatedImage:
    """The picture as the dataset holds it; a ValueError where it cannot be decoded."""
    image = picture.image
    if options.max_side and max(image.height, image.width) > options.max_side:
        smaller = scaled_down(picture, options.max_side)
        report.mended[f"pictures scaled down to {options.max_side} pixels"] += 1
        return smaller
    open_image(image)
    return replace(picture, image=replace(image, data=read_bytes(image))) if options.embed_images else picture


class _Reader:
    """Reads one instances file: categories, then pictures, then annotations."""

    def __init__(
        self, instances: Path, images: Path, skip_missing: bool, skip_broken: bool, allow_outside: bool, boxes: bool
    ) -> None:
        self.path, self.images, self.allow_outside, self.boxes = instances, images, allow_outside, boxes
        self.skip_missing, self.skip_broken = skip_missing, skip_broken
        self.report = Report(str(instances))
        self.doubtful: set[Any] = set()  # ids of pictures with a broken annotation

    def read(self, limit: int | None) -> list[AnnotatedImage]:
        if limit is not None and limit < 1:
            raise ValueError(f"the limit of pictures must be at least 1, got {limit}")
        content = load_instances(self.path)
        if not self.images.is_dir():
            raise ValueError(f"{self.images}: no such directory of pictures; give the one of {self.path.name}")
        self.report = Report(str(self.path))
        categories = read_categories(content["categories"], self.path, self.report.mended)
        self.report = replace(self.report, vocabulary=tuple(dict.fromkeys(categories.values())))
        sources, listed = self._sources(content["images"], limit)
        instances = self._instances(content["annotations"], categories, sources, listed)
        for number in self.doubtful & set(sources):
            del sources[number]
            self.report.left_out["pictures with a broken annotation"] += 1
        if not sources:
            raise ValueError(f"{self.path}: none of its {len(listed)} pictures can be used: {self._reasons()}")
        annotated = [AnnotatedImage(source, tuple(instances[number])) for number, source in sources.items()]
        self.report.kept["pictures"] = len(annotated)
        self.report.kept["instances"] = sum(len(picture.instances) for picture in annotated)
        self.report.kept["crowds"] = sum(i.crowd for picture in annotated for i in picture.instances)
        return annotated

    def _sources(
        self, entries: Sequence[Mapping[str, Any]], limit: int | None
    ) -> tuple[dict[Any, ImageSource], set[Any]]:
        """The usable pictures by their id in the file, up to `limit`, and the ids of all that are listed."""
        listed: set[Any] = set()
        sources: dict[Any, ImageSource] = {}
        for entry in entries:
            number = field_of(entry, "id", "image", self.path)
            if number in listed:
                raise ValueError(f"{self.path}: two images have the id {number}; give each its own")
            listed.add(number)
            if limit is not None and len(sources) >= limit:
                self.report.left_out["pictures after the limit"] += 1
                continue
            source = self._source(entry, number)
            if source is not None:
                sources[number] = source
        return sources, listed

    def _source(self, entry: Mapping[str, Any], number: Any) -> ImageSource | None:
        name, height, width = (
            field_of(entry, key, f"image {number}", self.path) for key in ("file_name", "height", "width")
        )
        try:
            path = inside(self.images, name, self.allow_outside)
        except ValueError as error:
            self._broken("pictures outside their directory", f"{self.path}: image {number}: {error}")
            return None
        source = ImageSource(str(entry.get(OWN_ID, number)), height, width, path=path)
        if not os.path.isfile(path):  # unlike Path's own, false for a name that no file system takes
            if not self.skip_missing:
                raise ValueError(
                    f"{path}: no such file, {self.path.name} lists it as image {number}; check the directory of "
                    "pictures, or leave such pictures out with --skip-missing (skip_missing=True)"
                )
            self.report.leave_out(MISSING, str(path))
            return None
        try:
            size = image_size(path)
        except ValueError as error:
            self._broken("pictures that cannot be read", str(error))
            return None
        if size != (height, width):
            self._broken(OTHER_SIZE, other_size(path, size, (height, width)))
            return None
        return source

    def _instances(
        self,
        entries: Sequence[Mapping[str, Any]],
        categories: Mapping[Any, str],
        sources: Mapping[Any, ImageSource],
        listed: set[Any],
    ) -> dict[Any, list[Instance]]:
        instances: dict[Any, list[Instance]] = {number: [] for number in sources}
        seen: set[Any] = set()
        for entry in entries:
            identity, image = (field_of(entry, key, "annotation", self.path) for key in ("id", "image_id"))
            name = f"{self.path}: annotation {identity} of image {image}"
            if identity in seen:
                self._broken("annotations of an id used before", f"{name} shares its id with another; give it its own")
                self.doubtful.add(image)
                continue
            seen.add(identity)
            if image not in listed:
                self._broken("annotations of no picture", f"{name}: the file does not list this image; add it")
            elif image not in sources:
                self.report.left_out["annotations of pictures left out"] += 1
            else:
                self._add_instance(instances[image], entry, categories, sources[image], name)
        return instances

    def _add_instance(
        self,
        instances: list[Instance],
        entry: Mapping[str, Any],
        categories: Mapping[Any, str],
        source: ImageSource,
        name: str,
    ) -> None:
        if self.boxes and not entry.get("segmentation") and (box := _sides(entry.get("bbox"))):
            entry = {**entry, "segmentation": [_corners(*box)]}
            self.report.mended["boxes taken as masks"] += 1
        try:
            instances.append(to_instance(entry, categories, source, self.report.mended))
        except BrokenAnnotationError as error:
            self._broken(f"annotations: {error.reason}", f"{name}: {error}; correct it")
            self.doubtful.add(plain_id(entry["image_id"]))

    def _broken(self, reason: str, detail: str) -> None:
        if not self.skip_broken:
            raise ValueError(f"{detail}; {_SKIP}")
        self.report.leave_out(reason, detail)

    def _reasons(self) -> str:
        """Why pictures were left out, and what helps where they are elsewhere, or have boxes alone."""
        reasons, first = [self.report.reasons() or "it lists none"], self.report.first
        if MISSING in first:
            reasons.append(f"the first is {first[MISSING]}: give --images, the directory of the pictures")
        if f"annotations: {NO_MASK}" in first:
            reasons.append(f"where there is no mask, {BOXES_AS_MASKS}")
        return "; ".join(reasons)


def load_instances(path: Path) -> dict[str, Any]:
    """The content of an instances file, its three lists checked; anything else is a ValueError that names it."""
    if not path.exists():
        raise ValueError(f"{path}: no such annotation file; give an instances_*.json of COCO")
    content = read_json(path, "give an instances_*.json of COCO")
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError(f'{path}: has no list "{key}"; it is not a COCO instances file')
        if not entries:
            raise ValueError(f'{path}: its list "{key}" is empty; an empty dataset is of no use')
    if (text := first_broken_text([content["images"], content["categories"]])) is not None:
        raise ValueError(f"{path}: {text[:80]!r} has {NO_TEXT}; correct it")
    return content


def read_categories(entries: Sequence[Mapping[str, Any]], path: Path, mended: Counter[str]) -> dict[Any, str]:
    """Id → name of the categories of an instances file, in small letters with single spaces, as questions say it.

    Ids of one name are one category. `mended` counts both. Two of one id, and one without a name: ValueError.
    """
    names: dict[Any, str] = {}
    for entry in entries:
        number, written = (field_of(entry, key, "category", path) for key in ("id", "name"))
        name = plain(written)
        if number in names:
            raise ValueError(
                f"{path}: two categories share the id {number}: {names[number]!r} and {name!r}; give each its own"
            )
        if not name:
            raise ValueError(f"{path}: category {number} has an empty name; give it one")
        if name != written:
            mended["names of categories put in small letters with single spaces"] += 1
        if name in names.values():
            mended["categories of a name that another has, taken as one"] += 1
        names[number] = name
    return names


def plain_id(value: Any) -> Any:
    """An id; the number where a text is one, for some files write the same id as text here, as a number there."""
    is_number = isinstance(value, str) and len(value) < 19 and value.isascii() and value.isdigit()
    return int(value) if is_number and str(int(value)) == value else value


def field_of(entry: Mapping[str, Any], key: str, what: str, path: Path) -> Any:
    """A field of an entry, of the type that COCO gives it; an id as `plain_id` has it."""
    value = entry.get(key)
    if not isinstance(value, _TYPES[key]) or isinstance(value, bool):
        fault = "has no" if value is None else f"has the value {value!r:.60} as"
        raise ValueError(f'{path}: {what} {fault} "{key}": {json.dumps(entry)[:120]}; it is not a file of COCO')
    return plain_id(value) if key in ("id", "image_id") else value


def other_size(path: Path, size: tuple[int, int], stated: tuple[Any, Any]) -> str:
    """What to say about a picture of another (height, width) than the instances file states."""
    turned = ", it seems EXIF turns it and they do not: annotate it upright" if size == stated[::-1] else ""
    return (
        f"{path}: the picture is {size[0]} × {size[1]} pixels (height × width), its instances say "
        f"{stated[0]} × {stated[1]}{turned}; masks would not fit: use the pictures that were annotated"
    )


def to_instance(
    entry: Mapping[str, Any], categories: Mapping[Any, str], source: ImageSource, mended: Counter[str]
) -> Instance:
    """An annotation of a picture as an instance; `mended` counts what was. Else BrokenAnnotationError."""
    number = plain_id(entry.get("category_id"))
    if not isinstance(number, int | str) or number not in categories:
        raise BrokenAnnotationError(
            "unknown category", f"category {number!r:.60} is none of the {len(categories)} listed"
        )
    colour = entry.get(OWN_COLOUR)
    if colour is not None and not (isinstance(colour, str) and is_text(colour)):
        raise BrokenAnnotationError("malformed colour", f"its {OWN_COLOUR} is {colour!r:.60}, and a word was expected")
    crowd = entry.get("iscrowd")
    if crowd not in (None, 0, 1):
        raise BrokenAnnotationError("malformed iscrowd", f"its iscrowd is {crowd!r:.60}, and 0 or 1 was expected")
    mask = segmentation_to_rle(entry.get("segmentation"), (source.height, source.width), mended)
    box = _box(entry.get("bbox"), source) or mask_box(mask)
    return Instance(categories[number], mask, box, float(check_mask(mask)), colour=colour, crowd=bool(crowd))


def _box(box: Any, source: ImageSource) -> tuple[float, float, float, float] | None:
    """A box of the file, or None where it is no box inside the picture."""
    sides = _sides(box)
    if sides is None:
        return None
    x, y, width, height = sides
    return sides if x >= 0 and y >= 0 and x + width <= source.width and y + height <= source.height else None


def _sides(box: Any) -> tuple[float, float, float, float] | None:
    """x, y, width and height of a box of the file, or None where it is none."""
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(side, int | float) for side in box):
        return None
    if not all(abs(side) < 1e9 for side in box):
        return None
    x, y, width, height = (float(side) for side in box)
    return (x, y, width, height) if width > 0 and height > 0 else None


def _corners(x: float, y: float, width: float, height: float) -> list[float]:
    """The polygon of a box."""
    return [x, y, x + width, y, x + width, y + height, x, y + height]
