"""What an image token stands for: the box of pixels, in the picture's own pixels, that its cell of a view covers.

A processor makes views of a picture: the whole of it squeezed, cut or padded to a canvas, or tiles of a larger canvas.
A view is a rectangle of the picture under an even grid of tokens. That is all that the rest needs to know of resizing,
padding, tiling, thumbnails, pixel shuffle and merging. Pure arithmetic: no model, no tensor.
"""

# Shapes: n image tokens of a picture, h, w an even grid over the picture, H, W its pixels.

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Size = tuple[int, int]  # height, width
_KEPT = 64
Box = tuple[float, float, float, float]  # top, left, bottom, right; may reach beyond the picture where it is padded


@dataclass(frozen=True)
class View:
    """A grid (rows, columns) of tokens, row by row, over the rectangle `box` of the picture.

    Tokens that stand for no pixels: one at the end of each row (`row_ends`), some `before` and `after` the grid. A view
    whose box is None is a filler, and none of its tokens stands for pixels.
    """

    grid: Size
    box: Box | None
    row_ends: bool = False
    before: int = 0
    after: int = 0

    @property
    def num_tokens(self) -> int:
        """How many tokens it has, those without pixels included."""
        rows, columns = self.grid
        return self.before + rows * (columns + self.row_ends) + self.after

    @property
    def cell(self) -> tuple[float, float]:
        """(height, width) of a cell in the picture's pixels; infinite where there is none."""
        if self.box is None or 0 in self.grid:
            return (math.inf, math.inf)
        top, left, bottom, right = self.box
        return (bottom - top) / self.grid[0], (right - left) / self.grid[1]

    def boxes(self) -> NDArray[np.float64]:
        """(num_tokens, 4): the box of each token, NaN where it stands for no pixels. Not yet cut to the picture."""
        rows, columns = self.grid
        top, left, bottom, right = (np.nan,) * 4 if self.box is None else self.box
        ys, xs = np.linspace(top, bottom, rows + 1), np.linspace(left, right, columns + 1)
        cells = np.full((rows, columns + self.row_ends, 4), np.nan)
        cells[:, :columns, 0], cells[:, :columns, 2] = ys[:-1, None], ys[1:, None]
        cells[:, :columns, 1], cells[:, :columns, 3] = xs[None, :-1], xs[None, 1:]
        nothing = np.full((1, 4), np.nan)
        return np.concatenate([nothing.repeat(self.before, 0), cells.reshape(-1, 4), nothing.repeat(self.after, 0)])


@dataclass(frozen=True)
class SeenPicture:
    """One picture of one row of text as the model sees it.

    `size` is that of the picture in pixels. `columns` (n,) says where its image tokens stand among the keys of the
    layers that look. `views` is None where the family of the model is not known: then there are no boxes.
    """

    size: Size
    columns: NDArray[np.int64]
    views: tuple[View, ...] | None

    @property
    def boxes(self) -> NDArray[np.float64]:
        """(n, 4) top, left, bottom, right of each token in the picture's pixels, within it; NaN for no pixels."""
        return _boxes_within(self._known_views, self.size)

    @property
    def grid(self) -> Size:
        """The even grid (h, w) over the picture whose cells are those of its finest view; of one whole view its own."""
        if self.views is None or np.isnan(self.boxes[:, 0]).all():
            raise ValueError(f"no image token stands for a known part of this picture of {self.size} pixels")
        heights, widths = zip(*(view.cell for view in self.views), strict=True)
        return max(1, round(self.size[0] / min(heights))), max(1, round(self.size[1] / min(widths)))

    def map(self, weights_n: NDArray[Any], grid: Size | None = None) -> NDArray[np.float32]:
        """Weights of the tokens (…, n) as maps (…, h, w) over the picture, by default on its own `grid`.

        A token's weight is spread evenly over its box, and views add up: the map sums to the weight of all tokens that
        stand for pixels.
        """
        real, shares_nh, shares_nw = _spread(self._known_views, self.size, grid or self.grid)
        weights = np.asarray(weights_n, dtype=np.float64)[..., real]
        return ((weights[..., None] * shares_nh).swapaxes(-1, -2) @ shares_nw).astype(np.float32)

    def shares(self, mask_HW: NDArray[Any]) -> NDArray[np.float64]:
        """(n,): which share of each token's box a mask over the picture's pixels covers; NaN for no pixels."""
        if mask_HW.shape != self.size:
            raise ValueError(f"a mask of {mask_HW.shape} pixels does not fit a picture of {self.size}")
        from scipy.ndimage import map_coordinates

        sums_HW = np.zeros((self.size[0] + 1, self.size[1] + 1))  # of all pixels above and left of a corner
        sums_HW[1:, 1:] = mask_HW.astype(np.float64).cumsum(0).cumsum(1)
        top, left, bottom, right = self.boxes.T
        corners = np.stack([[bottom, top, bottom, top], [right, right, left, left]])
        inside_4n = map_coordinates(sums_HW, np.nan_to_num(corners), order=1, mode="nearest")
        return (np.array([1, -1, -1, 1]) @ inside_4n) / ((bottom - top) * (right - left))

    @property
    def _known_views(self) -> tuple[View, ...]:
        if self.views is None:
            raise ValueError(
                "which pixels an image token stands for is not known for this family of models: "
                "describe it in agevlm.vlms.families, or ask for occlusion maps"
            )
        return self.views


@lru_cache(maxsize=_KEPT)  # pictures of a dataset come in few sizes, and each is asked about many times
def _boxes_within(views: tuple[View, ...], size: Size) -> NDArray[np.float64]:
    """The boxes of the tokens of `views`, cut to the picture."""
    boxes = np.concatenate([view.boxes() for view in views])
    height, width = size
    inside = boxes.clip(0, [height, width, height, width])
    empty = (inside[:, 2] - inside[:, 0] <= 1e-9) | (inside[:, 3] - inside[:, 1] <= 1e-9)
    inside[empty] = np.nan
    inside.flags.writeable = False
    return inside


@lru_cache(maxsize=_KEPT)
def _spread(
    views: tuple[View, ...], size: Size, grid: Size
) -> tuple[NDArray[np.bool_], NDArray[np.float64], NDArray[np.float64]]:
    """Which tokens (n,) stand for pixels, and of these which share lies in each row and in each column of `grid`."""
    boxes = _boxes_within(views, size)
    real = ~np.isnan(boxes[:, 0])
    shares_nh = _shares(boxes[real, 0], boxes[real, 2], size[0], grid[0])
    return real, shares_nh, _shares(boxes[real, 1], boxes[real, 3], size[1], grid[1])


def _shares(start_n: NDArray[Any], end_n: NDArray[Any], length: float, cells: int) -> NDArray[np.float64]:
    """(n, cells): which share of each stretch lies on each of the cells that part `length` evenly."""
    edges = np.linspace(0, length, cells + 1)
    overlap = np.minimum(end_n[:, None], edges[1:]) - np.maximum(start_n[:, None], edges[:-1])
    return overlap.clip(min=0) / (end_n - start_n)[:, None]


def whole(size: Size) -> Box:
    """The box of a whole picture."""
    return (0.0, 0.0, float(size[0]), float(size[1]))


def tiles(box: Box, rows: int, columns: int) -> Iterator[Box]:
    """The boxes of the tiles that part a canvas evenly, row by row."""
    top, left, bottom, right = box
    height, width = (bottom - top) / rows, (right - left) / columns
    for row in range(rows):
        for column in range(columns):
            y, x = top + row * height, left + column * width
            yield (y, x, y + height, x + width)


def padded(size: Size, inner: Size, canvas: Size, offset: Size = (0, 0)) -> Box:
    """What a canvas shows of a picture of `size` that was resized to `inner` and laid on it at `offset`."""
    y, x = size[0] / inner[0], size[1] / inner[1]
    top, left = -offset[0] * y, -offset[1] * x
    return (top, left, top + canvas[0] * y, left + canvas[1] * x)


def canvas_of(image_processor: Any, size: Size) -> tuple[Size, Box]:
    """The canvas in pixels that the plain image processors make of a picture, and what of the picture it shows.

    Their steps, each where its switch is on: pad to a square, resize (to a size, or the shorter side to a length), cut
    out the centre.
    """
    shown, base = size, (0, 0)
    if getattr(image_processor, "do_pad", None):
        side = max(size)
        shown, base = (side, side), ((side - size[0]) // 2, (side - size[1]) // 2)
    canvas = shown
    if image_processor.do_resize:
        canvas = _resized(image_processor.size, shown)
    box = padded(shown, canvas, canvas)
    if getattr(image_processor, "do_center_crop", None):
        cut = _side(image_processor.crop_size, "height"), _side(image_processor.crop_size, "width")
        box = padded(shown, canvas, cut, (-((canvas[0] - cut[0]) // 2), -((canvas[1] - cut[1]) // 2)))
        canvas = cut
    return canvas, (box[0] - base[0], box[1] - base[1], box[2] - base[0], box[3] - base[1])


def _resized(target: Any, size: Size) -> Size:
    height, width, shortest = (_side(target, name) for name in ("height", "width", "shortest_edge"))
    if height and width:
        return height, width
    if not shortest:
        raise ValueError(f"an image processor that resizes to {target} is not known here")
    long = int(shortest * max(size) / min(size))
    return (shortest, long) if size[0] <= size[1] else (long, shortest)


def _side(target: Any, name: str) -> int:
    value = target.get(name) if hasattr(target, "get") else getattr(target, name, None)
    return int(value or 0)


def num_tokens(views: Sequence[View]) -> int:
    """How many image tokens the views of a picture have together."""
    return sum(view.num_tokens for view in views)
