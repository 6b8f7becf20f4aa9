"""A recipe over several seeds: every figure with its spread, as JSON and as the table of the README.

    python benchmarks/seeds.py recipes/quickstart.yaml --seeds 0 1 2 --out runs/seeds --json results/quickstart.json

A seed draws its own training scenes, initial weights and order, and is measured on test scenes of its own. A run that
is there already is read, not trained again; one that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from agevlm.files import write_beside
from agevlm.training.recipe import load_recipe
from agevlm.training.run import train

FIGURES = {
    "pope.random.accuracy": "POPE random, accuracy",
    "pope.popular.accuracy": "POPE popular, accuracy",
    "pope.adversarial.accuracy": "POPE adversarial, accuracy",
    "pope.adversarial.yes_ratio": "POPE adversarial, yes ratio (truth 0.5)",
    "biased.pope.adversarial.accuracy": "POPE adversarial, scenes like the training's",
    "counting.accuracy": "Counting",
    "colour.accuracy": "Colour",
    "presence.colour.accuracy": "Coloured presence",
    "relation.accuracy": "Spatial relation",
    "location.accuracy": "Location",
    "pointing.accuracy": "Pointing of object words",
    "attention.mass": "Attention inside the mask",
    "null_token.auroc": "Null token, absent against present (AUROC)",
    "text_perplexity.before": "Text perplexity before",
    "text_perplexity.after": "Text perplexity after",
}


def run_seeds(recipe: Path, seeds: Sequence[int], out: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Train and measure every seed; figure → mean, low, high and the values in the order of the seeds."""
    metrics = [_run(recipe, seed, out / f"{recipe.stem}-{seed}", overrides) for seed in seeds]
    seconds = [sum(stage["seconds"] for stage in run["stages"]) for run in metrics]
    figures = {name: _spread([_at(run, name) for run in metrics]) for name in FIGURES}
    return {
        "recipe": str(recipe),
        "overrides": list(overrides),
        "seeds": list(seeds),
        "environment": metrics[0]["environment"],
        "stage_seconds": seconds,
        "figures": figures,
    }


def table(result: Mapping[str, Any]) -> str:
    """The figures as Markdown, with the lowest and the highest seed beside the mean."""
    lines = [f"| figure | mean of {len(result['seeds'])} seeds | lowest to highest |", "|---|---|---|"]
    for name, title in FIGURES.items():
        figure = result["figures"][name]
        lines.append(f"| {title} | {figure['mean']:.3f} | {figure['low']:.3f} to {figure['high']:.3f} |")
    return "\n".join(lines)


def _run(recipe: Path, seed: int, out: Path, overrides: Sequence[str]) -> dict[str, Any]:
    if not (out / "metrics.json").exists():
        resolved = load_recipe(recipe, [*overrides, f"evaluation.seed={seed}"], seed)
        train(resolved, out, resume=(out / "recipe.yaml").exists())
    read = {name: json.loads((out / f"{name}.json").read_text()) for name in ("metrics", "stages", "environment")}
    return {**read["metrics"], "stages": read["stages"], "environment": read["environment"]}


def _at(nested: Mapping[str, Any], path: str) -> float:
    value: Any = nested
    for key in path.split("."):
        value = value[key]
    return float(value)


def _spread(values: Sequence[float]) -> dict[str, Any]:
    return {"mean": mean(values), "low": min(values), "high": max(values), "values": list(values)}


def main() -> None:
    """Parse, run, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--json", type=Path, help="where the figures are kept")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    asked = parser.parse_args()
    result = run_seeds(asked.recipe, asked.seeds, asked.out, asked.overrides)
    if asked.json:
        with write_beside(asked.json) as beside:
            beside.write_text(json.dumps(result, indent=1), encoding="utf-8")
    print(table(result))


if __name__ == "__main__":
    main()
