"""All runs of a comparison in one directory: foundations first, then every arm with every seed, resumable.

The directory of comparisons:
    NAME.yaml                the resolved recipe without its words; other comparisons may share the directory, and runs
    foundations/K/           the foundations
    ARM/SEED/                the runs, each as `agevlm train` leaves it, trajectory.json and similarity.json
    ARM/SEED/tests/NAME/     what each was measured on besides, as `agevlm evaluate` leaves it
    equal_time/ARM/SEED/     those at equal time, where the steps of an arm are others; without the analyses
    equal_time/factors.json  by what their steps are multiplied, from the costs when the first of them began
    costs.json               what a step and an answer cost
    recipes/ logs/           what the runs were told and what they said

A run that is there is not trained again, one that was stopped goes on; one of another recipe is an error.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from agevlm.checkpoints import resolve_model
from agevlm.comparison.jobs import Job, run_jobs
from agevlm.comparison.pooling import SIMILARITY_FILE
from agevlm.comparison.recipe import ComparisonRecipe, scaled
from agevlm.files import write_beside
from agevlm.training.foundation import MODELS, FoundationSpec, made_by
from agevlm.training.recipe import Recipe, dump_recipe, is_recipe_of, load_recipe
from agevlm.training.trajectory import FILE as TRAJECTORY

FOUNDATIONS = "foundations"
EQUAL_TIME = "equal_time"
COSTS = "costs.json"
FACTORS = "factors.json"


def compare(
    recipe: ComparisonRecipe,
    out: str | Path,
    *,
    arms: Sequence[str] = (),
    num_parallel: int = 1,
    console: Console | None = None,
) -> Path:
    """Train and measure all runs of a comparison into `out`; with `arms` only those, and nothing at equal time.

    A directory that holds another comparison is a ValueError; so is an arm that the recipe does not have.
    """
    out, console = Path(out), console or Console(stderr=True)
    chosen = recipe.choose_arms(arms)
    _open(recipe, out)
    foundations = foundation_jobs(recipe, out, chosen)
    if missing := [job.name for job in foundations if not job.done.exists()]:
        console.print(f"trained first, for no models of theirs are ready: {', '.join(missing)}", highlight=False)
    run_jobs(foundations, num_parallel, console)
    if recipe.costs and not arms:
        run_jobs([costs_job(recipe, out)], 1, console, num_shares=num_parallel)  # alone, with the cores that a run has
    runs = training_jobs(recipe, out, chosen, num_parallel)
    at_equal_time = equal_time_jobs(recipe, out) if recipe.equal_time is not None and not arms else []
    analyses = [job for run in runs for job in analysis_jobs(run)] if recipe.analyse else []
    tests = [job for run in runs for job in test_jobs(recipe, run)]
    run_jobs([*runs, *at_equal_time, *tests, *analyses], num_parallel, console)  # at once: no core waits
    if all(job.done.exists() for job in [*at_equal_time, *training_jobs(recipe, out, recipe.trained)]):
        shutil.rmtree(out / "cache", ignore_errors=True)
    return out


def run_directory(out: Path, arm: str, seed: int) -> Path:
    """Where the run of an arm with a seed lies."""
    return out / arm / str(seed)


def foundation_jobs(recipe: ComparisonRecipe, out: Path, arms: Sequence[str]) -> list[Job]:
    """One job for each foundation that the seeds of these arms start from; their recipes are written.

    Models that the package carries, or the recipe's directory of ready ones, are copied from there. Models that another
    recipe made are a ValueError.
    """
    if recipe.foundations is None:
        return []
    jobs = []
    for number in sorted({recipe.groups_of_seeds[seed] for arm in arms for seed in recipe.seeds_of(arm)}):
        directory = out / FOUNDATIONS / str(number)
        spec = recipe.foundations.spec.model_copy(update={"seed": number})
        foreign = [name for name in MODELS if (directory / name).exists() and not made_by(directory / name, spec)]
        if foreign:
            raise ValueError(
                f"{directory / foreign[0]} was made by another recipe of foundations; choose another --out"
            )
        _copy_ready(spec, directory, recipe.foundations.ready)
        file = directory.with_suffix(".yaml")
        _write(file, yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False))
        arguments = ("scenes", "foundation", "--recipe", str(file), "--out", str(directory))
        missing = [name for name in MODELS if not made_by(directory / name, spec)]
        done = directory / (missing or MODELS)[-1] / "config.json"  # the one that is trained last
        jobs.append(Job(f"foundation {number}", arguments, done, directory.with_suffix(".log")))
    return jobs


def _copy_ready(spec: FoundationSpec, directory: Path, ready: Path | None) -> None:
    """Copy the models of the package, or of `ready`, that this recipe made and that the directory lacks into it."""
    for name in MODELS:
        places = [Path(resolve_model(name)), *([ready / str(spec.seed) / name] if ready else [])]
        made = [place for place in places if made_by(place, spec)]
        if made and not (directory / name).exists():
            with write_beside(directory / name) as beside:
                shutil.copytree(made[0], beside, dirs_exist_ok=True)


def training_jobs(recipe: ComparisonRecipe, out: Path, arms: Sequence[str], num_parallel: int = 1) -> list[Job]:
    """One job for each arm and seed, the longest first, so that no core is left idle beside one. Writes their recipes.

    Of equal length, as many seeds as run side by side go together, the last ones with what is left over: stopped early,
    it is even, and each of the first jobs makes the cached features of another seed, which nobody waits for.
    """
    starts = range(0, max(len(recipe.seeds) - num_parallel + 1, 1), num_parallel)
    ends = [*starts[1:], len(recipe.seeds)]
    jobs = [
        _training_job(recipe_of_run(recipe, out, arm, seed), run_directory(out, arm, seed), out, f"{arm}-{seed}")
        for start, end in zip(starts, ends, strict=True)
        for arm in arms
        for seed in recipe.seeds[start:end]
        if seed in recipe.seeds_of(arm)
    ]
    return sorted(jobs, key=lambda job: job.num_steps, reverse=True)


def recipe_of_run(recipe: ComparisonRecipe, out: Path, arm: str, seed: int) -> Recipe:
    """The training recipe of a run; all share cached features, those that are the same."""
    number = recipe.foundation_of(seed)
    foundation = None if number is None else out / FOUNDATIONS / str(number)
    overrides = [f"cache_dir={json.dumps(str(out / 'cache'))}"]
    return recipe.recipe_of(arm, seed, foundation, overrides)


def equal_time_jobs(recipe: ComparisonRecipe, out: Path) -> list[Job]:
    """The runs at equal time of the arms that are not there already, seeds outermost."""
    factors = equal_time_factors(recipe, out)
    _write(out / EQUAL_TIME / FACTORS, json.dumps(factors, indent=1) + "\n")
    assert recipe.equal_time is not None
    jobs = []
    for seed in recipe.seeds[: recipe.equal_time.num_seeds]:
        for arm, factor in factors.items():
            if factor != 1 and seed in recipe.seeds_of(arm):
                directory = run_directory(out / EQUAL_TIME, arm, seed)
                changed = scaled(recipe_of_run(recipe, out, arm, seed), factor)
                jobs.append(_training_job(changed, directory, out, f"{EQUAL_TIME}-{arm}-{seed}"))
    return jobs


def equal_time_factors(recipe: ComparisonRecipe, out: Path) -> dict[str, float]:
    """Arm → by how much its steps are multiplied to take the time of the reference; 1 within the tolerance.

    By the steps in the costs, where arms take turns alone on the machine with the cores of a run, as ratios to the arm
    `costs` measures all by: runs beside others tell less, and seconds wander with the machine. Stages that were not
    measured are taken to differ as the measured ones do. Once runs have begun their factors stay.
    """
    if (known := out / EQUAL_TIME / FACTORS).exists():
        return dict(json.loads(known.read_text(encoding="utf-8")))
    settings = recipe.equal_time
    assert settings is not None
    found, tokens = json.loads((out / COSTS).read_text(encoding="utf-8")), str(settings.num_tokens)

    def steps_of(arm: str) -> dict[str, Any]:
        return {stage: cost["seconds_per_step"] for stage, cost in found["costs"][arm][tokens]["train"].items()}

    base = steps_of(found["reference"])

    def stepping_seconds(arm: str) -> float:
        number = {stage.name: stage.steps for stage in recipe.recipe_of(arm, 0).stages}
        ratios = {stage: cost["ratio"]["median"] for stage, cost in steps_of(arm).items()}
        return sum(number[stage] * base[stage]["median"] * ratio for stage, ratio in ratios.items())

    reference = stepping_seconds(settings.reference)
    factors = {arm: round(reference / stepping_seconds(arm), 3) for arm in recipe.trained}
    return {arm: 1.0 if abs(factor - 1) <= settings.tolerance else factor for arm, factor in factors.items()}


def analysis_jobs(run: Job) -> list[Job]:
    """What is measured on a run, once it is done, beside its own metrics."""
    directory = run.done.parent
    asked = load_recipe(run.arguments[1]).evaluation
    assert asked is not None
    similarity = ("similarity", str(directory / "model"), "--seed", str(asked.seed), "--split", asked.split)
    written = directory / SIMILARITY_FILE

    def job(name: str, arguments: tuple[str, ...], done: Path) -> Job:
        return Job(f"{name} of {run.name}", arguments, done, run.log, after=run.done)

    return [
        job("trajectory", ("compare", "trajectory", str(directory)), directory / TRAJECTORY),
        job("similarity", (*similarity, "--out", str(written)), written),
    ]


def test_jobs(recipe: ComparisonRecipe, run: Job) -> list[Job]:
    """A job for each dataset that a run is measured on besides, once done; pictures as its `evaluation` takes them."""
    directory, asked = run.done.parent, load_recipe(run.arguments[1]).evaluation
    outside = ("--allow-outside",) if asked is not None and asked.allow_outside else ()
    jobs = []
    for name, dataset in recipe.tests.items():
        out = tests_directory(directory, name)
        arguments = ("evaluate", str(directory / "model"), "--benchmark", str(dataset), "--out", str(out), *outside)
        jobs.append(Job(f"{name} of {run.name}", arguments, out / "metrics.json", run.log, after=run.done))
    return jobs


def tests_directory(run: Path, name: str) -> Path:
    """Where lies what a run was measured on besides."""
    return run / "tests" / name


def costs_job(recipe: ComparisonRecipe, out: Path) -> Job:
    """Measure what the arms cost."""
    tokens = [argument for number in recipe.costs for argument in ("--tokens", str(number))]
    number = recipe.foundation_of(recipe.first_seed)
    foundation = [] if number is None else ["--foundation", str(out / FOUNDATIONS / str(number))]
    done = out / COSTS
    arguments = ("compare", "costs", str(out / f"{recipe.name}.yaml"), "--out", str(done), *tokens, *foundation)
    arguments += ("--repetitions", str(recipe.cost_repetitions))
    return Job("costs", arguments, done, out / "logs" / "costs.log")


def _training_job(recipe: Recipe, directory: Path, out: Path, name: str) -> Job:
    file, text, known = out / "recipes" / f"{name}.yaml", dump_recipe(recipe), directory / "recipe.yaml"
    if known.exists() and not is_recipe_of(known, recipe):
        raise ValueError(
            f"{known} is of another recipe than this comparison's: choose another --out, or remove {directory} and let "
            "it train again"
        )
    _write(file, text)
    return Job(
        name=name.replace("-", " "),
        arguments=("train", str(file), "--out", str(directory), "--resume"),
        done=directory / "report.html",
        log=out / "logs" / f"{name}.log",
        num_steps=sum(stage.steps for stage in recipe.stages),
        steps_log=directory / "log.jsonl",
    )


def _open(recipe: ComparisonRecipe, out: Path) -> None:
    """Write the recipe into the directory, or check that the one there is the same but for its words and its seeds."""
    content = recipe.model_dump(mode="json", exclude={"note", "claims", "page"})
    known, text = out / f"{recipe.name}.yaml", yaml.safe_dump(content, sort_keys=False)
    if known.exists():
        if _but_for_seeds(known.read_text(encoding="utf-8")) != _but_for_seeds(text):
            raise ValueError(f"{known} differs from the recipe given: choose another --out")
        _write(known, text)
    elif out.exists() and any(out.iterdir()) and not _holds_runs(out):
        raise ValueError(f"{out} is not empty and holds no comparison; choose another --out")
    else:
        _write(known, text)


def _but_for_seeds(text: str) -> str:
    return re.sub(r"(?m)^num_seeds: \d+$", "", text)


def _holds_runs(out: Path) -> bool:
    """Whether a directory holds foundations, or recipes that are those of runs, ARM-SEED.yaml, and no others."""
    recipes = out / "recipes"
    if not recipes.is_dir():
        return (out / FOUNDATIONS).is_dir()
    return all(re.search(r"-\d+$", path.stem) for path in recipes.iterdir())


def _write(path: Path, text: str) -> None:
    with write_beside(path) as beside:
        beside.write_text(text, encoding="utf-8")
