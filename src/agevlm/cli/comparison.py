"""`agevlm compare run`, `costs`, `page` and `trajectory`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agevlm.cli.options import Overrides, Recipe
from agevlm.cli.show import bars, print_table, quiet_transformers

if TYPE_CHECKING:
    from agevlm.comparison.recipe import ComparisonRecipe


def run(
    recipe: Recipe,
    out: Annotated[Path | None, typer.Option(help="The directory of all runs; runs/NAME where none is given.")] = None,
    arms: Annotated[list[str] | None, typer.Option("--arm", help="Train only this arm; may be repeated.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side; cores and GPUs are shared among them.")] = 1,
    overrides: Overrides = None,
    quick: Annotated[bool, typer.Option("--quick", help="At the smaller size that the recipe names.")] = False,
    json: Annotated[
        Path | None, typer.Option(help="Write the figures here too; they go to NAME.json in --out.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would train, and stop.")] = False,
) -> None:
    """Train several arms over several seeds and compare them.

    Each arm starts from the same foundations and reads the same data in the same order. Stopped, it goes on with the
    same command. Figures, paired differences and their intervals are written as JSON, and a page of them as index.html.
    """
    from agevlm.comparison.figures_file import write_figures
    from agevlm.comparison.page import draw_attention, write_index
    from agevlm.comparison.recipe import load_comparison
    from agevlm.comparison.run import compare
    from agevlm.comparison.summary import summarise
    from agevlm.training.recipe_files import resolve_recipe

    path = resolve_recipe(recipe)
    quiet_transformers()
    loaded = load_comparison(path, overrides or (), quick=quick)
    if dry_run:
        print_table(("arm", "what it is"), _plan(loaded, arms or ()))
        return
    out = compare(loaded, out or Path("runs") / path.stem, arms=arms or (), num_parallel=jobs)
    summary = summarise(loaded, out)
    for path in (out / f"{loaded.name}.json", *([json] if json else [])):
        write_figures(summary, path)
        typer.echo(f"figures: {path}")
    draw_attention(summary, out)
    typer.echo(f"report: {write_index(out)}")


def _plan(recipe: ComparisonRecipe, arms: Sequence[str]) -> list[list[object]]:
    """A row for each arm that would be trained. In words: columns of all that is said do not fit a terminal."""
    from agevlm.comparison.sections import DESCRIBED, described

    rows: list[list[object]] = []
    for arm in recipe.choose_arms(arms):
        of_arm = recipe.seeds_of(arm)
        seeds = f"{of_arm[0]} to {of_arm[-1]}" if len(of_arm) > 1 else str(of_arm[0])
        facts = zip(("seeds", *DESCRIBED), (seeds, *described(recipe.describe(arm))), strict=True)
        rows.append([arm, "; ".join(f"{name} {value}" for name, value in facts)])
    return rows


def page(
    figures: Annotated[
        list[Path], typer.Argument(help="Files of figures, as `compare run` writes them: the comparison, its studies.")
    ],
    out: Annotated[Path, typer.Option(help="The summary to write (.md); pages and plots go into a directory beside.")],
    attention: Annotated[
        Path | None, typer.Option(help="The attention.png of the comparison's directory; else the one that is there.")
    ] = None,
    log: Annotated[Path | None, typer.Option(help="A page of reasons and of what did not work, to link.")] = None,
) -> None:
    """Write the pages of a comparison from its figures.

    A summary, and pages of all tables and plots behind it. Trains nothing and loads no model.
    """
    from agevlm.comparison.page import load_figures, write_page

    typer.echo(f"page: {write_page(load_figures(figures, attention, log), out)}")


def costs(
    recipe: Recipe,
    out: Annotated[Path, typer.Option(help="The file to write (.json).")],
    arms: Annotated[list[str] | None, typer.Option("--arm", help="Measure only this arm; may be repeated.")] = None,
    tokens: Annotated[
        list[int] | None, typer.Option(min=1, help="Image tokens: 144, 576 and 1024 if not given; may be repeated.")
    ] = None,
    repetitions: Annotated[int, typer.Option(min=1, help="Turns of each arm; a turn is two steps, five answers.")] = 8,
    foundation: Annotated[
        Path | None, typer.Option(help="Join the networks from this foundation directory of a comparison.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Measure what each arm of a comparison costs.

    Time of a training step, time to the first token of an answer, and memory, at several numbers of image tokens. Arms
    take turns in one run; nothing trained is needed.
    """
    from agevlm.comparison.costs import TOKENS, cost_tables, measure_costs
    from agevlm.comparison.figures_file import write_figures
    from agevlm.comparison.recipe import load_comparison
    from agevlm.training.recipe_files import resolve_recipe

    loaded = load_comparison(resolve_recipe(recipe), overrides or ())
    quiet_transformers()
    with bars() as progress:
        measured = measure_costs(
            loaded,
            arms=arms or (),
            tokens=tokens or TOKENS,
            repetitions=repetitions,
            foundation=foundation,
            progress=progress,
        )
    write_figures(measured, out)
    for headings, rows in cost_tables(measured):
        print_table(headings, rows)
    typer.echo(f"costs: {out}")


def trajectory(
    run: Annotated[Path, typer.Argument(help="The directory of a run.")],
    num_images: Annotated[int, typer.Option(min=1, help="Pictures to ask about.")] = 100,
) -> None:
    """Measure a run along its training.

    POPE, pointing and text perplexity at each snapshot and at the end of each stage, into trajectory.json.
    """
    from agevlm.training.trajectory import trajectory as measure_along

    quiet_transformers()
    with bars() as progress:
        points = measure_along(run, num_images=num_images, progress=lambda done, total: progress("models", done, total))
    print_table(
        ("stage", "step", "seconds", "random", "adversarial", "yes", "pointing", "perplexity"),
        [(p["stage"], p["step"], p["seconds"], *(_figure(p["metrics"], name) for name in _ALONG)) for p in points],
    )
    typer.echo(f"trajectory: {run / 'trajectory.json'}")


_ALONG = (
    "pope.random.accuracy",
    "pope.adversarial.accuracy",
    "pope.adversarial.yes_ratio",
    "pointing.accuracy",
    "text_perplexity",
)


def _figure(metrics: Any, name: str) -> float | None:
    for key in name.split("."):
        metrics = metrics.get(key, {})
    return metrics if isinstance(metrics, float) else None
