"""`agevlm train`, `agevlm report` and `agevlm recipe`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agevlm.cli.options import Overrides, Recipe
from agevlm.cli.show import print_metrics, quiet_transformers


def train(
    recipe: Recipe,
    out: Annotated[Path | None, typer.Option(help="The directory of the run; runs/NAME where none is given.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Annotations of your own for the recipe's data: a COCO instances file.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="The pictures of --data; else they lie beside it.")] = None,
    keep_empty: Annotated[
        bool, typer.Option("--keep-empty", help="Pictures of --data without any instance show none of its categories.")
    ] = False,
    boxes: Annotated[
        bool, typer.Option("--boxes", help="Annotations of --data without a mask have their box for one.")
    ] = False,
    overrides: Overrides = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The seed, in place of the recipe's.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the run in --out was stopped.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Say what would train, and stop; with --data after splitting and probing it."),
    ] = False,
) -> None:
    """Train the stages of a recipe.

    The outcome is evaluated and the report written, as the recipe says. With --data your pictures are split first, to
    train on, to choose settings on, and to test on.
    """
    from agevlm.training.own_data import own_data
    from agevlm.training.recipe_files import resolve_recipe
    from agevlm.training.run import open_processes
    from agevlm.training.run import train as run_recipe

    path = resolve_recipe(recipe)
    quiet_transformers()
    out = out or Path("runs") / path.stem
    own = own_data(data, images, keep_empty, boxes)
    model = run_recipe(path, out, overrides=overrides or (), seed=seed, resume=resume, dry_run=dry_run, own=own)
    if not dry_run and open_processes().is_main_process:
        typer.echo(f"model: {model}")
        if (out / "metrics.md").exists():
            print_metrics(out)
            typer.echo(f"report: {out / 'report.html'}")


def report(
    run: Annotated[Path, typer.Argument(help="The directory of a run.")],
    out: Annotated[
        Path | None, typer.Option(help="The page to write; report.html in the run where none is given.")
    ] = None,
) -> None:
    """Write the report of a run again.

    One HTML page that needs no other file.
    """
    from agevlm.analysis.report import write_report

    typer.echo(write_report(run, out=out))


def show_recipe(recipe: Recipe, overrides: Overrides = None) -> None:
    """Print a recipe, or a comparison, with every default filled in."""
    from agevlm.comparison.recipe import load_comparison
    from agevlm.documents import read_yaml
    from agevlm.training.recipe import dump_recipe, is_comparison, load_recipe
    from agevlm.training.recipe_files import resolve_recipe

    path = resolve_recipe(recipe)
    load = load_comparison if is_comparison(read_yaml(path)) else load_recipe
    typer.echo(dump_recipe(load(path, overrides or ())), nl=False)


def list_recipes() -> None:
    """List the recipes in the package, and what each is for."""
    from agevlm.training.recipe_files import described, packaged_recipes

    recipes = packaged_recipes()
    width = max(map(len, recipes), default=0)
    for name, path in recipes.items():
        typer.echo(f"{name:{width}}  {described(path)}")
