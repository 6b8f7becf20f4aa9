"""Which part of a picture a question is about, by relative attention, and the picture cut there.

Zhang et al., 2025, ViCrop (arXiv 2502.17422), by their published code: the attention from where the answer begins to
the image tokens, mean over heads, in one layer below the middle (14 of 32), divided by that of a request for a general
description; the window in which the sum stands out most from the windows beside it, of six sizes. The model then sees
the whole picture and the cut one. They measure windows in the tower's input (336 pixels), which many families have
not: here the smallest is half the shorter side of the picture, and the largest all of it, as in a picture twice as
large as that input. A cut picture is scaled up by the processor like any other.
"""

# Shapes: h, w the grid of a map.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from agevlm.data.schema import Message
from agevlm.vlms.views import Size

if TYPE_CHECKING:
    from agevlm.vlms.inputs import Inputs, Kept
    from agevlm.vlms.vlm import Vlm

GENERAL = "Write a general description of the image."
LAYER_RATIO = 14 / 32
SIDE_RATIOS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)

PixelBox = tuple[int, int, int, int]  # top, left, bottom, right


def relative_maps(
    vlm: Vlm, texts: Sequence[str], messages: Sequence[Sequence[Message]], pictures: Sequence[Sequence[Kept]]
) -> list[NDArray[Any]]:
    """The relative attention (h, w) of each row, about one picture each: two passes."""
    general = [vlm.chat([*said[:-1], replace(said[-1], content=GENERAL)]).text for said in messages]
    asked, plain = (_answer_maps(vlm, vlm.encode(of, pictures)) for of in (texts, general))
    return [one / np.maximum(two, 1e-12) for one, two in zip(asked, plain, strict=True)]


def _answer_maps(vlm: Vlm, inputs: Inputs) -> list[NDArray[np.float32]]:
    rows = vlm.read(inputs, positions=[[inputs.text_len - 1]] * len(inputs.texts)).rows
    layers = sorted(rows)
    weights_RN = rows[layers[int(LAYER_RATIO * len(layers))]][:, :, 0].mean(1).cpu().numpy()
    return [row[0].map(weights_N[row[0].columns]) for row, weights_N in zip(inputs.pictures, weights_RN, strict=True)]


def best_window(map_hw: NDArray[Any], size: Size) -> PixelBox:
    """The square of pixels in a picture of `size` in which the map stands out most from the squares beside it.

    Of each side the window with the largest sum; of these the one that is furthest above the mean of the windows one
    cell up, down, left and right of it, for each of its cells. Where there is only one window, the whole picture.
    """
    cell = size[0] / map_hw.shape[0], size[1] / map_hw.shape[1]
    found: list[tuple[float, int, tuple[float, float]]] = []
    for ratio in SIDE_RATIOS:
        side = max(1, round(ratio * min(size)))
        cells = tuple(min(max(1, int(side / c)), n) for c, n in zip(cell, map_hw.shape, strict=True))
        sums = sliding_window_view(map_hw, cells).sum((-2, -1))
        if sums.size == 1:
            continue
        y, x = (int(place) for place in np.unravel_index(int(sums.argmax()), sums.shape))
        beside = [
            sums[v, u]
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
            if 0 <= v < sums.shape[0] and 0 <= u < sums.shape[1]
        ]
        contrast = float(sums[y, x] - np.mean(beside)) / (cells[0] * cells[1])
        found.append((contrast, side, ((y + cells[0] / 2) * cell[0], (x + cells[1] / 2) * cell[1])))
    if not found:
        return (0, 0, size[0], size[1])
    _, side, centre = max(found, key=lambda one: one[0])
    top, left = (round(min(max(c - side / 2, 0), n - side)) for c, n in zip(centre, size, strict=True))
    return (top, left, top + side, left + side)


def cut(picture: Any, box: PixelBox) -> Any:
    """The part of a picture in a box."""
    top, left, bottom, right = box
    return picture.crop((left, top, right, bottom))
