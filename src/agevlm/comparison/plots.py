"""Plots of a comparison: every arm in its colour, means with 95 % intervals, and the seeds as dots.

matplotlib through its objects alone: no pyplot, no global state. Nothing is computed here; figures come as readings.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from agevlm.analysis.theme import THEMES, Theme, ThemeName, style_axes
from agevlm.comparison.readings import Nested, Reading, places, read, titles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PALETTE = (  # on light, on dark; an arm's place among all arms of its recipe chooses
    ("#c99a2e", "#e8c46a"),
    ("#d9622b", "#ff9d66"),
    ("#a8325a", "#f08bab"),
    ("#76818f", "#9aa5b3"),
    ("#4fa3d9", "#7fd0ff"),
    ("#1f4fbf", "#8aa8ff"),
    ("#2f7d32", "#8fd693"),
    ("#7c3aa8", "#cf9df2"),
    ("#0b7285", "#66d0e0"),
    ("#8a5a00", "#e0b65c"),
)
_WIDTH = 9.0
_DPI = 110
_LABEL_WIDTH = 44  # characters of a line of a row's title; longer lines leave no room to the axes


class Arm(NamedTuple):
    """How an arm is drawn: its name, and the number that chooses its colour."""

    title: str
    number: int


class Row(NamedTuple):
    """A line of a plot."""

    arm: Arm
    found: Reading


def arms_of(content: Nested) -> dict[str, Arm]:
    """Arm → how it is drawn; the same colours on every plot of comparisons that extend one another."""
    numbers = places(content)
    return {arm: Arm(title, numbers[arm]) for arm, title in titles(content).items()}


def colour_of(arm: Arm, theme: ThemeName) -> str:
    """The colour of an arm."""
    return _PALETTE[arm.number % len(_PALETTE)][theme == "dark"]


def interval_plot(
    rows: Sequence[Row],
    label: str,
    theme: ThemeName = "light",
    *,
    lines: Mapping[str, float] | None = None,
    from_zero: bool = False,
) -> Figure:
    """A line for each row: its mean, its interval as a bar, its seeds as dots. No row is a ValueError.

    `lines` are values to compare with, drawn across all rows and named above.
    """
    if not rows:
        raise ValueError("there is no figure to plot")
    look = THEMES[theme]
    figure = _figure(0.9 + 0.42 * len(rows))
    axes = figure.subplots()
    style_axes(axes, look, "x")
    for place, row in enumerate(rows):
        _draw_interval(axes, -place, row.found, colour_of(row.arm, theme), look)
    for number, (name, value) in enumerate((lines or {}).items()):
        axes.axvline(value, color=look.ink, linewidth=1, linestyle=(0, (4, 3)), zorder=2)
        where: Any = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "fontsize": 8.5}
        axes.annotate(name, (value, 1), (3, 3 + 11 * number), **where, color=look.ink, parse_math=False)
    axes.set_yticks(
        [-place for place in range(len(rows))], [textwrap.fill(row.arm.title, _LABEL_WIDTH) for row in rows]
    )
    axes.tick_params(axis="y", labelsize=9.5, labelcolor=look.ink)
    axes.set_ylim(-len(rows) + 0.45, 0.55)
    if from_zero:
        axes.set_xlim(left=0)
    axes.set_xlabel(label, color=look.faint, fontsize=9)
    return figure


def _draw_interval(axes: Any, y: float, found: Reading, colour: str, look: Theme) -> None:
    if found.low is not None and found.high is not None:
        axes.hlines(y, found.low, found.high, color=colour, linewidth=7, alpha=0.35, zorder=3)
    axes.plot(found.values, [y] * len(found.values), "o", color=colour, markersize=4, alpha=0.85, zorder=4, mew=0)
    axes.plot(found.mean, y, marker="|", markersize=15, markeredgewidth=2.2, color=colour, zorder=5)
    place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center", "fontsize": 9}
    axes.annotate(f"{found.mean:.3f}", (1, y), (8, 0), **place, color=look.ink, fontweight="bold")


def curves_plot(curves: Mapping[str, Sequence[Nested]], arms: Mapping[str, Arm], theme: ThemeName = "light") -> Figure:
    """Along the training: adversarial accuracy over steps and over seconds, false yes and pointing over steps.

    Means alone: bands of several arms would cover one another.
    """
    look = THEMES[theme]
    figure = _figure(6.2)
    panels = (
        ("step", "pope.adversarial.accuracy", "adversarial accuracy", "step"),
        ("seconds", "pope.adversarial.accuracy", "adversarial accuracy", "seconds of training"),
        ("step", "pope.adversarial.false_yes_ratio", "false yes, adversarial", "step"),
        ("step", "pointing.accuracy", "pointing", "step"),
    )
    for axes, (across, name, label, unit) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        style_axes(axes, look)
        for arm, points in curves.items():
            found = [(point[across], read(point["figures"].get(name))) for point in points]
            line = [(float(x), reading) for x, reading in found if reading is not None]
            _draw_line(axes, line, colour_of(arms[arm], theme), arms[arm].title, band=False)
        for point in max(curves.values(), key=len)[:-1]:
            if across == "step" and point.get("ends_stage"):
                axes.axvline(point["step"], color=look.faint, linewidth=0.8, alpha=0.5, zorder=1)
        if name.startswith("pope"):
            axes.axhline(0.5, color=look.faint, linewidth=1, linestyle=":", zorder=2)
        axes.set_title(label, color=look.ink, fontsize=9.5, loc="left")
        axes.set_xlabel(unit, color=look.faint, fontsize=9)
        axes.set_xlim(left=0)
    _legend(figure, axes, look)
    return figure


def _draw_line(
    axes: Any, points: Sequence[tuple[float, Reading]], colour: str, label: str, *, band: bool = True
) -> None:
    """Means joined by a line; with `band` in one of their intervals."""
    if not points:
        return
    x = [place for place, _ in points]
    axes.plot(x, [found.mean for _, found in points], "o-", color=colour, ms=3, lw=1.7, zorder=4, label=label)
    bounded = [(place, f.low, f.high) for place, f in points if f.low is not None and f.high is not None]
    if band and bounded:
        axes.fill_between(*zip(*bounded, strict=True), color=colour, alpha=0.13, linewidth=0, zorder=3)


def steps_plot(
    lines: Sequence[tuple[Arm, Sequence[tuple[float, Reading]]]],
    levels: Sequence[Row],
    theme: ThemeName = "light",
) -> Figure:
    """Adversarial error against the steps of training, a line for each arm; `levels` to compare with are dashed."""
    look = THEMES[theme]
    figure = _figure(3.4)
    axes = figure.subplots()
    style_axes(axes, look)
    for arm, points in lines:
        colour = colour_of(arm, theme)
        _draw_line(axes, points, colour, arm.title)
        for steps, found in points:
            axes.plot([steps] * len(found.values), found.values, "o", color=colour, ms=3.5, alpha=0.6, mew=0)
    for arm, found in levels:
        colour = colour_of(arm, theme)
        axes.axhline(found.mean, color=colour, linewidth=1.4, linestyle="--", zorder=3)
    all_steps = sorted({steps for _, points in lines for steps, _ in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(all_steps, [f"{steps:g}" for steps in all_steps])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("steps of training", color=look.faint, fontsize=9)
    axes.set_ylabel("adversarial error", color=look.faint, fontsize=9)
    _legend(figure, axes, look, columns=2)
    return figure


def breakdown_plot(
    panels: Sequence[tuple[str, Sequence[str], Mapping[str, Sequence[Reading | None]]]],
    arms: Mapping[str, Arm],
    theme: ThemeName = "light",
) -> Figure:
    """Rates of errors by situation: of each panel its title, the names of its bins, and arm → a figure for each bin."""
    look = THEMES[theme]
    figure = _figure(3.3)
    places = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, (title, bins, by_arm) in zip(places, panels, strict=True):
        style_axes(axes, look)
        for number, (arm, cells) in enumerate(by_arm.items()):
            shift = (number - (len(by_arm) - 1) / 2) * 0.8 / max(len(by_arm), 1)
            colour = colour_of(arms[arm], theme)
            known = [(place + shift, cell) for place, cell in enumerate(cells) if cell is not None]
            axes.plot([x for x, _ in known], [c.mean for _, c in known], "o", ms=4.5, color=colour, zorder=4)
            bounded = [(x, c.low, c.high) for x, c in known if c.low is not None and c.high is not None]
            if bounded:
                axes.vlines(*zip(*bounded, strict=True), color=colour, linewidth=2.2, alpha=0.5, zorder=3)
            axes.plot([], [], "o", ms=5, color=colour, label=arms[arm].title)
        axes.set_xticks(range(len(bins)), bins)
        axes.set_title(title, color=look.ink, fontsize=8.5, loc="left")
        axes.set_ylim(bottom=0)
    places[0].set_ylabel("share of the answers", color=look.faint, fontsize=9)
    _legend(figure, places[0], look)
    return figure


def reliability_plot(lines: Mapping[str, Nested], theme: ThemeName = "light") -> Figure:
    """Calibration: the share of absent things against the probability that the detector gives, name → its bins."""
    look = THEMES[theme]
    figure = _figure(3.2, width=5.2)
    axes = figure.subplots()
    style_axes(axes, look)
    axes.plot([0, 1], [0, 1], color=look.faint, linewidth=1, linestyle=":")
    for (name, bins), colour in zip(lines.items(), (*look.series, look.ink), strict=False):
        columns = (bins["num_questions"], bins["probability"], bins["absent"])
        sizes, x, y = zip(*(row for row in zip(*columns, strict=True) if None not in row), strict=True)
        axes.plot(x, y, color=colour, linewidth=1.4, zorder=3, label=name)
        axes.scatter(x, y, s=12 + 90 * np.array(sizes) / max(sizes), color=colour, zorder=4, linewidths=0)
    axes.set_xlabel("probability that the thing is absent", color=look.faint, fontsize=9)
    axes.set_ylabel("share that is absent", color=look.faint, fontsize=9)
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    axes.legend(frameon=False, fontsize=8.5, labelcolor=look.ink)
    return figure


def histograms_plot(
    arms: Sequence[str],
    measures: Sequence[str],
    histograms: Mapping[tuple[str, str], tuple[str, Nested]],
    names: Mapping[str, str],
    theme: ThemeName = "light",
) -> Figure:
    """Matching against mismatched pairs: a row of panels for each arm, a column for each measure.

    `histograms` (arm, measure) → a note and the histogram with `edges`, `matching` and `mismatched`; `names` are those
    of arms and measures.
    """
    look = THEMES[theme]
    figure = _figure(0.5 + 1.25 * len(arms))
    places = figure.subplots(len(arms), len(measures), squeeze=False)
    for (row, column), axes in np.ndenumerate(places):
        style_axes(axes, look)
        axes.set_yticks([])
        if row == 0:
            axes.set_title(names.get(measures[column], measures[column]), color=look.ink, fontsize=9, pad=14)
        if column == 0:
            label = names.get(arms[row], arms[row]).replace(", ", ",\n")
            axes.set_ylabel(label, color=look.ink, fontsize=8, rotation=0, ha="right", va="center")
        note, found = histograms.get((arms[row], measures[column]), ("not measured", {}))
        where = {"xycoords": "axes fraction", "textcoords": "offset points", "fontsize": 7.5}
        axes.annotate(note, (0, 1), (0, 3), **where, color=look.faint)
        for kind, colour in (("mismatched", look.series[1]), ("matching", look.series[0])):
            if found:
                shares = np.asarray(found[kind]) / max(sum(found[kind]), 1)
                axes.stairs(shares, found["edges"], fill=True, color=colour, alpha=0.35, zorder=2)
                axes.stairs(shares, found["edges"], color=colour, linewidth=1.3, zorder=3, label=kind)
    _legend(figure, next(axes for axes in places.flat if axes.get_legend_handles_labels()[0]), look)
    return figure


def _figure(height: float, width: float = _WIDTH) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="none")


def _legend(figure: Figure, axes: Any, look: Theme, columns: int = 3) -> None:
    """The names of the lines, above all panels."""
    handles, labels = axes.get_legend_handles_labels()
    where: Any = {"loc": "outside upper center", "ncols": columns, "frameon": False}
    figure.legend(handles, labels, **where, fontsize=8.5, labelcolor=look.ink)
