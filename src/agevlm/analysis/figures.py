"""Pictures of attention: each object word's map laid over the photograph, with question and answer on top.

Draws what attention.py found; asks no model. Curves and bars are in charts.py. matplotlib through its objects alone: no
pyplot, no global state.
"""

# Shapes: H, W the picture's pixels; h, w the grid of image tokens; RGB values in [0, 255].

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agevlm.analysis.attention import Look, WordMap, to_pixels
from agevlm.analysis.words import FAINT, INK, LINE_IN, MARGIN_IN, WORD_COLOURS, Run, draw_line, runs, wrap
from agevlm.files import write_beside

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MAX_STRETCH = 4.0  # height over width of a panel, and width over height: pictures beyond are squeezed into it
MAX_PANELS = 11  # word panels in one figure; the header says how many were left out

_STRIP_PIXELS = 500_000  # of a picture worked on at once: 100 bytes a pixel

_PANEL_IN, _GAP_IN, _TITLE_IN = 2.5, 0.16, 0.5
_MIN_COLUMNS = 2  # a figure with one panel still has room for its header


def word_colours(look: Look) -> list[str]:
    """A colour for each object word of `look`, the same for the same word; after six words colours come round again."""
    order = {word: number for number, word in enumerate(dict.fromkeys(word.word for word in look.words))}
    return [WORD_COLOURS[order[word.word] % len(WORD_COLOURS)] for word in look.words]


def enlarge(image: Image.Image, min_side: int = 384) -> Image.Image:
    """`image` in RGB; one with a longer side under `min_side` enlarged by a whole factor, its pixels kept sharp."""
    factor = max(1, -(-min_side // max(image.size)))
    size = (image.width * factor, image.height * factor)
    return image.convert("RGB").resize(size, Image.Resampling.NEAREST)


def reduced(image: Image.Image, max_side: int = 2000) -> Image.Image:
    """`image`, or where a side is longer than `max_side` the whole of it scaled down to what a figure shows."""
    factor = max_side / max(image.size)
    if factor >= 1:
        return image
    width, height = (max(1, round(side * factor)) for side in image.size)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def overlay(image: Image.Image, attention: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The picture under its attention map (h, w): uint8 (H, W, 3) in the pixels of `image`.

    Where attention is low the picture shows, pale and with little colour; the more attention, the more of the
    colour map covers it. Full strength is the map's own maximum, but at least four times the even share of a
    cell: attention that went to the null token, or nowhere in particular, stays faint.
    """
    from matplotlib import colormaps

    rgb = np.asarray(image.convert("RGB"))
    strength = to_pixels(attention / _full_strength(attention), (image.height, image.width)).clip(0, 1)
    shown = np.empty_like(rgb)
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        strip = slice(top, top + rows)
        pixels, weight = rgb[strip].astype(np.float32) / 255, strength[strip, :, None]
        grey = (pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32))[..., None]
        base = 0.35 * pixels + 0.65 * (0.18 + 0.82 * grey)
        heat = colormaps["inferno"](0.25 + 0.68 * weight[..., 0])[..., :3]
        alpha = 0.78 * np.minimum(1.0, 1.5 * weight)
        shown[strip] = (255 * (alpha * heat + (1 - alpha) * base)).round().clip(0, 255)
    return shown


def peak(attention: NDArray[np.float32], size: tuple[int, int]) -> tuple[float, float]:
    """Centre (y, x), in pixels of a picture of `size` (H, W), of the cell with the most attention."""
    row, column = np.unravel_index(int(attention.argmax()), attention.shape)
    height, width = attention.shape
    return (float(row) + 0.5) / height * size[0], (float(column) + 0.5) / width * size[1]


def _full_strength(attention: NDArray[np.float32]) -> float:
    return max(float(attention.max()), 4.0 / attention.size)


def caption(word: WordMap, mask: NDArray[np.bool_] | None = None) -> str:
    """How much of a word's attention lies inside `mask` (H, W), in its strongest cell, and on the null token.

    Of a word that the model did not learn, that.
    """
    if word.learned is False:
        return "not a word that it learned"
    parts = [f"in mask {mass_inside(word.map, mask):.0%}"] if mask is not None and mask.any() else []
    parts.append(f"peak cell {float(word.map.max()):.0%}")
    if word.null_mass is not None:
        parts.append(f"null {word.null_mass:.0%}")
    return " · ".join(parts)


def mask_of(look: Look, word: WordMap, masks: Mapping[str, NDArray[np.bool_]] | None) -> NDArray[np.bool_] | None:
    """The mask of a word in masks by word, or by the word as written; None where there is none."""
    named = masks or {}
    return named.get(word.word, named.get(look.written(word)))


def mass_inside(attention: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    """Share of all attention that lies on `mask` (H, W), cells counted by the share of them that it covers."""
    from agevlm.data.masks import mask_to_grid

    height, width = attention.shape
    return float((attention * mask_to_grid(mask, (height, width))).sum())


def look_figure(
    look: Look,
    image: Image.Image,
    *,
    masks: Mapping[str, NDArray[np.bool_]] | None = None,
    max_panels: int = MAX_PANELS,
) -> Figure:
    """The picture, and beside it one panel for each object word of `look` with its attention laid over.

    A cross marks the strongest cell. A picture more than four times as high as wide, or as wide as high, is squeezed.
    `masks` gives for a word (H, W) where its thing is: drawn as an outline, with the attention mass inside it in the
    title. Words beyond `max_panels` are not drawn, and the header says how many.
    """
    from matplotlib.figure import Figure

    picture = enlarge(reduced(image))
    words, colours = look.words[:max_panels], word_colours(look)
    columns = max(_MIN_COLUMNS, min(4, 1 + len(words)))
    rows = -(-(1 + len(words)) // columns)
    panel_height = _PANEL_IN * min(max(picture.height / picture.width, 1 / _MAX_STRETCH), _MAX_STRETCH)
    width = 2 * MARGIN_IN + columns * _PANEL_IN + (columns - 1) * _GAP_IN
    lines = _header(look, len(look.words) - len(words), width - 2 * MARGIN_IN)
    header = MARGIN_IN + len(lines) * LINE_IN
    height = header + rows * (_TITLE_IN + panel_height + _GAP_IN) + MARGIN_IN - _GAP_IN
    figure = Figure(figsize=(width, height), dpi=160, facecolor="white")
    for number, line in enumerate(lines):
        draw_line(figure, line, height - MARGIN_IN - (number + 0.6) * LINE_IN)
    for number in range(1 + len(words)):
        row, column = divmod(number, columns)
        left = MARGIN_IN + column * (_PANEL_IN + _GAP_IN)
        top = header + row * (_TITLE_IN + panel_height + _GAP_IN) + _TITLE_IN
        axes = figure.add_axes(
            (left / width, 1 - (top + panel_height) / height, _PANEL_IN / width, panel_height / height)
        )
        if number == 0:
            _draw_picture(axes, picture, f"{image.width} × {image.height} pixels")
        else:
            word = words[number - 1]
            _draw_word(axes, picture, word, colours[number - 1], mask_of(look, word, masks))
    return figure


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure to `path` in the format of its suffix (.png, .svg, .pdf, .jpg), whole or not at all."""
    path = Path(path)
    formats = figure.canvas.get_supported_filetypes()
    suffix = path.suffix.lower().lstrip(".")
    if suffix not in formats:
        raise ValueError(f"cannot write a picture as {path.name!r}: use one of the endings .png, .svg, .pdf, .jpg")
    with write_beside(path) as beside:
        figure.savefig(beside, format=suffix)
    return path


def _frame(axes: Any, picture: NDArray[np.uint8], colour: str) -> None:
    axes.imshow(picture, interpolation="nearest" if min(picture.shape[:2]) < 480 else "antialiased", aspect="auto")
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(color=colour, linewidth=0.8)


def _titles(axes: Any, title: str, subtitle: str, colour: str) -> None:
    place = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
    title = title if len(title) <= 24 else title[:23] + "…"
    axes.annotate(
        title, (0, 1), (0, 15), **place, fontsize=11, fontweight="bold", color=colour, va="bottom", parse_math=False
    )
    axes.annotate(subtitle, (0, 1), (0, 4.5), **place, fontsize=7.5, color=FAINT, va="bottom", parse_math=False)


def _draw_picture(axes: Any, picture: Image.Image, subtitle: str) -> None:
    _frame(axes, np.asarray(picture), "#d1d5db")
    _titles(axes, "picture", subtitle, INK)


def _draw_word(
    axes: Any, picture: Image.Image, word: WordMap, colour: str, mask: NDArray[np.bool_] | None = None
) -> None:
    _frame(axes, overlay(picture, word.map), colour)
    size = (picture.height, picture.width)
    if mask is not None and mask.any():
        large = np.asarray(Image.fromarray(mask).resize((picture.width, picture.height), Image.Resampling.NEAREST))
        for colour_of_line, width in (("black", 2.2), ("white", 1.1)):
            axes.contour(large.astype(np.float32), levels=[0.5], colors=colour_of_line, linewidths=width)
    y, x = peak(word.map, size)
    axes.plot(x, y, marker="+", markersize=10, markeredgewidth=3.2, color="white", zorder=3)
    axes.plot(x, y, marker="+", markersize=9, markeredgewidth=1.4, color="black", zorder=4)
    axes.set(xlim=(-0.5, size[1] - 0.5), ylim=(size[0] - 0.5, -0.5))
    _titles(axes, word.word, f"{word.where[0].upper()} · {caption(word, mask)}", colour)


def _header(look: Look, num_left_out: int, width_in: float) -> list[list[tuple[float, Run]]]:
    """Lines of question and answer; each line is a list of (x in inches, run)."""
    lines = []
    texts: tuple[tuple[str, str, str], ...] = (
        ("question", look.question, "Q"),
        ("answer", look.answer or "(no answer)", "A"),
    )
    for where, text, letter in texts:
        coloured = zip(look.words, word_colours(look), strict=True)
        spans = [(word.start, word.end, colour) for word, colour in coloured if word.where == where]
        lines += wrap([Run(letter + "  ", FAINT, "bold"), *runs(text, spans)], width_in)
    if num_left_out:
        lines += wrap([Run(f"{num_left_out} more words are not drawn", FAINT)], width_in)
    return lines
