"""How charts look: the colours of a light and a dark ground, and axes without clutter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

ThemeName = Literal["light", "dark"]


@dataclass(frozen=True)
class Theme:
    """Colours of a chart: text, its fainter kind, grid lines, shaded ranges, three series, and text on a bar."""

    ink: str
    faint: str
    grid: str
    shade: str
    series: tuple[str, str, str]
    on_series: str


THEMES: dict[str, Theme] = {
    "light": Theme("#1d2129", "#6b7280", "#e3e6ea", "#f1f3f6", ("#1f5fbf", "#d9622b", "#76818f"), "#ffffff"),
    "dark": Theme("#e8eaed", "#9aa3ae", "#333a44", "#21262e", ("#7fb2ff", "#ff9d66", "#8a95a3"), "#14171c"),
}


def style_axes(axes: Any, look: Theme, grid: Literal["x", "y"] = "y") -> None:
    """Axes with grid lines one way and a single spine, on the figure's own ground."""
    axes.set_facecolor("none")
    axes.grid(axis=grid, color=look.grid, linewidth=0.8, zorder=1)
    axes.tick_params(colors=look.faint, labelsize=8.5, length=0)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(look.grid)
