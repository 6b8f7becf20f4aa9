"""Options that several verbs share, each with its one line of help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Argument(help="A model: tiny, photos, a directory, or a hub id.")]
Recipe = Annotated[str, typer.Argument(help="A recipe: a YAML file, or the name of one in the package.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe; may be repeated.")
]
OutDir = Annotated[Path, typer.Option("--out", help="The directory to write.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
DType = Annotated[str, typer.Option("--dtype", help="auto, float32, bfloat16 or float16.")]
EmbedImages = Annotated[bool, typer.Option(help="Hold the pictures, or the paths of their files.")]
Seed = Annotated[int, typer.Option(min=0, help="The seed of every draw.")]
AllowOutside = Annotated[
    bool, typer.Option("--allow-outside", help="Take pictures from outside their directory, where the data name such.")
]
