"""Text in a figure, word by word: words of a phrase bold and in its colour, lines broken to a width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT = "#1d2129", "#6b7280"
WORD_COLOURS = ("#c2364d", "#0b7285", "#8a5a00", "#3b5bdb", "#7c3aa8", "#2f7d32")
MARGIN_IN, LINE_IN = 0.28, 0.27
_FONT_POINTS = 12.0


@dataclass(frozen=True)
class Run:
    """A piece of text without line breaks, and how it looks."""

    text: str
    colour: str = INK
    weight: str = "normal"


def runs(text: str, spans: Sequence[tuple[int, int, str]]) -> list[Run]:
    """`text` cut into words, each with the blank behind it; characters in spans bold and in their colour."""
    runs, at = [], 0
    for start, end, colour in [*spans, (len(text), len(text), INK)]:
        runs += [Run(piece) for piece in _pieces(text[at:start])]
        runs += [Run(piece, colour, "bold") for piece in _pieces(text[start:end])]
        at = end
    return runs


def _pieces(text: str) -> list[str]:
    text = " ".join(("|" + text + "|").split())[1:-1]  # one blank for many, those at the ends kept
    words = text.split(" ")
    return [piece for piece in (*(word + " " for word in words[:-1]), words[-1]) if piece]


def wrap(runs: Sequence[Run], width_in: float) -> list[list[tuple[float, Run]]]:
    """Lines of at most `width_in` inches; each is a list of (x in inches, run)."""
    lines: list[list[tuple[float, Run]]] = [[]]
    x = 0.0
    for run in runs:
        length = _length_in(run)
        if lines[-1] and x + _length_in(Run(run.text.rstrip(), run.colour, run.weight)) > width_in:
            lines.append([])
            x = 0.0
        lines[-1].append((x, run))
        x += length
    return lines


def _length_in(run: Run) -> float:
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    font = FontProperties(weight=run.weight, size=_FONT_POINTS)

    def points(text: str) -> float:
        return float(text_to_path.get_text_width_height_descent(text, font, ismath=False)[0])

    return (points(run.text + "|") - points("|")) / 72  # the bar keeps the width of a blank at the end


def draw_line(figure: Figure, line: Sequence[tuple[float, Run]], y_in: float, left_in: float = MARGIN_IN) -> None:
    """Write a line `y_in` inches above the figure's foot, from `left_in` inches off its left edge."""
    width, height = figure.get_size_inches()
    for x, run in line:
        figure.text(
            (left_in + x) / width,
            y_in / height,
            run.text.rstrip(),
            fontsize=_FONT_POINTS,
            color=run.colour,
            fontweight=run.weight,
            va="center_baseline",
            parse_math=False,
        )
