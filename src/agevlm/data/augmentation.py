"""Other views of an annotated picture: flipped, cropped, recoloured, or beside three others. The annotation follows.

Masks go the way of the pixels, boxes and areas are those of the new masks, and what is cut away is absent; questions
are made from the new annotation, so that spans and answers fit too. A view is a function of the seed, the picture and
the number of the view.
"""

# Shapes: Y, X the pixels of a picture.

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from pydantic import Field

from agevlm.data.images import open_image
from agevlm.data.masks import decode_mask, encode_mask
from agevlm.data.schema import AnnotatedImage, Instance
from agevlm.documents import Strict

CROP_TRIES = 8
GIVEN_UP = "crops given up, for every one tried cut a thing so that it is neither there nor gone"
ENLARGED = "pictures enlarged to fill their cell of a mosaic"
REPEATED = "mosaics with a picture more than once, for want of four"


class Augmentation(Strict):
    """How other views of a picture are made. All ratios but the sides of crops and what is visible are of views."""

    views: int = Field(4, ge=2, le=10_000)
    """Of each picture, the picture itself among them."""
    flip_ratio: float = Field(0.5, ge=0, le=1)
    """Of the other views: mirrored left to right."""
    crop_ratio: float = Field(0.7, ge=0, le=1)
    """Of the other views: a part of the picture, that much larger."""
    mosaic_ratio: float = Field(0.25, ge=0, le=1)
    """Of the other views: four pictures in one, each in a quarter."""
    colour: float = Field(0.2, ge=0, lt=1)
    """How far brightness, contrast and saturation go up or down."""
    min_side_ratio: float = Field(0.5, gt=0, le=1)
    """Sides of a crop at least, of the picture's own."""
    min_visible_ratio: float = Field(0.25, gt=0, le=1)
    """Of a thing that must be left in a crop, or else nothing of it."""
    seed: int | None = Field(None, ge=0)
    """Of the views. Null: the recipe's; with a number recipes of other seeds share the views and their features."""


class Drawn(NamedTuple):
    """A picture's pixels (Y, X, 3), what is known of it, and what people should know of how it was made."""

    pixels: NDArray[np.uint8]
    annotated: AnnotatedImage
    notes: tuple[str, ...] = ()


def draw_view(
    read: Callable[[int], AnnotatedImage], num_pictures: int, index: int, view: int, settings: Augmentation, seed: int
) -> Drawn:
    """View number `view` of picture number `index`; view 0 is the picture as it is, without file and bytes.

    `read` gives the annotated pictures by their number, with file or bytes. A picture that has labels is never cropped:
    nobody knows whether what they name would be left. A mask of another size than its picture is a ValueError that
    names both.
    """
    if view == 0:
        annotated = read(index)
        return Drawn(np.asarray(_open_picture(annotated)), _unpictured(annotated, ""))
    rng = np.random.default_rng([seed, index, view])
    part = _draw_part(read(index), settings, rng)
    if rng.random() < settings.mosaic_ratio:
        others = _others(num_pictures, index, rng)
        parts = [part, *(_draw_part(read(other), settings, rng) for other in others)]
        part = _mosaic([parts[position] for position in rng.permutation(4)], size=part.size)
        if len({index, *others}) < 4:
            part = replace(part, notes=(*part.notes, REPEATED))
    return part.drawn(read(index), view)


def scaled_down(annotated: AnnotatedImage, max_side: int) -> AnnotatedImage:
    """A large picture with its longer side at `max_side` pixels, as the bytes of a JPEG, and its masks with it.

    A thing keeps a pixel at least. What cannot be decoded is a ValueError.
    """
    picture = _open_picture(annotated)
    ratio = max_side / max(picture.size)
    size = (max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio)))
    encoded = io.BytesIO()
    picture.resize(size, Image.Resampling.LANCZOS).save(encoded, "JPEG", quality=95)
    image = replace(annotated.image, height=size[1], width=size[0], path=None, data=encoded.getvalue())
    instances = tuple(_with_mask(one, _resized(decode_mask(one.mask), size)) for one in annotated.instances)
    return AnnotatedImage(image, instances, annotated.labels)


@dataclass(frozen=True)
class _Part:
    """A picture in work: pixels, its things with their masks in pixels, and what is there without a place."""

    picture: Image.Image
    things: tuple[tuple[Instance, NDArray[np.bool_]], ...]
    labels: tuple[str, ...]
    notes: tuple[str, ...] = ()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.picture.height, self.picture.width

    def drawn(self, original: AnnotatedImage, view: int) -> Drawn:
        image = replace(original.image, height=self.picture.height, width=self.picture.width)
        instances = tuple(_with_mask(instance, mask_YX) for instance, mask_YX in self.things)
        annotated = AnnotatedImage(image, instances, self.labels)
        return Drawn(np.asarray(self.picture), _unpictured(annotated, f"/view-{view}"), self.notes)


def _unpictured(annotated: AnnotatedImage, suffix: str) -> AnnotatedImage:
    image = replace(annotated.image, id=annotated.image.id + suffix, path=None, data=None)
    return replace(annotated, image=image)


def _with_mask(instance: Instance, mask_YX: NDArray[np.bool_]) -> Instance:
    rows, columns = np.flatnonzero(mask_YX.any(axis=1)), np.flatnonzero(mask_YX.any(axis=0))
    box = (columns[0], rows[0], columns[-1] + 1 - columns[0], rows[-1] + 1 - rows[0])
    x, y, width, height = (float(side) for side in box)
    return replace(instance, mask=encode_mask(mask_YX), box=(x, y, width, height), area=float(mask_YX.sum()))


def _others(num_pictures: int, index: int, rng: np.random.Generator) -> list[int]:
    """Three more pictures, different ones as far as there are."""
    rest = [number for number in rng.permutation(num_pictures)[:4].tolist() if number != index][:3]
    return [*rest, *rng.integers(num_pictures, size=3 - len(rest)).tolist()]


def _draw_part(annotated: AnnotatedImage, settings: Augmentation, rng: np.random.Generator) -> _Part:
    part = _open(annotated)
    if rng.random() < settings.flip_ratio:
        part = _flipped(part)
    if rng.random() < settings.crop_ratio:
        part = _cropped(part, settings, rng)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        factor = 1 + settings.colour * rng.uniform(-1, 1)
        part = replace(part, picture=enhance(part.picture).enhance(factor))
    return part


def _open_picture(annotated: AnnotatedImage) -> Image.Image:
    """The picture, after checking that its masks are of its size."""
    picture = open_image(annotated.image)
    for instance in annotated.instances:
        if tuple(instance.mask["size"]) != (picture.height, picture.width):
            raise ValueError(
                f"image {annotated.image.id}: the mask of a {instance.category} has {instance.mask['size'][0]} × "
                f"{instance.mask['size'][1]} pixels (height × width), the picture {picture.height} × {picture.width}; "
                "make masks of the picture's size"
            )
    return picture


def _open(annotated: AnnotatedImage) -> _Part:
    picture = _open_picture(annotated)
    things, labels = [], list(annotated.labels)
    for instance in annotated.instances:
        mask_YX = decode_mask(instance.mask)
        if mask_YX.any():
            things.append((instance, mask_YX))
        else:
            labels.append(instance.category)  # there, and nobody knows where
    return _Part(picture, tuple(things), tuple(dict.fromkeys(labels)))


def _flipped(part: _Part) -> _Part:
    things = tuple((instance, mask_YX[:, ::-1]) for instance, mask_YX in part.things)
    return replace(part, picture=part.picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT), things=things)


def _cropped(part: _Part, settings: Augmentation, rng: np.random.Generator) -> _Part:
    """A part of the picture in which every category is clearly there or gone, and something is left."""
    if part.labels:
        return part
    for _ in range(CROP_TRIES):
        (top, bottom), (left, right) = (_stretch(side, settings.min_side_ratio, rng) for side in part.size)
        cut = [(instance, mask_YX[top:bottom, left:right]) for instance, mask_YX in part.things]
        if _is_clear(part.things, cut, settings.min_visible_ratio):
            left_in = tuple((instance, mask_YX) for instance, mask_YX in cut if mask_YX.any())
            return replace(part, picture=part.picture.crop((left, top, right, bottom)), things=left_in)
    return replace(part, notes=(*part.notes, GIVEN_UP))


def _stretch(side: int, min_ratio: float, rng: np.random.Generator) -> tuple[int, int]:
    length = max(1, round(side * rng.uniform(min_ratio, 1)))
    start = int(rng.integers(side - length + 1))
    return start, start + length


def _is_clear(
    before: Sequence[tuple[Instance, NDArray[np.bool_]]],
    after: Sequence[tuple[Instance, NDArray[np.bool_]]],
    min_visible_ratio: float,
) -> bool:
    """Whether of each category one thing is left to that share, or no pixel of any; and whether anything is left."""
    most: dict[str, float] = {}
    for (instance, whole_YX), (_, left_YX) in zip(before, after, strict=True):
        share = int(left_YX.sum()) / int(whole_YX.sum())
        most[instance.category] = max(share, most.get(instance.category, 0.0))
    clear = all(share == 0 or share >= min_visible_ratio for share in most.values())
    return clear and (not most or any(most.values()))


def _mosaic(parts: Sequence[_Part], size: tuple[int, int]) -> _Part:
    """Four pictures in the quarters of one of about that (height, width), each squeezed whole into its cell."""
    height, width = (max(1, side // 2) for side in size)
    canvas = Image.new("RGB", (2 * width, 2 * height))
    things: list[tuple[Instance, NDArray[np.bool_]]] = []
    notes = [note for part in parts for note in part.notes]
    for number, part in enumerate(parts):
        top, left = number // 2 * height, number % 2 * width
        canvas.paste(part.picture.resize((width, height), Image.Resampling.BICUBIC), (left, top))
        if part.size[0] < height or part.size[1] < width:
            notes.append(ENLARGED)
        for instance, mask_YX in part.things:
            placed_YX = np.zeros((2 * height, 2 * width), dtype=bool)
            placed_YX[top : top + height, left : left + width] = _resized(mask_YX, (width, height))
            things.append((instance, placed_YX))
    labels = tuple(dict.fromkeys(label for part in parts for label in part.labels))
    return _Part(canvas, tuple(things), labels, tuple(notes))


def _resized(mask_YX: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask at another (width, height): the pixels that it covers by half, or, where there is none, at all."""
    covered_YX = np.asarray(Image.fromarray(mask_YX.astype(np.float32)).resize(size, Image.Resampling.BOX))
    return covered_YX >= min(0.5, float(covered_YX.max()))
