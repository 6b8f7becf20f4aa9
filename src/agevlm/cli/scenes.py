"""`agevlm scenes`: the embedded world."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from agevlm.cli.options import OutDir, Seed

CoOccurrence = Annotated[
    float, typer.Option(min=0, max=1, help="How often things come with their partners: 0 never more than by chance.")
]
ImageSize = Annotated[int, typer.Option(min=96, help="Height and width in pixels.")]


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
) -> None:
    """Export scenes as COCO or Parquet.

    For other tools, or as a dataset to train and evaluate on.
    """
    raise NotImplementedError


def foundation(out: OutDir, seed: Seed = 0) -> None:
    """Make tiny-convnext and tiny-llama again.

    The vision and the language model of the embedded world, from nothing.
    """
    raise NotImplementedError
