"""`agevlm compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agevlm.cli.options import Overrides, Recipe
from agevlm.cli.show import quiet_transformers


def compare(
    recipe: Recipe,
    out: Annotated[Path | None, typer.Option(help="The directory of all runs; runs/NAME where none is given.")] = None,
    arms: Annotated[list[str] | None, typer.Option("--arm", help="Train only this arm; may be repeated.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side; the cores are shared among them.")] = 1,
    overrides: Overrides = None,
    quick: Annotated[bool, typer.Option("--quick", help="At the smaller size that the recipe names.")] = False,
    json: Annotated[
        Path | None, typer.Option(help="Where the figures go; NAME.json in --out where none is given.")
    ] = None,
) -> None:
    """Train several arms over several seeds and compare them.

    Each arm starts from the same foundations and reads the same data in the same order. Stopped, it goes on with the
    same command. Figures, paired differences and their intervals are written as JSON.
    """
    from agevlm.comparison.recipe import load_comparison
    from agevlm.comparison.run import compare as run_comparison
    from agevlm.comparison.summary import summarise, write_summary
    from agevlm.training.recipe_files import resolve_recipe

    path = resolve_recipe(recipe)
    quiet_transformers()
    loaded = load_comparison(path, overrides or (), quick=quick)
    out = run_comparison(loaded, out or Path("runs") / path.stem, arms=arms or (), num_parallel=jobs)
    json = json or out / f"{loaded.name}.json"
    write_summary(summarise(loaded, out), json)
    typer.echo(f"figures: {json}")
