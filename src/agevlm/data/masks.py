"""Masks as COCO RLE, and masks as targets on the grid of image tokens. Pure functions; pycocotools does the coding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from agevlm.data.schema import RLE


def encode_mask(mask: NDArray[np.bool_]) -> RLE:
    """Code a boolean mask of shape (height, width)."""
    code = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return RLE(size=[int(side) for side in code["size"]], counts=code["counts"].decode("ascii"))


def decode_mask(rle: RLE) -> NDArray[np.bool_]:
    """The boolean mask of shape (height, width) that `rle` codes."""
    return coco_mask.decode({"size": rle["size"], "counts": rle["counts"].encode("ascii")}).astype(bool)


def union_mask(rles: Sequence[RLE]) -> NDArray[np.bool_]:
    """The boolean union of masks of one size. At least one is needed."""
    assert rles, "a union of no masks has no size"
    codes = [{"size": rle["size"], "counts": rle["counts"].encode("ascii")} for rle in rles]
    return coco_mask.decode(coco_mask.merge(codes)).astype(bool)


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
