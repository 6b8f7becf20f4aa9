"""`agevlm scenes`: the embedded world."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from agevlm.cli.options import OutDir, Seed
from agevlm.cli.show import quiet_transformers

CoOccurrence = Annotated[
    float, typer.Option(min=0, max=1, help="How often things come with their partners: 0 never more than by chance.")
]
ImageSize = Annotated[int, typer.Option(min=96, help="Height and width in pixels.")]
SettingsFile = Annotated[
    Path | None, typer.Option(help="A YAML file of settings; those of the package where none is given.")
]
OwnSeed = Annotated[int | None, typer.Option(min=0, help="The seed, in place of the recipe's.")]


class Format(StrEnum):
    """File formats that a world is exported in."""

    COCO = "coco"
    PARQUET = "parquet"


def draw(
    out: OutDir,
    num: Annotated[int, typer.Option(min=1, help="How many scenes.")] = 9,
    seed: Seed = 0,
    co_occurrence: CoOccurrence = 0.8,
    image_size: ImageSize = 96,
) -> None:
    """Draw scenes as PNG files, to look at."""
    from agevlm.data.scenes import WorldSpec, draw_scene, scene_png
    from agevlm.files import write_beside

    spec = WorldSpec(co_occurrence=co_occurrence, image_size=image_size)
    for index in range(num):
        with write_beside(out / f"scene-{seed}-{index:05d}.png") as beside:
            beside.write_bytes(scene_png(draw_scene(spec, seed, index)))
    typer.echo(f"{num} scenes: {out}")


def export(
    out: OutDir,
    num: Annotated[int, typer.Option(min=1, help="How many scenes.")] = 1000,
    format: Annotated[
        Format, typer.Option(help="coco (instances.json and pictures) or parquet (with text).")
    ] = Format.COCO,
    seed: Seed = 0,
    co_occurrence: CoOccurrence = 0.8,
    image_size: ImageSize = 96,
    num_per_image: Annotated[
        int, typer.Option(min=0, help="Of parquet, conversations on each picture beside POPE's questions.")
    ] = 6,
) -> None:
    """Export scenes as COCO or Parquet.

    For other tools, or as a dataset to train and evaluate on.
    """
    from agevlm.data.scenes import WorldSpec
    from agevlm.data.scenes.export import export_coco, export_parquet

    spec = WorldSpec(co_occurrence=co_occurrence, image_size=image_size)
    if format is Format.COCO:
        typer.echo(f"{num} scenes: {export_coco(out, spec, seed, num)}")
    else:
        summary = export_parquet(out, spec, seed, num, num_per_image)
        typer.echo(f"{num} scenes with {summary.num_conversations} conversations: {out}")


def foundation(out: OutDir, recipe: SettingsFile = None, seed: OwnSeed = None) -> None:
    """Make tiny-convnext and tiny-llama again.

    The vision and the language model of the embedded world, from nothing, in about half an hour on
    one core. Stopped, it goes on with the model that it was at.
    """
    from agevlm.training.foundation import FoundationSpec, console_progress, train_foundation

    quiet_transformers()
    train_foundation(out, FoundationSpec.model_validate(_settings(recipe, seed)), console_progress())
    typer.echo(f"models: {out / 'tiny-convnext'} {out / 'tiny-llama'}")


def teachers(out: OutDir, recipe: SettingsFile = None, seed: OwnSeed = None) -> None:
    """Make teachers for the embedded world.

    A small Grounding DINO and a small SAM, in the formats of the large ones: agevlm ground reads them.
    """
    from agevlm.training.foundation import console_progress
    from agevlm.training.teachers import TeacherSpec, train_teachers

    quiet_transformers()
    train_teachers(out, TeacherSpec.model_validate(_settings(recipe, seed)), console_progress())
    typer.echo(f"teachers: {out / 'grounding-dino'} {out / 'sam'}")


def _settings(recipe: Path | None, seed: int | None) -> dict[str, Any]:
    """What a file of settings holds, with another seed where one is given."""
    from agevlm.documents import read_yaml

    content = read_yaml(recipe) if recipe is not None else {}
    if not isinstance(content, dict):
        raise ValueError(f"{recipe} holds {type(content).__name__}, and a mapping of settings was expected")
    return content if seed is None else {**content, "seed": seed}
