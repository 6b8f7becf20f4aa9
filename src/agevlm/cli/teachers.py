"""`agevlm ground`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from agevlm.cli.options import AllowOutside, Device, EmbedImages, OutDir
from agevlm.cli.show import bars, print_table, quiet_transformers


def ground(
    dataset: Annotated[Path, typer.Argument(help="The directory of a dataset.")],
    out: OutDir,
    teacher: Annotated[
        str, typer.Option(help="grounded-sam, sam2, sam3, annotations, annotations+sam or scenes.")
    ] = "grounded-sam",
    detector: Annotated[
        str, typer.Option(help="Of grounded-sam and sam2, what finds the boxes: grounding-dino or owlv2.")
    ] = "grounding-dino",
    detector_weights: Annotated[str | None, typer.Option(help="Its weights: a directory or a hub id.")] = None,
    segmenter_weights: Annotated[
        str | None, typer.Option(help="The weights of SAM, SAM 2 or SAM 3: a directory or a hub id.")
    ] = None,
    vocabulary: Annotated[
        str | None,
        typer.Option(help="What to look for: coco, a file of names, or spacy:PIPELINE; else the dataset's categories."),
    ] = None,
    present: Annotated[
        float | None, typer.Option(min=0, max=1, help="The score from which a phrase is there; else the teacher's own.")
    ] = None,
    absent: Annotated[
        float | None, typer.Option(min=0, max=1, help="The score below which it surely is not; between, unknown.")
    ] = None,
    max_area_ratio: Annotated[
        float | None, typer.Option(min=0, max=1, help="A mask of more of the picture counts as unknown.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures before the teacher at once.")] = 8,
    samples_per_shard: Annotated[int, typer.Option(min=1, help="What is done at once, and lost by a stop.")] = 512,
    num_workers: Annotated[int, typer.Option(min=0, help="Processes that decode pictures.")] = 0,
    embed_images: EmbedImages = True,
    allow_outside: AllowOutside = False,
    ray_workers: Annotated[
        int,
        typer.Option(
            min=0, help="Ground by this many workers of the Ray cluster of RAY_ADDRESS, else of this machine."
        ),
    ] = 0,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Let a teacher find the phrases of a dataset.

    Writes the dataset again with a mask for each phrase that was found. Stopped, it goes on with the same command;
    accelerate launch spreads it over several GPUs, Ray over several machines.
    """
    from agevlm.teachers.ground import GroundOptions
    from agevlm.teachers.launch import Task
    from agevlm.teachers.launch import ground as run
    from agevlm.teachers.on_ray import ground_on_ray
    from agevlm.teachers.registry import TeacherOptions
    from agevlm.teachers.stopwatch import Stopwatch

    quiet_transformers()
    told = TeacherOptions(detector, detector_weights, segmenter_weights, dtype, device, present, absent, max_area_ratio)
    options = GroundOptions(batch_size, samples_per_shard, num_workers, embed_images, allow_outside)
    task, stopwatch = Task(dataset, out, teacher, told, options, vocabulary), Stopwatch()
    with bars() as progress:
        show = partial(progress, "samples")
        outcome = ground_on_ray(task, ray_workers, stopwatch, show) if ray_workers else run(task, stopwatch, show)
    if outcome is None:
        return
    summary, counts = outcome
    print_table(("what", "number", "first"), counts.rows())
    print_table(("step", "number", "seconds", "a second"), stopwatch.rows())
    typer.echo(f"{out}: {summary.num_samples} samples, {summary.num_groundings} groundings")
