"""The `segmentation` of a COCO annotation → one RLE of its picture's size. pycocotools draws; this checks and clips.

Polygons are clipped to the picture before they are drawn, so that wild coordinates cost nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from agevlm.data.masks import MaskError, check_mask
from agevlm.data.schema import RLE

_THIN = 2  # pixels: no wider is the box that stands for a polygon without pixels
_FARTHEST = 1e9  # pixels: beyond it numbers are no places any more, and their products not finite
_LONGEST = 10_000_000  # pixels of outline: pycocotools takes a hundred bytes for each
_SLACK = 1.0  # pixels by which COCO's own polygons leave their pictures; clipped, but not worth counting
NO_MASK = "no mask"  # the reason of what has a box at most
BOXES_AS_MASKS = "draw one, or take boxes as masks by --boxes"


class BrokenAnnotationError(ValueError):
    """An annotation that cannot be used; `reason` is the kind of fault, under which it is counted."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def segmentation_to_rle(segmentation: Any, size: tuple[int, int], notes: Counter[str]) -> RLE:
    """The mask of `size` = (height, width) that a polygon list, an RLE or an uncompressed RLE describes.

    `notes` counts what was mended: polygons clipped to the picture; parts of less than three points left out; polygons
    so thin that no pixel has its centre in them, which get the pixels of their box. A mask that is missing, malformed,
    wholly outside the picture, empty or of another size raises BrokenAnnotationError.
    """
    if isinstance(segmentation, Mapping):
        rle = _check_rle(segmentation, size)
    elif isinstance(segmentation, Sequence) and segmentation and not isinstance(segmentation, str):
        rle = _text_code(_draw(segmentation, size, notes))
    else:
        raise BrokenAnnotationError(NO_MASK, f"it has no segmentation; {BOXES_AS_MASKS}")
    if not check_mask(rle):
        raise BrokenAnnotationError("empty mask", "its mask covers no pixel")
    return rle


def _check_rle(segmentation: Mapping[str, Any], size: tuple[int, int]) -> RLE:
    stated, counts = segmentation.get("size"), segmentation.get("counts")
    if stated != list(size):
        raise BrokenAnnotationError(
            "mask of another size",
            f"its RLE has the size {str(stated)[:60]}, the picture [height, width] is {list(size)}",
        )
    if isinstance(counts, list):
        num_pixels = size[0] * size[1]
        whole = all(isinstance(run, int) and 0 <= run <= num_pixels for run in counts)
        if not whole or sum(counts) != num_pixels:
            raise BrokenAnnotationError("malformed mask", f"the runs of its RLE do not add up to {size[0]} × {size[1]}")
        return _text_code(coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size))
    rle = RLE(size=list(size), counts=counts)  # type: ignore[typeddict-item]
    try:
        check_mask(rle, size)
    except MaskError as error:
        raise BrokenAnnotationError("malformed mask", f"its RLE is {error}") from error
    return rle


def _text_code(code: Mapping[str, Any]) -> RLE:
    return RLE(size=[int(side) for side in code["size"]], counts=code["counts"].decode("ascii"))


def _draw(polygons: Sequence[Any], size: tuple[int, int], notes: Counter[str]) -> dict[str, Any]:
    points = [_points(polygon) for polygon in polygons]
    solid = [polygon for polygon in points if len(polygon) >= 3]
    if not solid:
        raise BrokenAnnotationError("degenerate polygon", "none of its polygons has three points")
    if len(solid) < len(points):
        notes["polygon parts of fewer than 3 points left out"] += len(points) - len(solid)
    height, width = size
    bounds = np.array([width, height], dtype=np.float64)
    inside = []
    for polygon in solid:
        kept = _clip(polygon, bounds)
        if len(kept) >= 3:
            inside.append(kept)
    if (outline := sum(map(_outline_len, inside))) > _LONGEST:
        fault = f"the outline of its polygons has {outline:.0f} pixels, the most are {_LONGEST}"
        raise BrokenAnnotationError("endless polygon", fault)
    if not inside:
        raise BrokenAnnotationError(
            "polygon outside its picture", f"its polygons lie outside the picture of {height} × {width} pixels"
        )
    if any((polygon < -_SLACK).any() or (polygon > bounds + _SLACK).any() for polygon in solid):
        notes["polygons clipped to their picture"] += 1
    rle = coco_mask.merge(coco_mask.frPyObjects([kept.ravel().tolist() for kept in inside], height, width))
    box = _pixel_box(np.concatenate(inside), bounds)
    if not coco_mask.area(rle) and min(box[2:]) <= _THIN:
        notes["polygons thinner than a pixel, given the pixels of their box"] += 1
        return coco_mask.frPyObjects(np.array([box]), height, width)[0]
    return rle


def _pixel_box(points: NDArray[np.float64], bounds: NDArray[np.float64]) -> list[float]:
    """[x, y, width, height] of the whole pixels that points touch, at least one."""
    first = np.minimum(np.floor(points.min(axis=0)), bounds - 1)
    return [*first.tolist(), *np.maximum(np.ceil(points.max(axis=0)) - first, 1).tolist()]


def _points(polygon: Any) -> NDArray[np.float64]:
    """The (x, y) rows of a flat list of coordinates."""
    try:
        flat = np.asarray(polygon, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        fault = f"its polygon is no list of numbers ({str(error)[:100]})"
        raise BrokenAnnotationError("malformed polygon", fault) from error
    if flat.ndim != 1 or len(flat) % 2 or not (np.abs(flat) <= _FARTHEST).all():
        raise BrokenAnnotationError(
            "malformed polygon", "its polygon is no flat list [x1, y1, x2, y2, …] of finite numbers"
        )
    return flat.reshape(-1, 2)


def _clip(polygon: NDArray[np.float64], bounds: NDArray[np.float64]) -> NDArray[np.float64]:
    """The part of a polygon inside [0, bounds], cut at one border after the other (Sutherland and Hodgman 1974)."""
    if (polygon >= 0).all() and (polygon <= bounds).all():
        return polygon
    for axis in (0, 1):
        for sign, limit in ((1.0, 0.0), (-1.0, -bounds[axis])):
            if not len(polygon):
                return polygon
            depth = sign * polygon[:, axis] - limit  # at least 0 on the inner side of the border
            polygon = _cut(polygon, depth)
    return polygon


def _cut(polygon: NDArray[np.float64], depth: NDArray[np.float64]) -> NDArray[np.float64]:
    """The points of no negative depth, and before each point where its side crosses the border."""
    before, depth_before = np.roll(polygon, 1, axis=0), np.roll(depth, 1)
    crosses = (depth_before >= 0) != (depth >= 0)
    share = depth_before / np.where(crosses, depth_before - depth, 1.0)
    crossings = before + share[:, None] * (polygon - before)
    return np.stack([crossings, polygon], axis=1)[np.stack([crosses, depth >= 0], axis=1)]


def _outline_len(polygon: NDArray[np.float64]) -> float:
    """Pixels that drawing the outline visits, at least one for each point."""
    return float(np.maximum(np.abs(polygon - np.roll(polygon, 1, axis=0)).max(axis=1), 1.0).sum())
