"""All runs of a comparison in one directory: foundations first, then every arm with every seed, resumable.

`OUT/foundations/K` hold the foundations, `OUT/ARM/SEED` the runs, each as `agevlm train` leaves it. A run that is there
is not trained again; one that was stopped goes on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import yaml
from rich.console import Console

from agevlm.comparison.jobs import Job, run_jobs
from agevlm.comparison.recipe import ComparisonRecipe
from agevlm.files import write_beside
from agevlm.training.recipe import Recipe, dump_recipe


def compare(
    recipe: ComparisonRecipe,
    out: str | Path,
    *,
    arms: Sequence[str] = (),
    num_parallel: int = 1,
    console: Console | None = None,
) -> Path:
    """Train and measure all runs of a comparison into `out`; with `arms` only those.

    A directory that holds another comparison is a ValueError; so is an arm that the recipe does not have.
    """
    out, console = Path(out), console or Console(stderr=True)
    arms = recipe.choose_arms(arms)
    _open(recipe, out)
    run_jobs(foundation_jobs(recipe, out), num_parallel, console)
    run_jobs(training_jobs(recipe, out, arms), num_parallel, console)
    return out


def run_directory(out: Path, arm: str, seed: int) -> Path:
    """Where the run of an arm with a seed lies."""
    return out / arm / str(seed)


def foundation_jobs(recipe: ComparisonRecipe, out: Path) -> list[Job]:
    """One job for each foundation; their recipes are written."""
    jobs = []
    for number in range(recipe.foundations.num if recipe.foundations else 0):
        assert recipe.foundations is not None
        directory = out / "foundations" / str(number)
        settings = recipe.foundations.spec.model_dump(mode="json") | {"seed": number}
        file = directory.with_suffix(".yaml")
        _write(file, yaml.safe_dump(settings, sort_keys=False))
        arguments = ("scenes", "foundation", "--recipe", str(file), "--out", str(directory))
        done = directory / "tiny-convnext" / "config.json"  # the one that is trained last
        jobs.append(Job(f"foundation {number}", arguments, done, directory.with_suffix(".log")))
    return jobs


def training_jobs(recipe: ComparisonRecipe, out: Path, arms: Sequence[str]) -> list[Job]:
    """One job for each arm and seed, the seeds outermost: stopped early, it is even. Writes their recipes."""
    jobs = []
    for seed in range(max(len(recipe.seeds_of(arm)) for arm in arms)):
        for arm in arms:
            if seed in recipe.seeds_of(arm):
                jobs.append(_training_job(recipe_of_run(recipe, out, arm, seed), out, arm, seed))
    return jobs


def recipe_of_run(recipe: ComparisonRecipe, out: Path, arm: str, seed: int) -> Recipe:
    """The training recipe of a run; runs from one foundation with one seed share their cached features."""
    number = seed % recipe.foundations.num if recipe.foundations else None
    foundation = None if number is None else out / "foundations" / str(number)
    overrides = [f"cache_dir={json.dumps(str(out / 'cache' / str(seed)))}"]
    return recipe.recipe_of(arm, seed, foundation, overrides)


def _training_job(recipe: Recipe, out: Path, arm: str, seed: int) -> Job:
    directory = run_directory(out, arm, seed)
    file = out / "recipes" / f"{arm}-{seed}.yaml"
    _write(file, dump_recipe(recipe))
    return Job(
        name=f"{arm} {seed}",
        arguments=("train", str(file), "--out", str(directory), "--resume"),
        done=directory / "report.html",
        log=out / "logs" / f"{arm}-{seed}.log",
        num_steps=sum(stage.steps for stage in recipe.stages),
        steps_log=directory / "log.jsonl",
    )


def _open(recipe: ComparisonRecipe, out: Path) -> None:
    """Write the recipe into the directory, or check that the one there is the same."""
    known, text = out / "comparison.yaml", yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
    if known.exists():
        if known.read_text(encoding="utf-8") != text:
            raise ValueError(f"{known} differs from the recipe given: choose another --out")
    elif out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty and holds no comparison; choose another --out")
    else:
        _write(known, text)


def _write(path: Path, text: str) -> None:
    with write_beside(path) as beside:
        beside.write_text(text, encoding="utf-8")
