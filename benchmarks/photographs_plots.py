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

from agevlm.comparison.plots import arms_of, colour_of
from agevlm.comparison.readings import figure_of

TESTS = {"coco": "COCO", "indoor": "rooms", "clothing": "clothing"}
PANELS = {  # title, figure, what was wanted of it for each test
    "adversarial accuracy": ("pope.adversarial.accuracy", {"coco": 0.76, "indoor": 0.78, "clothing": 0.72}),
    "pointing": ("pointing.accuracy", {"coco": 0.55, "indoor": 0.70, "clothing": 0.70}),
}


def main() -> None:
    """Parse, draw, say where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", type=Path, default=Path("results/photographs.json"))
    parser.add_argument("--out", type=Path, default=Path("docs/images/photographs-plots.png"))
    asked = parser.parse_args()
    figures = json.loads(asked.figures.read_text(encoding="utf-8"))
    drawn = Figure(figsize=(9.2, 3.4), layout="constrained")
    for axes, (title, (figure, wanted)) in zip(drawn.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        _panel(axes, figures, figure, wanted)
        axes.set_title(title, loc="left", fontsize=11)
    handles, labels = drawn.axes[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    drawn.savefig(asked.out, dpi=150)
    print(asked.out)


def _panel(axes: Any, content: Mapping[str, Any], figure: str, wanted: Mapping[str, float]) -> None:
    tests = {test: content["domains"][test] for test in TESTS}
    arms = {
        arm: look for arm, look in arms_of(content).items() if any(arm in found["arms"] for found in tests.values())
    }
    width = 0.8 / len(arms)
    for place, (test, found) in enumerate(tests.items()):
        for number, (arm, look) in enumerate(arms.items()):
            if (reading := figure_of(found, arm, figure)) is None:
                continue
            x = place + (number - (len(arms) - 1) / 2) * width
            colour, title = colour_of(look, "light"), look.title if place == 0 else None
            axes.bar(x, reading.mean, width * 0.92, color=colour, label=title)
            axes.plot([x] * len(reading.values), reading.values, "o", ms=3, color="#1b1f24")
        axes.hlines(wanted[test], place - 0.45, place + 0.45, colors="#b3423a", linestyles="dashed", linewidth=1)
    axes.set_xticks(range(len(TESTS)), TESTS.values())
    axes.set_ylim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0)


if __name__ == "__main__":
    main()
