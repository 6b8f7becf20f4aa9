"""The charts of a diagnosis, for a light or a dark ground. Nothing is computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from agevlm.analysis.theme import THEMES, Theme, ThemeName, style_axes
from agevlm.evaluation.statistics import Estimate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONDITION_NAMES = {"picture": "its picture", "blank": "a blank picture", "other": "another picture"}
_BAR = 0.26
_NUM_NAMES = 12  # layers or heads that are named on an axis


def _figure(height: float, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, height), dpi=120, layout="constrained", facecolor="none")
    return figure, figure.subplots(1, columns, **options)


def _legend(axes: Any, look: Theme, **options: Any) -> None:
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncols": 4} | options
    axes.legend(frameon=False, fontsize=9, labelcolor=look.ink, **place)


def condition_bars(found: Mapping[str, Estimate], splits: Sequence[str], theme: ThemeName) -> Figure:
    """Accuracy on each split with the true picture, a blank one and another one, with intervals."""
    look = THEMES[theme]
    figure, axes = _figure(2.9)
    style_axes(axes, look)
    for number, (condition, label) in enumerate(CONDITION_NAMES.items()):
        for place, split in enumerate(splits):
            known = found[f"answers.{condition}.{split}.accuracy"]
            x = place + (number - 1) * (_BAR + 0.02)
            named = label if place == 0 else None
            axes.bar(x, known.mean, _BAR, color=look.series[number], zorder=2, label=named)
            axes.vlines(x, known.low, known.high, color=look.ink, linewidth=1.2, zorder=3)
            ink = {"color": look.on_series, "fontsize": 8.5, "fontweight": "bold"}
            axes.annotate(f"{known.mean:.2f}", (x, 0), (0, 5), textcoords="offset points", ha="center", **ink)
    axes.axhline(0.5, color=look.faint, linewidth=1, linestyle=":", zorder=3)
    axes.set(xticks=range(len(splits)), xticklabels=splits, ylim=(0, 1), xlim=(-0.5, len(splits) - 0.5))
    axes.tick_params(axis="x", labelsize=10, labelcolor=look.ink)
    axes.set_ylabel("accuracy", color=look.faint, fontsize=9)
    _legend(axes, look)
    return figure


def reliability(bins: Mapping[str, Sequence[float]], theme: ThemeName) -> Figure:
    """The share of things that are there over P(yes); each dot with the number of its questions."""
    look = THEMES[theme]
    figure, axes = _figure(3.0)
    style_axes(axes, look)
    axes.plot([0, 1], [0, 1], color=look.faint, linewidth=1, linestyle=":")
    counts = np.asarray(bins["num_questions"], dtype=float)
    sizes = 25 + 300 * counts / counts.sum()
    axes.scatter(bins["probability"], bins["present"], s=sizes, color=look.series[0], alpha=0.8, zorder=3)
    for x, y, count in zip(bins["probability"], bins["present"], bins["num_questions"], strict=True):
        place = {"xytext": (0, 11), "textcoords": "offset points", "ha": "center"}
        axes.annotate(f"{count:.0f}", (x, y), **place, fontsize=8, color=look.faint)
    axes.set(xlim=(-0.03, 1.03), ylim=(-0.06, 1.18))
    axes.set_xlabel("P(yes)", color=look.faint, fontsize=9)
    axes.set_ylabel("share that is there", color=look.faint, fontsize=9)
    return figure


def layer_lines(
    lines: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    label: str,
    theme: ThemeName,
    chance: float | None = None,
) -> Figure:
    """Values by layer, one line for each name."""
    look = THEMES[theme]
    figure, axes = _figure(2.7)
    style_axes(axes, look)
    colours = (*look.series, look.ink)
    for number, (name, (layers, values)) in enumerate(lines.items()):
        axes.plot(layers, values, marker="o", markersize=4, linewidth=1.6, color=colours[number % 4], label=name)
    if chance is not None:
        axes.axhline(chance, color=look.faint, linewidth=1, linestyle=":")
    layers = sorted({layer for layers, _ in lines.values() for layer in layers})
    axes.set(ylim=(0, 1.02), xticks=layers[:: max(1, len(layers) // _NUM_NAMES)])
    axes.set_xlabel("layer", color=look.faint, fontsize=9)
    axes.set_ylabel(label, color=look.faint, fontsize=9)
    _legend(axes, look)
    return figure


def head_grid(
    values_LH: NDArray[Any], layers: Sequence[int], best: tuple[int, int], label: str, theme: ThemeName
) -> Figure:
    """A cell for each head, its layer down and its number across; the best head has a frame."""
    from matplotlib.patches import Rectangle

    look = THEMES[theme]
    rows, columns = values_LH.shape
    figure, axes = _figure(float(np.clip(0.9 + 0.34 * rows, 1.8, 9)))
    axes.set_facecolor("none")
    shown = axes.imshow(values_LH, aspect="auto", cmap="viridis", vmin=0, vmax=max(float(values_LH.max()), 1e-6))
    axes.add_patch(Rectangle((best[1] - 0.5, best[0] - 0.5), 1, 1, fill=False, edgecolor="#ff3b6b", linewidth=2.4))
    if values_LH.size <= 96:
        for (row, column), value in np.ndenumerate(values_LH):
            ink = "white" if value < 0.6 * values_LH.max() else "black"
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8.5, color=ink)
    steps = max(1, rows // (2 * _NUM_NAMES)), max(1, columns // _NUM_NAMES)
    axes.set(yticks=range(0, rows, steps[0]), yticklabels=list(layers)[:: steps[0]], xticks=range(0, columns, steps[1]))
    axes.tick_params(colors=look.faint, labelsize=8.5, length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.set_xlabel("head", color=look.faint, fontsize=9)
    axes.set_ylabel("layer", color=look.faint, fontsize=9)
    bar = figure.colorbar(shown, ax=axes, pad=0.015, fraction=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=look.faint, labelsize=8, length=0)
    bar.set_label(label, color=look.faint, fontsize=9)
    return figure


def interval_dots(
    rows: Sequence[tuple[str, Sequence[Estimate]]], names: Sequence[str], theme: ThemeName, chance: float = 0.5
) -> Figure:
    """A line for each row, a dot with its interval for each of `names`; a dotted line where chance is."""
    look = THEMES[theme]
    figure, axes = _figure(0.75 + 0.42 * len(rows))
    style_axes(axes, look, grid="x")
    for place, (_, found) in enumerate(rows):
        for number, known in enumerate(found):
            y = -place + 0.12 * (len(found) - 1) * (1 - 2 * number)
            colour = look.series[number]
            axes.hlines(y, known.low, known.high, color=colour, linewidth=2)
            named = names[number] if place == 0 and len(names) > 1 else None
            axes.plot(known.mean, y, "o", color=colour, markersize=7, label=named)
            axes.annotate(
                f"{known.mean:.3f}", (1.02, y), va="center", fontsize=9, color=look.ink, annotation_clip=False
            )
    axes.axvline(chance, color=look.faint, linewidth=1, linestyle=":")
    axes.set(yticks=[-place for place in range(len(rows))], yticklabels=[name for name, _ in rows], xlim=(0, 1))
    axes.set_ylim(-len(rows) + 0.4, 0.6)
    axes.tick_params(axis="y", labelsize=10, labelcolor=look.ink)
    axes.set_xlabel("AUROC", color=look.faint, fontsize=9)
    if len(names) > 1:
        _legend(axes, look)
    return figure
