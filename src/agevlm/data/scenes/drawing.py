"""Layouts → pictures with exact masks.

Integer arithmetic and rounded outlines, so that a seed gives the same picture on any machine. Scenes are drawn back to
front on a textured background with distractor strokes. Every annotated thing shows at least `min_visible_ratio` of its
own outline past the things in front of it and the picture's border. The two hairlines at most that are drawn over
everything count as dirt on the picture: they are not taken out of the masks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from agevlm.data.images import png_bytes
from agevlm.data.masks import encode_mask
from agevlm.data.scenes.shapes import SHAPES
from agevlm.data.scenes.world import COLOURS, Placement, WorldSpec, sample_layout
from agevlm.data.schema import AnnotatedImage, ImageSource, Instance

SUPERSAMPLING = 3
MIN_PIXELS = 20  # a thing that shows fewer is not placed, whatever its share

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Scene:
    """A picture (H, W, 3) in 8-bit RGB and what is in it."""

    image: Pixels
    annotation: AnnotatedImage


@dataclass(frozen=True)
class _Tile:
    """A drawn thing before it is pasted: its corner in the picture, alpha and tone layers, its outline as a mask."""

    placement: Placement
    top: int
    left: int
    alpha: Pixels  # (t, t), 0 to 255
    tone: NDArray[np.int16]  # (t, t), added to the colour's channels
    outline: int  # pixels of the outline, also beyond the picture's border
    mask: NDArray[np.bool_]  # (H, W), the outline inside the picture


def draw_scene(spec: WorldSpec, seed: int, index: int) -> Scene:
    """Scene number `index` of the world `spec` with `seed`: the same picture and masks on any machine."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, index])))
    side = spec.image_size
    image = _background(side, rng)
    num_strokes = int(rng.integers(spec.num_strokes + 1))
    _strokes(image, num_strokes, rng, max_width=3)
    tiles = _arrange(spec, rng)
    for tile in tiles:
        _paste(image, tile, rng)
    _strokes(image, min(num_strokes, 2), rng, max_width=1)
    identity = f"scene-{seed}-{index}"
    instances = tuple(_instance(tile, mask) for tile, mask in zip(tiles, _visible(tiles), strict=True))
    return Scene(image, AnnotatedImage(ImageSource(identity, side, side), instances))


def scene_png(scene: Scene) -> bytes:
    """The picture as a PNG file."""
    return png_bytes(scene.image)


def _arrange(spec: WorldSpec, rng: np.random.Generator) -> list[_Tile]:
    """Place things one in front of another; a place that hides too much of any thing is tried again elsewhere."""
    tiles: list[_Tile] = []

    def put(placement: Placement) -> bool:
        candidates = [*tiles, _tile(spec.image_size, placement)]
        fits = all(_shows(t, m, spec) for t, m in zip(candidates, _visible(candidates), strict=True))
        if fits:
            tiles.append(candidates[-1])
        return fits

    sample_layout(spec, rng, put)
    return tiles


def _visible(tiles: list[_Tile]) -> list[NDArray[np.bool_]]:
    """What each thing shows behind those in front of it."""
    masks, covered = [], None
    for tile in reversed(tiles):
        masks.append(tile.mask if covered is None else tile.mask & ~covered)
        covered = tile.mask if covered is None else covered | tile.mask
    return masks[::-1]


def _shows(tile: _Tile, visible: NDArray[np.bool_], spec: WorldSpec) -> bool:
    return int(visible.sum()) >= max(MIN_PIXELS, spec.min_visible_ratio * tile.outline)


def _instance(tile: _Tile, mask: NDArray[np.bool_]) -> Instance:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    x, y = float(columns[0]), float(rows[0])
    box = (x, y, float(columns[-1]) + 1 - x, float(rows[-1]) + 1 - y)
    return Instance(tile.placement.category, encode_mask(mask), box, float(mask.sum()), tile.placement.colour)


def _tile(side: int, placement: Placement) -> _Tile:
    """Draw a thing at three times its size in a square of its own, and shrink it by whole-number means."""
    reach = math.ceil(placement.radius * 1.45) + 1
    top, left = int(placement.centre[0]) - reach, int(placement.centre[1]) - reach
    size = 2 * reach + 1
    centre = tuple((c - corner) * SUPERSAMPLING for c, corner in zip(placement.centre, (top, left), strict=True))
    alpha = Image.new("L", (size * SUPERSAMPLING,) * 2, 0)
    tone = Image.new("L", alpha.size, 128)
    pens = ImageDraw.Draw(alpha), ImageDraw.Draw(tone)
    scale = placement.radius * SUPERSAMPLING
    cosine = round(math.cos(math.radians(placement.angle)), 6)
    sine = round(math.sin(math.radians(placement.angle)), 6)
    for part in SHAPES[placement.category]:
        points = []
        for u, v in part.points:
            u = -u if placement.mirrored else u
            x, y = cosine * u - sine * v, sine * u + cosine * v
            points.append((round((centre[1] + scale * x) * 16) / 16, round((centre[0] + scale * y) * 16) / 16))
        pens[0].polygon(points, fill=0 if part.tone == "hole" else 255)
        pens[1].polygon(points, fill={"dark": 70, "light": 190}.get(part.tone, 128))
    small_alpha = _shrink(np.asarray(alpha))
    whole = small_alpha >= 128
    mask = np.zeros((side, side), dtype=bool)
    inside = _crop(top, left, size, side)
    mask[inside[0]] = whole[inside[1]]
    return _Tile(
        placement, top, left, small_alpha.astype(np.uint8), _shrink(np.asarray(tone)) - 128, int(whole.sum()), mask
    )


def _shrink(large: Pixels) -> NDArray[np.int16]:
    size = large.shape[0] // SUPERSAMPLING
    blocks = large.reshape(size, SUPERSAMPLING, size, SUPERSAMPLING).astype(np.int32).sum(axis=(1, 3))
    return (blocks // SUPERSAMPLING**2).astype(np.int16)


def _crop(top: int, left: int, size: int, side: int) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    """Where a tile lies in the picture, and which part of the tile that is."""
    y0, y1, x0, x1 = max(top, 0), min(top + size, side), max(left, 0), min(left + size, side)
    return (slice(y0, y1), slice(x0, x1)), (slice(y0 - top, y1 - top), slice(x0 - left, x1 - left))


def _paste(image: Pixels, tile: _Tile, rng: np.random.Generator) -> None:
    """Blend a thing over the picture, its colour jittered by a little, shaded from one side."""
    size = tile.alpha.shape[0]
    colour = np.array(COLOURS[tile.placement.colour]) + rng.integers(-14, 15, size=3)
    shade = (np.arange(size) - size // 2) * int(rng.integers(-16, 17)) // size
    tone = tile.tone if tile.placement.colour != "black" else np.abs(tile.tone)  # details on black are lighter
    drawn = np.clip(colour + (tone + shade[:, None])[..., None], 0, 255).astype(np.int32)
    where, part = _crop(tile.top, tile.left, size, image.shape[0])
    alpha = tile.alpha[part].astype(np.int32)[..., None]
    under = image[where].astype(np.int32)
    image[where] = ((drawn[part] * alpha + under * (255 - alpha) + 127) // 255).astype(np.uint8)


# ---------------------------------------------------------------------------------------------------- background


def _background(side: int, rng: np.random.Generator) -> Pixels:
    """A texture of two muted colours: clouds, stripes, checks or a gradient, with grain."""
    colours = rng.integers(70, 200, size=(2, 3))
    grey = colours.mean(axis=1, keepdims=True).astype(np.int64)
    colours = (colours + grey) // 2
    kind = int(rng.integers(4))
    if kind == 0:
        mix = _clouds(side, rng)
    elif kind == 1:
        mix = _stripes(side, rng)
    elif kind == 2:
        cells = int(rng.integers(3, 9))
        steps = np.arange(side) * cells // side
        mix = (steps[:, None] + steps[None, :]) % 2 * 160 + 48
    else:
        mix = (np.arange(side) * 255 // (side - 1))[:, None] + np.zeros(side, dtype=np.int64)
        mix = mix.T if rng.random() < 0.5 else mix
    grain = rng.integers(-10, 11, size=(side, side))
    mixed = (colours[0] * mix[..., None] + colours[1] * (255 - mix[..., None])) // 255 + grain[..., None]
    return np.clip(mixed, 0, 255).astype(np.uint8)


def _clouds(side: int, rng: np.random.Generator) -> NDArray[np.int64]:
    cells = int(rng.integers(3, 8))
    knots = rng.integers(0, 256, size=(cells + 1, cells + 1))
    place = np.arange(side) * 256 * cells // side
    low, part = place >> 8, place & 255
    rows = (knots[low] * (256 - part)[:, None] + knots[low + 1] * part[:, None]) >> 8
    return (rows[:, low] * (256 - part)[None] + rows[:, low + 1] * part[None]) >> 8


def _stripes(side: int, rng: np.random.Generator) -> NDArray[np.int64]:
    dy, dx = (int(step) for step in rng.integers(-3, 4, size=2))
    period = int(rng.integers(8, 24)) * max(1, abs(dy) + abs(dx))
    phase = np.arange(side)[:, None] * dy + np.arange(side)[None, :] * dx
    return np.where(phase % period < period // 2, 200, 56).astype(np.int64)


def _strokes(image: Pixels, number: int, rng: np.random.Generator, max_width: int) -> None:
    """Lines, arcs, dots and splinters in the things' own colours, which are no things."""
    if not number:
        return
    side = image.shape[0]
    canvas = Image.fromarray(image)
    pen = ImageDraw.Draw(canvas)
    colours = list(COLOURS.values())
    for _ in range(number):
        colour = tuple(int(c) for c in np.clip(np.array(colours[int(rng.integers(8))]) + rng.integers(-14, 15), 0, 255))
        y, x = (int(c) for c in rng.integers(0, side, size=2))
        dy, dx = (int(c) for c in rng.integers(-side // 4, side // 4 + 1, size=2))
        width = int(rng.integers(1, max_width + 1))
        kind = int(rng.integers(4)) if max_width > 1 else 0
        if kind == 0:
            pen.line([(x, y), (x + dx, y + dy)], fill=colour, width=width)
        elif kind == 1:
            reach = 3 + abs(dx) // 2
            start = int(rng.integers(360))
            pen.arc([x - reach, y - reach, x + reach, y + reach], start, start + 40 + abs(dy) * 8, colour, width)
        elif kind == 2:
            reach = 1 + width // 2
            pen.ellipse([x - reach, y - reach, x + reach, y + reach], fill=colour)
        else:
            pen.polygon([(x, y), (x + dx // 3, y + dy // 4), (x + dy // 5, y - dx // 5)], fill=colour)
    image[:] = np.asarray(canvas)
