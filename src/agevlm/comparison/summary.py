"""From the runs of a comparison to `comparison.json`: figures of every arm and paired differences, with intervals.

Reads what `agevlm train` leaves in each run. Runs that are not done yet are left out; the file says which are there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from agevlm.comparison.recipe import ComparisonRecipe
from agevlm.comparison.run import run_directory
from agevlm.evaluation.breakdown import breakdown, pope_answers, scenes_facts
from agevlm.evaluation.detection import detect
from agevlm.evaluation.statistics import (
    Estimate,
    Figure,
    difference,
    difference_of_seeds,
    estimate,
    estimate_of_seeds,
    figure_of,
    ratio,
)
from agevlm.files import write_beside
from agevlm.training.recipe import ScenesSource, load_recipe

ANSWER_FIGURES = (
    *(
        f"pope.{split}.{name}"
        for split in ("random", "popular", "adversarial")
        for name in ("accuracy", "f1", "yes_ratio")
    ),
    "pope.adversarial.auroc",
    "presence.colour.accuracy",
    "counting.accuracy",
    "colour.accuracy",
    "relation.accuracy",
    "location.accuracy",
    "pointing.accuracy",
    "attention.mass",
    "attention.iou",
    "null_token.auroc",
)
"""Figures of questions, named as in metrics.json; an arm without a null token has none of the last."""

SEED_FIGURES = ("text_perplexity.before", "text_perplexity.after", "train.seconds", "train.seconds_per_step")
"""One number a run: perplexity from metrics.json, time from stages.json, all stages together."""

ERROR = "pope.adversarial.error"  # whose ratios between arms are the claim


class ArmRuns:
    """The finished runs of one arm, by seed."""

    def __init__(self, recipe: ComparisonRecipe, out: Path, arm: str) -> None:
        done = {seed: run_directory(out, arm, seed) for seed in recipe.seeds_of(arm)}
        self.directories = {seed: path for seed, path in done.items() if (path / "report.html").exists()}
        self.predictions = {seed: _read_lines(path / "predictions.jsonl") for seed, path in self.directories.items()}
        self.numbers = {seed: _numbers(path) for seed, path in self.directories.items()}

    def figures(self, name: str) -> dict[int, Figure]:
        """Seed → a figure of its questions; empty where the arm has none of that name."""
        try:
            return {seed: figure_of(records, name) for seed, records in self.predictions.items()}
        except ValueError:
            return {}

    def values(self, name: str) -> dict[int, float]:
        """Seed → one of `SEED_FIGURES`."""
        return {seed: numbers[name] for seed, numbers in self.numbers.items() if name in numbers}


def summarise(recipe: ComparisonRecipe, out: Path) -> dict[str, Any]:
    """The content of comparison.json: `arms`, `differences`, `error_ratios`, `breakdown`, `detection`, `runs`.

    No finished run at all is a ValueError.
    """
    arms = {arm: ArmRuns(recipe, out, arm) for arm in recipe.arms}
    arms = {arm: runs for arm, runs in arms.items() if runs.directories}
    if not arms:
        raise ValueError(f"{out} holds no finished run of {', '.join(recipe.arms)}")
    return {
        "name": recipe.name,
        "titles": {arm: recipe.arms[arm].title for arm in arms},
        "runs": {arm: sorted(runs.directories) for arm, runs in arms.items()},
        "arms": {arm: _nested(_estimates(runs)) for arm, runs in arms.items()},
        "differences": _between(arms, _differences),
        "error_ratios": _between(arms, _error_ratio),
        "breakdown": {arm: _breakdown(runs) for arm, runs in arms.items()},
        "detection": {arm: _detection(runs) for arm, runs in arms.items()},
        "environment": json.loads((_first_run(arms) / "environment.json").read_text(encoding="utf-8")),
    }


def write_summary(summary: Mapping[str, Any], path: Path) -> None:
    """Write comparison.json."""
    with write_beside(path) as beside:
        beside.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _first_run(arms: Mapping[str, ArmRuns]) -> Path:
    return next(path for runs in arms.values() for path in runs.directories.values())


def _estimates(runs: ArmRuns) -> dict[str, Any]:
    found: dict[str, Estimate] = {}
    for name in ANSWER_FIGURES:
        if figures := runs.figures(name):
            found[name] = estimate(figures, bounds=(0.0, 1.0))
    for name in SEED_FIGURES:
        if values := runs.values(name):
            found[name] = estimate_of_seeds(values)
    return {name: figure.record() for name, figure in found.items()}


def _differences(first: ArmRuns, second: ArmRuns, names: tuple[str, str]) -> dict[str, Any]:
    found: dict[str, Estimate] = {}
    for name in ANSWER_FIGURES:
        one, two = first.figures(name), second.figures(name)
        if one.keys() & two.keys():
            found[name] = difference(one, two, names=names)
    for name in SEED_FIGURES:
        values = first.values(name), second.values(name)
        if values[0].keys() & values[1].keys():
            found[name] = difference_of_seeds(*values)
    return _nested({name: figure.record() for name, figure in found.items()})


def _error_ratio(first: ArmRuns, second: ArmRuns, names: tuple[str, str]) -> dict[str, Any]:
    one, two = first.figures(ERROR), second.figures(ERROR)
    return ratio(one, two, names=names).record() if one.keys() & two.keys() else {}


def _between(
    arms: Mapping[str, ArmRuns], measure: Callable[[ArmRuns, ArmRuns, tuple[str, str]], dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """A measure of every arm against every other: first arm → second arm → outcome."""
    return {
        first: {second: measure(arms[first], arms[second], (first, second)) for second in arms if second != first}
        for first in arms
    }


def _breakdown(runs: ArmRuns) -> dict[str, Any]:
    answers = {}
    for seed, directory in runs.directories.items():
        recipe = load_recipe(directory / "recipe.yaml")
        assert recipe.evaluation is not None
        source = next(source for source in recipe.data.values() if isinstance(source, ScenesSource))
        asked = recipe.evaluation
        facts = scenes_facts(source.scenes, asked.seed, asked.num_images, split=asked.split)
        answers[seed] = pope_answers(runs.predictions[seed], facts)
    tables = breakdown(answers)
    return {
        rate: {situation: [cell.record() for cell in cells] for situation, cells in by_situation.items()}
        for rate, by_situation in tables.items()
    }


def _detection(runs: ArmRuns) -> dict[str, Any]:
    found = detect(runs.predictions)
    return {split: {name: seen.record() for name, seen in by_name.items()} for split, by_name in found.items()}


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted names as nested objects, as metrics.json has them."""
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, last = name.split(".")
        place = nested
        for part in parents:
            place = place.setdefault(part, {})
        place[last] = value
    return nested


def _numbers(directory: Path) -> dict[str, float]:
    perplexity = json.loads((directory / "metrics.json").read_text(encoding="utf-8")).get("text_perplexity", {})
    stages = json.loads((directory / "stages.json").read_text(encoding="utf-8"))
    seconds, steps = (sum(stage[name] for stage in stages) for name in ("seconds", "steps"))
    found = {f"text_perplexity.{when}": value for when, value in perplexity.items() if isinstance(value, float)}
    return {**found, "train.seconds": seconds, "train.seconds_per_step": seconds / steps}


def _read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
