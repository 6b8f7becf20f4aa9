"""`agevlm plan`: what a recipe would take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agevlm.cli.options import Overrides, Recipe
from agevlm.cli.show import print_table, quiet_transformers

if TYPE_CHECKING:
    from agevlm.training.plan import Gpu, MemoryPlan, Plan


def plan(
    recipe: Recipe,
    gpu: Annotated[
        str, typer.Option(help="The GPU by name, in any case: h100, h200, a100-80gb, rtx4090, ...")
    ] = "h100",
    num_gpus: Annotated[int, typer.Option(min=1, help="How many of them share each batch.")] = 1,
    mfu: Annotated[
        float, typer.Option(min=0.01, max=1, help="The share of a GPU's peak that training reaches: an assumption.")
    ] = 0.4,
    text_len: Annotated[
        int | None, typer.Option(min=8, help="Tokens of a row of text; else what the recipe expects of its data.")
    ] = None,
    overrides: Overrides = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the plan to this file as well.")] = None,
) -> None:
    """Say what a recipe would take, before it is paid for.

    Parameters, operations, memory of a GPU, hours and disk. Needs no weights, no data and no GPU. What fits leaves a
    tenth of the GPU's memory free; what is tight does not.
    """
    import json

    from agevlm.files import write_beside
    from agevlm.training.plan import Machine, find_gpu, plan_run
    from agevlm.training.recipe import load_recipe
    from agevlm.training.recipe_files import resolve_recipe

    quiet_transformers()
    machine = Machine(find_gpu(gpu), num_gpus, mfu)
    found = plan_run(load_recipe(resolve_recipe(recipe), overrides or ()), machine, text_len)
    _print_plan(found)
    if json_file is not None:
        with write_beside(json_file) as beside:
            beside.write_text(json.dumps(found.record(), indent=1) + "\n", "utf-8")
        typer.echo(f"plan: {json_file}")


def _print_plan(plan: Plan) -> None:
    names = [stage.name for stage in plan.stages]
    modules = list(plan.stages[0].modules)
    rows = [
        (module, _number(max(s.modules[module]["parameters"] for s in plan.stages)), *_trainable(plan, module))
        for module in modules
    ]
    whole = ("all", _number(max(s.parameters for s in plan.stages)), *(_number(s.trainable) for s in plan.stages))
    print_table(("parameters", "all", *names), [*rows, whole])
    typer.echo("parameters in all, and those that train in each stage")
    print_table(
        ("stage", "steps", "rows × tokens", "FLOPs a step", "text tokens", "image tokens", "hours"),
        [
            (
                s.name,
                s.steps,
                f"{s.shape.num_rows} × {s.shape.text_len}",
                _number(s.flops_per_step),
                _number(s.text_tokens),
                _number(s.image_tokens),
                _hours(s.hours),
            )
            for s in plan.stages
        ],
    )
    parts = _MEMORY if plan.machine.num_gpus > 1 else _MEMORY[:-1]
    for way in plan.stages[0].memory:
        print_table(
            (f"memory ({way.upper()})" if plan.machine.num_gpus > 1 else "memory", *parts, "total", "fits"),
            [(s.name, *_memory(s.memory[way], parts, plan.machine.gpu)) for s in plan.stages],
        )
    typer.echo(f"fits: yes where a tenth of {_bytes(plan.machine.gpu.memory_bytes)} stays free, tight where less does")
    _print_totals(plan)


_MEMORY = ("weights", "gradients", "optimiser", "activations", "gathered")


def _memory(memory: MemoryPlan, parts: Sequence[str], gpu: Gpu) -> list[str]:
    sizes = [_bytes(getattr(memory, name)) for name in parts]
    return [*sizes, _bytes(memory.total), gpu.fit(memory.total)]


def _trainable(plan: Plan, module: str) -> Iterator[str]:
    for stage in plan.stages:
        number = stage.modules[module]["trainable"]
        yield _number(number) if number else "–"


def _print_totals(plan: Plan) -> None:
    gpu, features = plan.machine.gpu, plan.features
    typer.echo(
        f"{_hours(plan.hours)} hours on {plan.machine.num_gpus} × {gpu.name} ({_bytes(gpu.memory_bytes)}, "
        f"{_number(plan.peak)}FLOP/s) in {plan.dtype}, evaluation aside"
    )
    typer.echo(
        f"{_bytes(plan.disk_bytes)} of disk: {plan.num_checkpoints} checkpoints of {_bytes(plan.checkpoint_bytes)}, "
        "one of a stage in progress and the next"
    )
    if features is not None:
        number = (
            "pictures whose number is not known" if features.num_images is None else f"{features.num_images} pictures"
        )
        cached = (
            "" if features.num_images is None else f", {_bytes(features.num_images * features.bytes_per_image)} in all"
        )
        typer.echo(f"features of {number}: {_bytes(features.bytes_per_image)} each{cached}")
    for note in plan.assumed:
        typer.echo(f"assumed: {note}")


def _number(value: float) -> str:
    """A count in three digits: 1.24 G."""
    return _in_units(value, ("", "k", "M", "G", "T", "P", "E"))


def _bytes(value: float) -> str:
    """Bytes in units of 1000, as disks and data sheets count."""
    return _in_units(value, ("B", "kB", "MB", "GB", "TB", "PB")) if value else "–"


def _in_units(value: float, units: Sequence[str]) -> str:
    number = 0
    while value >= 999.5 and number < len(units) - 1:
        value, number = value / 1000, number + 1
    return f"{value:.3g} {units[number]}".strip()


def _hours(value: float) -> str:
    if value < 0.005:
        return "under 0.01"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
