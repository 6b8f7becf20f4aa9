"""The two plots of docs/results/photographs.md, from its file of figures: answers and pointing, by test and arm.

    python benchmarks/photographs_plots.py --out docs/images/photographs-plots.png

A bar is the mean over seeds, a dot a seed; the dashed lines are what was wanted of AGE + before it was trained.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

TESTS = {"coco": "COCO", "indoor": "rooms", "clothing": "clothing"}
ARMS = {"concat": "#b7b7b7", "cross_attention": "#8a8f98", "concat_guided": "#e0a458", "age_plus": "#2f6f9f"}
PANELS = {  # title, the way to the figure, what was wanted for each test
    "adversarial accuracy": (("pope", "adversarial", "accuracy"), {"coco": 0.76, "indoor": 0.78, "clothing": 0.72}),
    "pointing": (("pointing", "accuracy"), {"coco": 0.55, "indoor": 0.70, "clothing": 0.70}),
}


def main() -> None:
    """Parse, draw, say where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", type=Path, default=Path("results/photographs.json"))
    parser.add_argument("--out", type=Path, default=Path("docs/images/photographs-plots.png"))
    asked = parser.parse_args()
    figures = json.loads(asked.figures.read_text(encoding="utf-8"))
    drawn = Figure(figsize=(9.2, 3.4), layout="constrained")
    for axes, (title, (way, wanted)) in zip(drawn.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        _panel(axes, figures, way, wanted)
        axes.set_title(title, loc="left", fontsize=11)
    handles, labels = drawn.axes[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    drawn.savefig(asked.out, dpi=150)
    print(asked.out)


def _panel(axes: Any, figures: Mapping[str, Any], way: tuple[str, ...], wanted: Mapping[str, float]) -> None:
    arms = [arm for arm in ARMS if any(arm in figures["domains"][test]["arms"] for test in TESTS)]
    width = 0.8 / len(arms)
    for place, test in enumerate(TESTS):
        there = figures["domains"][test]["arms"]
        for number, arm in enumerate(arm for arm in arms if arm in there):
            figure = there[arm]
            for key in way:
                figure = figure[key]
            x = place + (number - (len(arms) - 1) / 2) * width
            title = figures["titles"][arm] if place == 0 else None
            axes.bar(x, figure["mean"], width * 0.92, color=ARMS[arm], label=title)
            axes.plot([x] * len(figure["values"]), figure["values"], "o", ms=3, color="#1b1f24")
        axes.hlines(wanted[test], place - 0.45, place + 0.45, colors="#b3423a", linestyles="dashed", linewidth=1)
    axes.set_xticks(range(len(TESTS)), TESTS.values())
    axes.set_ylim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0)


if __name__ == "__main__":
    main()
