"""From the runs of a comparison to its figures: those of every arm and paired differences, with intervals.

Reads what `agevlm train` and the analyses leave in each run. Runs that are not done yet are left out; the file says
which are there.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from agevlm.comparison.pooling import pool_similarity, read_similarity
from agevlm.comparison.readings import ERROR
from agevlm.comparison.recipe import ComparisonRecipe
from agevlm.comparison.run import COSTS, EQUAL_TIME, equal_time_factors, run_directory, tests_directory
from agevlm.evaluation.benchmarks import SCENES
from agevlm.evaluation.breakdown import breakdown, pope_answers, scenes_facts
from agevlm.evaluation.detection import detect
from agevlm.evaluation.run_figures import Figure, figure_of
from agevlm.evaluation.statistics import (
    Estimate,
    Groups,
    difference,
    difference_of_seeds,
    estimate,
    estimate_of_seeds,
    ratio,
)
from agevlm.files import read_json_lines
from agevlm.training.recipe import ScenesSource, load_recipe
from agevlm.training.trainer import read_log
from agevlm.training.trajectory import FILE as TRAJECTORY

ANSWER_FIGURES = (
    *(
        f"pope.{split}.{name}"
        for split in ("random", "popular", "adversarial")
        for name in ("accuracy", "precision", "recall", "f1", "yes_ratio", "false_yes_ratio", "auroc")
    ),
    *(f"pope.mean.{name}" for name in ("accuracy", "f1", "yes_ratio", "false_yes_ratio")),
    "presence.colour.accuracy",
    "presence.colour.auroc",
    "counting.accuracy",
    "colour.accuracy",
    "relation.accuracy",
    "relation.yes_no.accuracy",
    "relation.choice.accuracy",
    "location.accuracy",
    "pointing.accuracy",
    "attention.mass",
    "attention.iou",
    "null_token.auroc",
    "null_token.mass_present",
    "null_token.mass_absent",
)
"""Figures of questions, named as in metrics.json; an arm without a null token has none of the last three.

Every other figure there is one number a run, which gets Student's interval over the seeds.
"""

TRAJECTORY_FIGURES = (
    "pope.random.accuracy",
    "pope.adversarial.accuracy",
    "pope.adversarial.yes_ratio",
    "pope.adversarial.false_yes_ratio",
    "pointing.accuracy",
    "text_perplexity",
)
Nested = dict[str, Any]


class ArmRuns:
    """The finished runs of one arm, by seed, in `out`/ARM/SEED; `groups` are the seeds that share a foundation.

    With `test` the figures are those of that dataset, which the runs were measured on besides.
    """

    def __init__(self, out: Path, arm: str, seeds: Iterable[int], groups: Groups, test: str | None = None) -> None:
        self.groups = groups
        runs = {seed: run_directory(out, arm, seed) for seed in seeds}
        measured = {seed: tests_directory(path, test) if test else path for seed, path in runs.items()}
        self.directories = {
            seed: path
            for seed, path in runs.items()
            if (path / "report.html").exists() and (measured[seed] / "metrics.json").exists()
        }
        self.measured = {seed: measured[seed] for seed in self.directories}
        self.predictions = {seed: read_json_lines(path / "predictions.jsonl") for seed, path in self.measured.items()}
        self._figures: dict[str, dict[int, Figure]] = {}

    @cached_property
    def numbers(self) -> dict[int, dict[str, float]]:
        """Seed → figures of the whole run, and of its training."""
        return {seed: _numbers(path, self.measured[seed]) for seed, path in self.directories.items()}

    def figures(self, name: str) -> dict[int, Figure]:
        """Seed → a figure of its questions. Empty where no run has it; some runs without it are a ValueError."""
        if name not in self._figures:
            found = {}
            for seed, records in self.predictions.items():
                try:
                    found[seed] = figure_of(records, name)
                except ValueError:
                    continue
            if found and len(found) < len(self.predictions):
                missing = min(self.predictions.keys() - found.keys())
                raise ValueError(f"{self.directories[missing]} has no figure {name!r}, other runs of the arm have")
            self._figures[name] = found
        return self._figures[name]

    def values(self, name: str) -> dict[int, float]:
        """Seed → one number of the whole run."""
        return {seed: numbers[name] for seed, numbers in self.numbers.items() if name in numbers}

    @property
    def number_names(self) -> list[str]:
        """The names that `values` knows."""
        return list(dict.fromkeys(name for numbers in self.numbers.values() for name in numbers))


def summarise(recipe: ComparisonRecipe, out: Path) -> Nested:
    """The content of a comparison's file of figures: what each section holds is said in docs/comparison.md.

    Differences are those of every two arms, in groups those to the first one. No finished run at all is a ValueError.
    """
    arms = _finished(recipe, out)
    if not arms:
        raise ValueError(f"{out} holds no finished run of {', '.join(recipe.trained)}")
    groups = recipe.groups or {"": tuple(recipe.trained)}
    pairs = _pairs(list(groups.values()))
    facts = _Facts()
    summary: Nested = {
        **recipe.words,
        "foundations": len(set(recipe.groups_of_seeds.values())) if recipe.foundations else None,
        "settings": {arm: recipe.changes_of(arm) for arm in arms},
        "described": {arm: recipe.describe(arm) for arm in arms},
        "groups": {title: [arm for arm in members if arm in arms] for title, members in groups.items()},
        "chosen": [arm for arm in recipe.chosen if arm in arms],
        "runs": {arm: sorted(runs.directories) for arm, runs in arms.items()},
        "arms": {arm: estimates(runs) for arm, runs in arms.items()},
        **_between(arms, pairs),
        "breakdown": {arm: cells for arm, runs in arms.items() if (cells := _breakdown(runs, facts))},
        "detection": {arm: _detection(runs) for arm, runs in arms.items()},
        "curves": {arm: curve for arm, runs in arms.items() if (curve := _curve(runs))},
        "similarity": {
            arm: pool_similarity(found, runs.groups)
            for arm, runs in arms.items()
            if (found := read_similarity(runs.directories))
        },
        "environment": _environment(arms),
    }
    if recipe.tests:
        summary["domains"] = {name: figures for name in recipe.tests if (figures := _domain(recipe, out, name, pairs))}
    if recipe.equal_time is not None and (out / COSTS).exists():
        summary["equal_time"] = _equal_time(recipe, out, arms)
    if recipe.costs and (out / COSTS).exists():
        measured = json.loads((out / COSTS).read_text(encoding="utf-8"))
        summary |= {"costs": measured.pop("costs"), "costs_settings": measured}
    return summary


def _finished(recipe: ComparisonRecipe, out: Path, test: str | None = None) -> dict[str, ArmRuns]:
    """The arms with finished runs; with `test` those that were measured on it."""
    arms = {arm: ArmRuns(out, arm, recipe.seeds_of(arm), recipe.groups_of_seeds, test) for arm in recipe.trained}
    return {arm: runs for arm, runs in arms.items() if runs.directories}


def _domain(recipe: ComparisonRecipe, out: Path, name: str, pairs: Iterable[tuple[str, str]]) -> Nested:
    """The figures on a dataset that the runs were measured on besides; {} where none was yet."""
    arms = _finished(recipe, out, name)
    if not arms:
        return {}
    return {
        "data": str(recipe.tests[name]),
        "runs": {arm: sorted(runs.directories) for arm, runs in arms.items()},
        "arms": {arm: estimates(runs) for arm, runs in arms.items()},
        **_between(arms, pairs),
        "detection": {arm: _detection(runs) for arm, runs in arms.items()},
    }


def _environment(arms: Mapping[str, ArmRuns]) -> Nested:
    """What the runs were made with; where they differ all there was, such as the commits."""
    files = [path / "environment.json" for runs in arms.values() for path in runs.directories.values()]
    found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    facts = {name: list(dict.fromkeys(str(of_run.get(name)) for of_run in found)) for name in found[0]}
    return {name: values[0] if len(values) == 1 else values for name, values in facts.items() if name != "seed"}


def estimates(runs: ArmRuns) -> Nested:
    """Every figure of an arm, nested as in metrics.json."""
    found: dict[str, Estimate] = {}
    for name in ANSWER_FIGURES:
        if figures := runs.figures(name):
            found[name] = estimate(figures, bounds=(0.0, 1.0), groups=runs.groups)
    for name in runs.number_names:
        found[name] = estimate_of_seeds(runs.values(name), bounds=_bounds(name), groups=runs.groups)
    return _nested({name: figure.record() for name, figure in found.items()})


def _bounds(name: str) -> tuple[float, float]:
    """What a figure cannot leave: perplexities start at 1, times and counts at 0, all others are shares."""
    if name.startswith("text_perplexity"):
        return 1.0, math.inf
    return 0.0, math.inf if name.startswith("train.") or name.endswith("mean_absolute_error") else 1.0


def _pairs(groups: Sequence[tuple[str, ...]]) -> list[tuple[str, str]]:
    """Every two arms, once; where there are several groups the first of each with the others."""
    if len(groups) == 1:
        return list(itertools.combinations(groups[0], 2))
    return list(dict.fromkeys((members[0], other) for members in groups for other in members[1:]))


def _between(arms: Mapping[str, ArmRuns], pairs: Iterable[tuple[str, str]]) -> Nested:
    """`differences` (arm → other → figure, arm minus other), one way round, and `error_ratios` (arm → other), both."""
    differences: Nested = {}
    ratios: Nested = {}
    for first, second in pairs:
        if first not in arms or second not in arms:
            continue
        found = _differences(arms[first], arms[second], (first, second))
        differences.setdefault(first, {})[second] = _nested({name: d.record() for name, d in found.items()})
        for one, two in ((first, second), (second, first)):
            errors = arms[one].figures(ERROR), arms[two].figures(ERROR)
            if errors[0].keys() & errors[1].keys():
                ratios.setdefault(one, {})[two] = ratio(*errors, names=(one, two), groups=arms[one].groups).record()
    return {"differences": differences, "error_ratios": ratios}


def _differences(first: ArmRuns, second: ArmRuns, names: tuple[str, str]) -> dict[str, Estimate]:
    found: dict[str, Estimate] = {}
    for name in ANSWER_FIGURES:
        one, two = first.figures(name), second.figures(name)
        if one.keys() & two.keys():
            found[name] = difference(one, two, names=names, groups=first.groups)
    for name in first.number_names:
        values = first.values(name), second.values(name)
        if values[0].keys() & values[1].keys():
            found[name] = difference_of_seeds(*values, groups=first.groups)
    return found


def _equal_time(recipe: ComparisonRecipe, out: Path, equal_steps: Mapping[str, ArmRuns]) -> Nested:
    """The figures at equal time; an arm whose steps stay as they are is there with its runs at equal steps."""
    assert recipe.equal_time is not None
    factors = equal_time_factors(recipe, out)
    seeds = recipe.seeds[: recipe.equal_time.num_seeds]
    places = {arm: out if factor == 1 else out / EQUAL_TIME for arm, factor in factors.items() if arm in equal_steps}
    arms = {
        arm: ArmRuns(place, arm, set(seeds) & set(recipe.seeds_of(arm)), recipe.groups_of_seeds)
        for arm, place in places.items()
    }
    arms = {arm: runs for arm, runs in arms.items() if runs.directories}
    return {
        "reference": recipe.equal_time.reference,
        "tolerance": recipe.equal_time.tolerance,
        "step_factors": factors,
        "runs": {arm: sorted(runs.directories) for arm, runs in arms.items()},
        "arms": {arm: estimates(runs) for arm, runs in arms.items()},
        **_between(arms, itertools.combinations(arms, 2)),
    }


def _curve(runs: ArmRuns) -> list[Nested]:
    """Points along the training: step, mean seconds, and figures over the seeds; [] where they were not measured.

    Seconds are those of the steps alone, see `_stepping_seconds`.
    """
    found = {
        seed: json.loads((path / TRAJECTORY).read_text(encoding="utf-8"))
        for seed, path in runs.directories.items()
        if (path / TRAJECTORY).exists()
    }
    times = {seed: _stepping_seconds(runs.directories[seed]) for seed in found}
    points = []
    for together in zip(*found.values(), strict=True):
        by_seed = dict(zip(found, together, strict=True))
        figures = {
            name: estimate_of_seeds(values, bounds=_bounds(name), groups=runs.groups).record()
            for name in TRAJECTORY_FIGURES
            if (values := {seed: v for seed, p in by_seed.items() if (v := _value(p["metrics"], name)) is not None})
        }
        first = together[0]
        seconds = statistics.fmean(of_run[first["step"] - 1] for of_run in times.values())
        place = {"stage": first["stage"], "step": first["step"], "ends_stage": first["ends_stage"], "seconds": seconds}
        points.append({**place, "figures": figures})
    return points


class _Facts:
    """What is there in the pictures of a test world, drawn once for all arms; None of another benchmark's."""

    def __init__(self) -> None:
        self.drawn: dict[str, Any] = {}

    def of(self, directory: Path) -> Any:
        recipe = load_recipe(directory / "recipe.yaml")
        asked = recipe.evaluation
        assert asked is not None
        if asked.benchmark != SCENES:
            return None
        drawn = (source for source in recipe.data.values() if isinstance(source, ScenesSource))
        source = next(drawn, ScenesSource())  # as the benchmark has it
        key = json.dumps([source.scenes.model_dump(mode="json"), asked.seed, asked.num_images, asked.split])
        if key not in self.drawn:
            self.drawn[key] = scenes_facts(source.scenes, asked.seed, asked.num_images, split=asked.split)
        return self.drawn[key]


def _breakdown(runs: ArmRuns, facts: _Facts) -> Nested:
    known = {seed: facts.of(path) for seed, path in runs.directories.items()}
    if any(found is None for found in known.values()):
        return {}
    answers = {seed: pope_answers(runs.predictions[seed], known[seed]) for seed in known}
    tables = breakdown(answers, runs.groups)
    return {
        rate: {situation: [cell.record() for cell in cells] for situation, cells in by_situation.items()}
        for rate, by_situation in tables.items()
    }


def _detection(runs: ArmRuns) -> Nested:
    found = detect(runs.predictions, runs.groups)
    return {split: {name: seen.record() for name, seen in by_name.items()} for split, by_name in found.items()}


def _nested(flat: Mapping[str, Any]) -> Nested:
    """Dotted names as nested objects, as metrics.json has them."""
    nested: Nested = {}
    for name, value in flat.items():
        *parents, last = name.split(".")
        place = nested
        for part in parents:
            place = place.setdefault(part, {})
        place[last] = value
    return nested


def _value(nested: Any, name: str) -> float | None:
    """A number by its dotted name; None where there is none."""
    for part in name.split("."):
        nested = nested.get(part) if isinstance(nested, dict) else None
    return nested if isinstance(nested, float) else None


def _floats(nested: Nested, prefix: str = "") -> Iterator[tuple[str, float]]:
    """The figures of metrics.json by their dotted names; counts, which are whole numbers, and settings are none."""
    for key, value in nested.items():
        if isinstance(value, dict):
            yield from _floats(value, f"{prefix}{key}.")
        elif isinstance(value, float) and key != "reference_yes_ratio":
            yield prefix + key, value


def _numbers(directory: Path, measured: Path) -> dict[str, float]:
    metrics = json.loads((measured / "metrics.json").read_text(encoding="utf-8"))
    metrics.pop("provenance", None)
    found = {name: value for name, value in _floats(metrics) if name not in ANSWER_FIGURES}
    if (directory / TRAJECTORY).exists():
        points = json.loads((directory / TRAJECTORY).read_text(encoding="utf-8"))
        ends = [point for point in points if point["ends_stage"]][:-1]  # the last stage's is "after"
        found |= {f"text_perplexity.{point['stage']}": point["metrics"]["text_perplexity"] for point in ends}
    seconds = _stepping_seconds(directory)
    return {**found, "train.seconds": seconds[-1], "train.seconds_per_step": seconds[-1] / len(seconds)}


def _stepping_seconds(directory: Path) -> list[float]:
    """For each step of a run the seconds until its end: in every stage a step takes the stage's median.

    Medians, because other work on the machine and the saving of checkpoints stretch single steps.
    """
    by_stage: dict[int, list[float]] = {}
    for line in read_log(directory / "log.jsonl"):
        by_stage.setdefault(line["stage_index"], []).append(line["time_s"])
    taken = list[float]()
    for ends in by_stage.values():
        steps = [after - before for before, after in zip([0.0, *ends], ends, strict=False)]
        taken += [statistics.median(steps)] * len(steps)
    return list(itertools.accumulate(taken))
