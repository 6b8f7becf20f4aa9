"""`agevlm data`: datasets of real photographs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agevlm.cli.options import AllowOutside, EmbedImages, OutDir, Seed
from agevlm.cli.show import print_table

if TYPE_CHECKING:
    from agevlm.data.formats.report import Report
    from agevlm.data.parquet import Summary


def coco(
    instances: Annotated[Path, typer.Option(help="COCO annotations: an instances_*.json file.")],
    images: Annotated[Path, typer.Option(help="The directory of the pictures that it names.")],
    out: OutDir,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave out pictures and masks that are broken, and count them.")
    ] = False,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out pictures that are not in --images, and count them.")
    ] = False,
    allow_outside: AllowOutside = False,
    keep_empty: Annotated[
        bool, typer.Option("--keep-empty", help="Pictures without any instance show none of the categories.")
    ] = False,
    boxes: Annotated[bool, typer.Option("--boxes", help="Annotations without a mask have their box for one.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Take only the first so many pictures.")] = None,
    num_per_image: Annotated[int, typer.Option(min=0, help="Captions and questions on each picture.")] = 6,
    pope_per_image: Annotated[int, typer.Option(min=0, help="Categories that POPE asks for on each picture.")] = 3,
    seed: Seed = 0,
) -> None:
    """Turn COCO instances into a dataset.

    Captions, questions and POPE questions, each object word with its masks.
    """
    from agevlm.data.formats.coco import CocoOptions, convert_coco
    from agevlm.data.parquet import OWN_FILE
    from agevlm.files import check_replaceable

    options = CocoOptions(
        seed=seed,
        num_per_image=num_per_image,
        pope_per_image=pope_per_image,
        limit=limit,
        skip_missing=skip_missing,
        skip_broken=skip_broken,
        allow_outside=allow_outside,
        keep_empty=keep_empty,
        boxes=boxes,
    )
    check_replaceable(out, *OWN_FILE)
    report, summary = convert_coco(instances, images, out, options)
    _print_outcome(out, report, summary)


class Source(StrEnum):
    """How others store pictures with text; see agevlm.data.formats.dialogues."""

    LLAVA = "llava"
    MESSAGES = "messages"
    CAPTIONS = "captions"
    FOLDER = "folder"


def convert(
    source: Annotated[
        str,
        typer.Argument(
            metavar="<path or hub:user/name>", help="A file, for folder a directory, or a dataset of the hub."
        ),
    ],
    format: Annotated[
        Source,
        typer.Option("--from", help="llava (JSON), messages (of chat templates), captions (of COCO), or a folder."),
    ],
    out: OutDir,
    images: Annotated[
        Path | None, typer.Option(help="Where names of pictures start from; beside SOURCE if not given.")
    ] = None,
    config: Annotated[str | None, typer.Option(help="Of a dataset of the hub: its configuration.")] = None,
    split: Annotated[str | None, typer.Option(help="Of a dataset of the hub: its split; train if not given.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Take only the first so many samples.")] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out samples whose pictures are not there, and count them.")
    ] = False,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave out samples that are broken, and count them.")
    ] = False,
    allow_outside: AllowOutside = False,
    embed_images: EmbedImages = True,
) -> None:
    """Turn pictures with text into a dataset.

    Its phrases have no masks yet: agevlm ground finds them. A dataset of the hub is streamed, no further than --limit
    asks; it needs the extra `hub`: pip install 'agevlm[hub]'.
    """
    from agevlm.data.formats.dialogues import DialogueOptions, convert_dialogues
    from agevlm.data.formats.hub import PREFIX, HubDataset
    from agevlm.data.parquet import OWN_FILE
    from agevlm.files import check_replaceable

    check_replaceable(out, *OWN_FILE)
    options = DialogueOptions(limit, skip_missing, skip_broken, embed_images, allow_outside)
    on_hub = source.startswith(PREFIX)
    if not on_hub and (config or split):
        raise ValueError(f"--config and --split are of datasets of the hub: write {PREFIX}user/name for {source}")
    opened = HubDataset(source.removeprefix(PREFIX), config, split or "train") if on_hub else Path(source)
    report, summary = convert_dialogues(format.value, opened, images, out, options)
    _print_outcome(out, report, summary)


def refer(
    refs: Annotated[Path, typer.Argument(help="The referring expressions: a refs(...).p, or the same as JSON.")],
    instances: Annotated[Path, typer.Option(help="The COCO instances that they refer to.")],
    images: Annotated[Path, typer.Option(help="The directory of the pictures.")],
    out: OutDir,
    split: Annotated[str | None, typer.Option(help="Only those of this split: train, val, testA, ...")] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out pictures that are not there, and count them.")
    ] = False,
    skip_broken: Annotated[
        bool, typer.Option("--skip-broken", help="Leave out expressions that are broken, and count them.")
    ] = False,
    allow_outside: AllowOutside = False,
    embed_images: EmbedImages = True,
) -> None:
    """Turn referring expressions into a dataset.

    RefCOCO, RefCOCO+ and RefCOCOg: each expression with the mask of what it means.
    """
    from agevlm.data.formats.refer import convert_refer
    from agevlm.data.parquet import OWN_FILE
    from agevlm.files import check_replaceable

    check_replaceable(out, *OWN_FILE)
    allowed = {"skip_missing": skip_missing, "skip_broken": skip_broken, "allow_outside": allow_outside}
    report, summary = convert_refer(refs, instances, images, out, split=split, **allowed, embed_images=embed_images)
    _print_outcome(out, report, summary)


def export(
    directory: Annotated[Path, typer.Argument(help="The directory of a dataset.")],
    out: OutDir,
    allow_outside: AllowOutside = False,
) -> None:
    """Write a dataset's masks as COCO.

    Pictures and instances.json with RLEs: the annotated instances, or where there are none the masks of phrases.
    """
    from agevlm.data.formats.coco_export import export_coco
    from agevlm.data.parquet import read_parquet

    typer.echo(f"masks: {export_coco(out, read_parquet(directory, allow_outside=allow_outside))}")


def agree(
    found: Annotated[Path, typer.Argument(help="The directory of a dataset that a teacher has grounded.")],
    truth: Annotated[Path, typer.Argument(help="That of the same conversations, with groundings to measure it by.")],
    out: Annotated[Path | None, typer.Option(help="Write the figures to this file (.json).")] = None,
) -> None:
    """Measure a teacher by the truth.

    The IoU of its masks, and how often it is wrong about what is there.
    """
    import json

    from agevlm.evaluation.agreement import compare_groundings
    from agevlm.files import write_beside

    agreement = compare_groundings(found, truth)
    rows = [(name, f"{e.mean:.3f}", f"{e.low:.3f} to {e.high:.3f}") for name, e in agreement.figures.items()]
    print_table(("figure", "mean", "95 % interval"), rows)
    typer.echo(f"{agreement.num_phrases} phrases of {agreement.num_samples} samples, {agreement.num_present} present")
    if out is not None:
        with write_beside(out) as beside:
            beside.write_text(json.dumps(agreement.record(), indent=1) + "\n", "utf-8")


def inspect(
    directory: Annotated[Path, typer.Argument(help="The directory of a dataset.")],
    figure: Annotated[
        Path | None, typer.Option(help="Draw samples with their masks and phrases to this file (.png).")
    ] = None,
    num: Annotated[int, typer.Option(min=1, help="How many samples to draw, spread over the dataset.")] = 6,
    decode: Annotated[bool, typer.Option(help="Read every picture as well.")] = True,
    allow_outside: AllowOutside = False,
) -> None:
    """Look at a dataset, and check it.

    Counts what it holds, names what is wrong (spans, masks, ids, empty conversations, pictures), and ends with 1 if
    anything is.
    """
    from agevlm.data.check import check_dataset
    from agevlm.data.parquet import read_parquet

    dataset = read_parquet(directory, allow_outside=allow_outside)
    summary = dataset.summary
    counts = ("samples", "images", "instances", "conversations", "groundings")
    print_table(("what", "number"), [(name, getattr(summary, f"num_{name}")) for name in counts])
    print_table(("kind of conversation", "number"), summary.kinds.items())
    typer.echo(f"categories: {', '.join(summary.vocabulary) or '–'}")
    faults = check_dataset(directory, decode=decode, allow_outside=allow_outside)
    if faults.counts:
        print_table(("what is wrong", "times", "first in"), faults.rows())
    else:
        typer.echo("nothing is wrong")
    if figure is not None:
        from agevlm.analysis.figures import save_figure
        from agevlm.analysis.samples import samples_figure

        num = min(num, len(dataset))
        drawn = [dataset[number * len(dataset) // num].sample for number in range(num)]
        typer.echo(f"samples: {save_figure(samples_figure(drawn), figure)}")
    if faults.counts:
        raise typer.Exit(1)


def _print_outcome(out: Path, report: Report, summary: Summary) -> None:
    """What became of a source, and what the dataset made of it holds."""
    print_table(("", "what", "number"), report.rows())
    typer.echo(f"{out}: {summary.num_samples} samples, {summary.num_conversations} conversations")
