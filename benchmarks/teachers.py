"""How good the small teachers are, and what training on their masks keeps: one file of figures, one page.

docs/teachers.md has the command, and those that make what it reads.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agevlm.comparison.readings import section
from agevlm.evaluation.statistics import ratio_of_seeds
from agevlm.files import write_beside

EXACT, TAUGHT, UNGUIDED = "age_plus", "taught", "cross_attention"
ARMS = {UNGUIDED: "no guidance", EXACT: "exact masks", TAUGHT: "the teacher's masks"}
AGREEMENT = {
    "mean_iou": "IoU of masks, where teacher and truth both say that the thing is there",
    "iou_at_least_0.5": "… at least 0.5",
    "iou_at_least_0.75": "… at least 0.75",
    "iou_at_least_0.9": "… at least 0.9",
    "found": "of the phrases that are there: found",
    "missed": "… said to be absent",
    "denied": "of the phrases that are not there: said to be absent",
    "imagined": "… found",
    "unknown": "of all phrases: left unknown",
}
FIGURES = {
    "pope.adversarial.accuracy": "POPE adversarial",
    "pope.random.accuracy": "POPE random",
    "counting.accuracy": "counting",
    "colour.accuracy": "colour",
    "pointing.accuracy": "pointing",
}


def summed_up(
    agreement: Mapping[str, Any], grounding: Mapping[str, Any], comparison: Mapping[str, Any]
) -> dict[str, Any]:
    """`mean_iou` and `gain_ratio` with their intervals, beside all that they stand on."""
    arms = {arm: {name: dict(section(comparison, f"arms.{arm}.{name}")) for name in FIGURES} for arm in ARMS}
    return {
        "mean_iou": agreement["mean_iou"]["mean"],
        "mean_iou_interval": [agreement["mean_iou"]["low"], agreement["mean_iou"]["high"]],
        **gain({arm: figures["pope.adversarial.accuracy"] for arm, figures in arms.items()}, comparison["runs"]),
        "agreement": agreement,
        "grounding": grounding,
        "arms": arms,
        "environment": comparison["environment"],
    }


def gain(accuracy: Mapping[str, Any], seeds: Mapping[str, Any]) -> dict[str, Any]:
    """What the teacher's masks bring over no guidance, as a share of what exact ones bring, paired by seed."""
    by_seed = {arm: dict(zip(seeds[arm], figure["values"], strict=True)) for arm, figure in accuracy.items()}
    taught, exact = ({s: by_seed[arm][s] - by_seed[UNGUIDED][s] for s in by_seed[arm]} for arm in (TAUGHT, EXACT))
    ratio = ratio_of_seeds(taught, exact)
    each = [taught[seed] / exact[seed] for seed in sorted(taught)]
    return {"gain_ratio": ratio.mean, "gain_ratio_interval": [ratio.low, ratio.high], "gain_ratio_of_seeds": each}


def page(result: Mapping[str, Any]) -> str:
    """The figures as Markdown."""
    counts = result["grounding"]["counts"]
    lines = [
        "# A learned teacher in place of exact masks",
        "",
        "A small Grounding DINO and a small SAM learn the embedded world and ground scenes that they have never seen,",
        "as the large ones would ground photographs; AGE + trains on what they say: [the commands]"
        "(../teachers.md#the-loop-closed).",
        "",
        f"**Mean IoU {result['mean_iou']:.3f}** ({_range(result['mean_iou_interval'])}), wanted: at least 0.75. "
        f"**Share of the gain kept {result['gain_ratio']:.3f}** ({_range(result['gain_ratio_interval'])}), wanted: at "
        "least 0.9: what these masks bring in adversarial accuracy over no guidance, divided by what exact ones bring.",
        "",
        f"## The teacher on {counts['images']} scenes",
        "",
        "![Scenes with the masks that the teacher gave for their words](teachers/samples.png)",
        "",
        "| figure | mean | 95 % interval |",
        "|---|---|---|",
    ]
    for name, title in AGREEMENT.items():
        if name in result["agreement"]:
            figure = result["agreement"][name]
            lines.append(f"| {title} | {figure['mean']:.3f} | {_range([figure['low'], figure['high']])} |")
    words = sorted(result["agreement"]["iou_by_phrase"].items(), key=lambda pair: pair[1])
    seeds = result["arms"][EXACT]["pope.adversarial.accuracy"]["num_seeds"]
    lines += ["", f"IoU by word, worst first: {', '.join(f'{word} {iou:.2f}' for word, iou in words)}."]
    lines += [
        "",
        f"## Training on its masks, {seeds} seeds",
        "",
        f"| | {' | '.join(ARMS.values())} |",
        "|---|---|---|---|",
    ]
    for name, title in FIGURES.items():
        cells = [result["arms"][arm][name] for arm in ARMS]
        shown = [f"{cell['mean']:.3f} ({_range([cell['low'], cell['high']])})" for cell in cells]
        lines.append(f"| {title} | {' | '.join(shown)} |")
    lines += [
        "",
        "One teacher and one dataset for all seeds, which vary the initial weights, the order and the test world. With",
        "AdamW and 930 steps counting and colour have not come yet. The teacher's masks are of all things of a name,",
        "the exact ones of the very thing that is meant.",
    ]
    each = ", ".join(f"{ratio:.3f}" for ratio in result["gain_ratio_of_seeds"])
    lines += [
        "",
        f"Share of the gain kept, seed by seed: {each}. All values are in [results/teachers.json]"
        "(../../results/teachers.json).",
    ]
    return "\n".join(lines) + "\n"


def _range(ends: list[float | None]) -> str:
    return " to ".join("∞" if end is None else f"{end:.3f}" for end in ends)


def main() -> None:
    """Read what was measured, write the file and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("agreement", "grounding", "comparison", "json", "page"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    paths = parser.parse_args()
    read = (json.loads(path.read_text("utf-8")) for path in (paths.agreement, paths.grounding, paths.comparison))
    result = summed_up(*read)
    for path, text in ((paths.json, json.dumps(result, indent=1) + "\n"), (paths.page, page(result))):
        with write_beside(path) as beside:
            beside.write_text(text, "utf-8")
        print(path)


if __name__ == "__main__":
    main()
