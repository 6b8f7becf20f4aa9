"""Curves, bars and histograms: losses over the stages, POPE's figures, pairs that match and pairs that do not.

Light or dark, on a transparent ground.

matplotlib through its objects alone: no pyplot, no global state. Numbers come in as the trainer and the evaluation
wrote them; nothing is computed here but a running mean for the eye.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from agevlm.analysis.theme import THEMES, Theme, ThemeName, style_axes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPLITS = ("random", "popular", "adversarial")
_MEASURES = (("accuracy", "accuracy"), ("f1", "F1"), ("yes_ratio", "yes ratio"))
_SMOOTHING_RATIO = 0.02  # of all logged steps: the width of the running mean
_BAR_WIDTH = 0.26
_LETTER_RATIO = 0.0105  # of the panel's width: one letter of a stage's name


def loss_curves(logs: Sequence[Mapping[str, Any]], *, theme: ThemeName = "light") -> Figure:
    """Language-modelling loss above, guidance loss below, over the global step, with the stages shaded and named.

    `logs` are the lines of log.jsonl; a line without a loss (null) leaves a gap. Faint: as logged; strong: a running
    mean within each stage. Without any guidance loss there is one panel. No lines are a ValueError.
    """
    from matplotlib.figure import Figure

    steps = [line for line in logs if _number(line.get("lm_loss", line.get("loss"))) is not None]
    if not steps:
        raise ValueError("the log has no line with a loss: there are no curves to draw")
    look = THEMES[theme]
    guided = any(_number(line.get("guidance_loss")) is not None for line in steps)
    figure = Figure(figsize=(9, 4.4 if guided else 2.8), dpi=120, layout="constrained", facecolor="none")
    panels = figure.subplots(2 if guided else 1, 1, sharex=True, squeeze=False, height_ratios=[3, 2] if guided else [1])
    window = max(1, round(_SMOOTHING_RATIO * len(steps)))
    names = (("lm_loss", "language modelling"), ("guidance_loss", "guidance"))
    for number, axes in enumerate(panels[:, 0]):
        key, label = names[number]
        style_axes(axes, look)
        axes.set_ylabel(f"{label} loss", color=look.faint, fontsize=9)
        for index, stage in enumerate(_stages(steps)):
            _draw_stage(axes, stage, key, look.series[number], window)
            if index % 2 == 0:
                axes.axvspan(_step(stage[0]), _step(stage[-1]), color=look.shade, zorder=0, linewidth=0)
        axes.set_ylim(bottom=0)
        axes.margins(x=0)
    _name_stages(panels[0, 0], _stages(steps), look)
    panels[-1, 0].set_xlabel("global step", color=look.faint, fontsize=9)
    return figure


def pope_bars(
    pope: Mapping[str, Mapping[str, Any]],
    *,
    other: Mapping[str, Mapping[str, Any]] | None = None,
    theme: ThemeName = "light",
) -> Figure:
    """Accuracy, F1 and yes ratio of POPE's three splits as bars; `other` (another world's) as marks beside them.

    `pope` maps a split to its figures in [0, 1]; a split or figure that is missing leaves its place empty. The 95 %
    interval of the accuracy is drawn where `accuracy_interval` is given. The dotted line is an even yes ratio, and
    what a coin would score.
    """
    from matplotlib.figure import Figure

    look = THEMES[theme]
    figure = Figure(figsize=(9, 2.9), dpi=120, layout="constrained", facecolor="none")
    axes = figure.subplots()
    style_axes(axes, look)
    for number, (key, label) in enumerate(_MEASURES):
        axes.bar(0, 0, color=look.series[number], label=label)
        for place, split in enumerate(SPLITS):
            x = place + (number - 1) * (_BAR_WIDTH + 0.02)
            _draw_bar(axes, x, pope.get(split, {}), key, look.series[number], look)
            beside = _number((other or {}).get(split, {}).get(key))
            if beside is not None:
                axes.plot(x, beside, marker="D", markersize=4.5, color=look.ink, zorder=4, linestyle="none")
    axes.axhline(0.5, color=look.faint, linewidth=1, linestyle=":", zorder=3)
    axes.set(xticks=range(len(SPLITS)), xticklabels=SPLITS, ylim=(0, 1.0), xlim=(-0.5, len(SPLITS) - 0.5))
    axes.tick_params(axis="x", labelsize=10, labelcolor=look.ink)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=9, labelcolor=look.ink)
    return figure


@dataclass(frozen=True)
class PairHistogram:
    """Counts of matching and of mismatched pairs in the bins between `edges`, with a title and a line below it."""

    title: str
    note: str
    edges: Sequence[float]
    matching: Sequence[int]
    mismatched: Sequence[int]


def pair_histograms(panels: Sequence[PairHistogram], *, columns: int = 3, theme: ThemeName = "light") -> Figure:
    """Matching against mismatched pairs, as shares of the pairs of their kind, in panels; none is a ValueError."""
    from matplotlib.figure import Figure

    if not panels:
        raise ValueError("there are no histograms to draw")
    look = THEMES[theme]
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(9, 0.5 + 2.35 * rows), dpi=120, layout="constrained", facecolor="none")
    places = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes, panel in zip(places, panels, strict=False):
        _draw_pairs(axes, panel, look)
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    figure.legend(
        *places[0].get_legend_handles_labels(),
        loc="outside upper center",
        ncols=2,
        frameon=False,
        fontsize=9,
        labelcolor=look.ink,
    )
    return figure


MEASURE_TITLES = {
    "hidden_mean": "hidden states, mean tokens",
    "hidden_max": "hidden states, nearest token",
    "query_key_cosine": "query and key, cosine",
    "query_key_logit": "query and key, logit",
    "caption_likelihood": "caption likelihood",
    "caption_gain": "caption likelihood gained",
}


def similarity_figure(record: Mapping[str, Any], *, theme: ThemeName = "light") -> Figure:
    """The headline histograms of every measure of a similarity record, with AUROC, overlap and layer, on white."""
    panels = []
    for name, measure in record["measures"].items():
        layer = "" if measure["layer"] is None else f" · layer {measure['layer']}"
        note = f"AUROC {measure['auroc']:.3f} · overlap {measure['overlap']:.2f}{layer}"
        panels.append(PairHistogram(MEASURE_TITLES.get(name, name), note, **measure["histogram"]))
    figure = pair_histograms(panels, theme=theme)
    figure.set_facecolor("white" if theme == "light" else "#14171c")
    return figure


def _draw_pairs(axes: Any, panel: PairHistogram, look: Theme) -> None:
    style_axes(axes, look)
    for counts, label, colour in (
        (panel.mismatched, "mismatched", look.series[1]),
        (panel.matching, "matching", look.series[0]),
    ):
        shares = np.asarray(counts) / max(sum(counts), 1)
        axes.stairs(shares, panel.edges, fill=True, color=colour, alpha=0.3, zorder=2)
        axes.stairs(shares, panel.edges, color=colour, linewidth=1.5, zorder=3, label=label)
    axes.set_ylim(bottom=0)
    axes.margins(x=0.02)
    place = {"xycoords": "axes fraction", "textcoords": "offset points", "parse_math": False}
    axes.annotate(panel.title, (0, 1), (0, 17), **place, fontsize=10, fontweight="bold", color=look.ink)
    axes.annotate(panel.note, (0, 1), (0, 5), **place, fontsize=8.5, color=look.faint)


def _stages(logs: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    return [list(group) for _, group in groupby(logs, key=lambda line: (line.get("stage_index"), line.get("stage")))]


def _step(line: Mapping[str, Any]) -> float:
    return float(line.get("global_step", line.get("step", 0)))


def _name_stages(axes: Any, stages: Sequence[Sequence[Mapping[str, Any]]], look: Theme) -> None:
    """Write the names of the stages above them, on two levels where one is too narrow for its name."""
    first, last = _step(stages[0][0]), _step(stages[-1][-1])
    shares = [(_step(stage[-1]) - _step(stage[0])) / max(last - first, 1) for stage in stages]
    names = [str(stage[0].get("stage", "")) for stage in stages]
    crowded = any(share < _LETTER_RATIO * (len(name) + 1) for share, name in zip(shares, names, strict=True))
    for index, (stage, name) in enumerate(zip(stages, names, strict=True)):
        axes.annotate(
            name,
            ((_step(stage[0]) + _step(stage[-1])) / 2, 1),
            (0, 16 if crowded and index % 2 else 4),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            fontsize=9,
            color=look.ink,
            fontweight="bold",
            parse_math=False,
        )


def _number(value: object) -> float | None:
    """The value as a finite float, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        return None
    return float(value)


def _draw_stage(axes: Any, stage: Sequence[Mapping[str, Any]], key: str, colour: str, window: int) -> None:
    """One stage's losses; `lm_loss` may be logged as `loss` alone."""
    logged = [(line, _number(line.get(key, line.get("loss") if key == "lm_loss" else None))) for line in stage]
    points = [(_step(line), value) for line, value in logged if value is not None]
    if not points:
        return
    x, y = np.array(points).T
    axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.8, zorder=2)
    half = min(window, len(y) - 1)
    smooth = [float(y[max(0, i - half) : i + half + 1].mean()) for i in range(len(y))]
    axes.plot(x, smooth, color=colour, linewidth=1.7, zorder=3, marker="o" if len(y) == 1 else None, markersize=3)


def _draw_bar(axes: Any, x: float, scores: Mapping[str, Any], key: str, colour: str, look: Theme) -> None:
    value = _number(scores.get(key))
    if value is None:
        return
    axes.bar(x, value, _BAR_WIDTH, color=colour, zorder=2)
    axes.annotate(
        f"{value:.3f}",
        (x, 0),
        (0, 5),
        textcoords="offset points",
        ha="center",
        fontsize=8.5,
        color=look.on_series,
        fontweight="bold",
    )
    interval = scores.get("accuracy_interval") if key == "accuracy" else None
    if interval:
        axes.vlines(x, *interval, color=look.ink, linewidth=1.2, zorder=3)
