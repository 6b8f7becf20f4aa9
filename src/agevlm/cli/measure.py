"""`agevlm evaluate` and `agevlm look`."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from agevlm.cli.options import Device, DType, Model, OutDir, Seed
from agevlm.cli.show import bars, print_metrics, quiet_transformers

Numbers = Annotated[list[int] | None, typer.Option(min=0, help="Average only these, counted from 0; may be repeated.")]


class Split(StrEnum):
    """Scenes that training never sees."""

    TEST = "test"
    VALIDATION = "validation"


class Parser(StrEnum):
    """Rules for reading answers; see agevlm.evaluation.parsing."""

    FIRST_WORD = "first-word"
    STRICT = "strict"
    ORIGINAL = "original"


def look(
    model: Model,
    image: Annotated[Path, typer.Argument(help="A picture file.")],
    question: Annotated[str, typer.Argument(help="What to ask about it.")],
    out: Annotated[
        Path | None, typer.Option(help="Draw the attention of each object word to this file (.png).")
    ] = None,
    maps: Annotated[Path | None, typer.Option(help="Write the maps as arrays to this file (.npz).")] = None,
    layer: Numbers = None,
    head: Numbers = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 64,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Ask about a picture, see where it looks.

    Prints the answer; draws the attention of each object word of question and answer over the picture.
    """
    from agevlm.analysis import attention, figures
    from agevlm.checkpoints import load_model
    from agevlm.data.images import open_image

    quiet_transformers()
    picture = open_image(image)
    network, processor = load_model(model, device, dtype)
    seen = attention.look(
        network, processor, picture, question, layers=layer, heads=head, max_new_tokens=max_new_tokens
    )
    typer.echo(seen.answer)
    if out is not None:
        typer.echo(f"picture: {figures.save_figure(figures.look_figure(seen, picture), out)}")
    if maps is not None:
        typer.echo(f"maps: {attention.save_maps(seen, maps)}")


def evaluate(
    model: Model,
    benchmark: Annotated[str, typer.Option(help="scenes, or the directory of a dataset in the project's Parquet.")],
    out: OutDir,
    seed: Seed = 0,
    num_images: Annotated[
        int | None, typer.Option(min=1, help="Pictures to ask about; else 600 scenes or all.")
    ] = None,
    split: Annotated[
        Split, typer.Option(help="Which scenes: those of tests, or those for choosing settings.")
    ] = Split.TEST,
    parser: Annotated[Parser, typer.Option(help="How a yes or a no is read from an answer.")] = Parser.FIRST_WORD,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at once; scores do not depend on it.")] = 256,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Measure whether a model hallucinates.

    POPE, counting, colour, relation, localisation of object words and text perplexity, as JSON and as a table.
    """
    from agevlm.evaluation.benchmarks import Settings, evaluate_benchmark

    settings = Settings(
        seed=seed,
        num_images=num_images,
        split=split.value,
        parser=parser.value,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
    )
    quiet_transformers()
    with bars() as progress:
        evaluate_benchmark(model, benchmark, out, settings, progress=progress)
    print_metrics(out)
