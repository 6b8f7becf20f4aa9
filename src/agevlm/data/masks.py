"""Masks as COCO RLE, and masks as targets on the grid of image tokens. Pure functions; pycocotools does the coding.

pycocotools does not check what it decodes: a code that is cut short gives memory that nobody wrote, another one takes
the process along. So every code is checked here, and nowhere else, before it goes there.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from agevlm.data.images import MAX_PIXELS, is_size
from agevlm.data.schema import RLE

_MAX_RUN_CHARS = 7  # of a run below 2³¹ as COCO writes it, five bits each
_KNOWN_MASKS = 4096  # codes whose check is remembered: instances and the phrases about them share theirs
_KNOWN_SHARES = 8192  # unions whose shares are remembered: a phrase, its answer and the next pass have the same


class MaskError(ValueError):
    """A mask that cannot be used. `kind` says in a few words what is wrong with it."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(kind, message)  # both, so that it can be pickled
        self.kind, self.message = kind, message

    def __str__(self) -> str:
        return self.message


def check_mask(rle: Any, size: tuple[int, int] | None = None) -> int:
    """The number of pixels that a code covers, if it is a whole one; with `size`, one of a picture of (height, width).

    Anything else raises MaskError. No mask is decoded: the cost is that of the code's length.
    """
    stated, counts = rle["size"], rle["counts"]
    if not isinstance(stated, list | tuple) or len(stated) != 2 or not all(type(side) is int for side in stated):
        raise MaskError("mask without a size", f"a mask of the size {stated!r:.60}; [height, width] was expected")
    if size is not None and tuple(stated) != tuple(size):
        raise MaskError(
            "mask of another size than its picture", f"a mask of {list(stated)}, the picture is {list(size)}"
        )
    height, width = stated
    if not is_size(height, width):
        raise MaskError("mask without a size", f"a mask of {height} × {width} pixels; a picture has 1 to {MAX_PIXELS}")
    if not isinstance(counts, str):
        raise MaskError("mask that cannot be decoded", "a mask whose counts are no text of COCO's code")
    return _num_pixels(counts, height, width)


@lru_cache(maxsize=_KNOWN_MASKS)
def _num_pixels(counts: str, height: int, width: int) -> int:
    runs = run_lengths(counts)
    if (runs < 0).any() or int(runs.sum()) != height * width:
        raise MaskError("mask that cannot be decoded", f"a mask whose runs do not add up to {height} × {width} pixels")
    return int(runs[1::2].sum())


def run_lengths(counts: str) -> NDArray[np.int64]:
    """The runs in a compressed code: five bits a character, low bits first, from the third on as differences.

    A text that is no such code, or ends within a run, raises MaskError.
    """
    codes = np.frombuffer(counts.encode("utf-8", "replace"), dtype=np.uint8).astype(np.int64) - 48
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or codes[-1] & 0x20:
        raise MaskError("mask that cannot be decoded", "a mask whose counts are no whole text of COCO's code")
    last = np.flatnonzero((codes & 0x20) == 0)  # the last character of each run
    first = np.concatenate([[0], last[:-1] + 1])
    num_chars = last - first + 1
    if num_chars.max() > _MAX_RUN_CHARS:
        raise MaskError("mask that cannot be decoded", "a mask with a run of more than 2³¹ pixels")
    place = np.arange(len(codes)) - np.repeat(first, num_chars)
    values = np.add.reduceat((codes & 0x1F) << (5 * place), first)
    values -= np.where(codes[last] & 0x10, 1 << (5 * num_chars), 0)  # the sign
    runs = values.copy()
    runs[1::2], runs[2::2] = np.cumsum(values[1::2]), np.cumsum(values[2::2])
    return runs


def encode_mask(mask: NDArray[np.bool_]) -> RLE:
    """Code a boolean mask of shape (height, width)."""
    code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return RLE(size=[int(side) for side in code["size"]], counts=code["counts"].decode("ascii"))


def decode_mask(rle: RLE) -> NDArray[np.bool_]:
    """The boolean mask of shape (height, width) that `rle` codes. A damaged code raises MaskError."""
    return coco_mask.decode(_checked(rle)).astype(bool)


def union_mask(rles: Sequence[RLE]) -> NDArray[np.bool_]:
    """The boolean union of masks of one size. At least one is needed. A damaged code, another size: MaskError."""
    assert rles, "a union of no masks has no size"
    size = tuple(rles[0]["size"])
    codes = [_checked(rle, (size[0], size[1]) if len(size) == 2 else None) for rle in rles]
    return coco_mask.decode(coco_mask.merge(codes)).astype(bool)


def mask_box(rle: RLE) -> tuple[float, float, float, float]:
    """(x, y, width, height) in pixels of the box around a mask. A damaged code raises MaskError."""
    x, y, width, height = coco_mask.toBbox(_checked(rle)).tolist()
    return x, y, width, height


def _checked(rle: RLE, size: tuple[int, int] | None = None) -> dict[str, Any]:
    check_mask(rle, size)
    return {"size": list(rle["size"]), "counts": rle["counts"].encode("ascii")}


def union_to_grid(rles: Sequence[RLE], grid: tuple[int, int]) -> NDArray[np.float32]:
    """`mask_to_grid` of the masks' `union_mask`, remembered and read-only. A damaged code, another size: MaskError."""
    return _union_to_grid(tuple((tuple(rle["size"]), rle["counts"]) for rle in rles), grid)


@lru_cache(maxsize=_KNOWN_SHARES)
def _union_to_grid(codes: tuple[tuple[tuple[int, ...], str], ...], grid: tuple[int, int]) -> NDArray[np.float32]:
    union = union_mask([RLE(size=list(size), counts=counts) for size, counts in codes])
    shares = mask_to_grid(union, grid)
    shares.setflags(write=False)
    return shares


def mask_to_grid(mask: NDArray[np.bool_], grid: tuple[int, int]) -> NDArray[np.float32]:
    """Share of each grid cell that the mask covers, shape `grid` = (h, w), values in [0, 1].

    The model's image processor squeezes the whole picture into its square, so a cell is the same share of height and
    width in the picture, whatever its size. A mask smaller than a cell keeps its small share.
    """
    height, width = grid
    rows, columns = (side // cells for side, cells in zip(mask.shape, grid, strict=True))
    if (rows * height, columns * width) == mask.shape:  # whole pixels in every cell
        return mask.reshape(height, rows, width, columns).mean(axis=(1, 3), dtype=np.float32)
    picture = Image.fromarray(mask.astype(np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX), dtype=np.float32).clip(0.0, 1.0)
