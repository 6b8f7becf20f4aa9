"""`agevlm evaluate`, `agevlm diagnose`, `agevlm similarity` and `agevlm look`."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agevlm.cli.options import AllowOutside, Device, DType, Model, OutDir, Seed
from agevlm.cli.show import bars, print_metrics, print_official, print_similarity, quiet_transformers

if TYPE_CHECKING:
    from agevlm.analysis.attention import Look

Layers = Annotated[
    list[int] | None,
    typer.Option(min=0, help="Average only these, numbered among all layers, as diagnose does; may be repeated."),
]
Heads = Annotated[list[int] | None, typer.Option(min=0, help="Average only these, counted from 0; may be repeated.")]


class Split(StrEnum):
    """Scenes that training never sees."""

    TEST = "test"
    VALIDATION = "validation"


WhichScenes = Annotated[Split, typer.Option(help="Which scenes: those of tests, or those for choosing settings.")]


class Parser(StrEnum):
    """Rules for reading answers; see agevlm.evaluation.parsing."""

    FIRST_WORD = "first-word"
    STRICT = "strict"
    ORIGINAL = "original"


class Answering(StrEnum):
    """Ways to answer; see agevlm.vlms.ways."""

    PLAIN = "plain"
    VCD = "vcd"
    PAI = "pai"
    VICROP = "vicrop"
    MASK = "mask"


def look(
    model: Model,
    image: Annotated[Path, typer.Argument(help="A picture file.")],
    question: Annotated[str, typer.Argument(help="What to ask about it.")],
    out: Annotated[
        Path | None, typer.Option(help="Draw the attention of each object word to this file (.png).")
    ] = None,
    maps: Annotated[Path | None, typer.Option(help="Write the maps as arrays to this file (.npz).")] = None,
    layer: Layers = None,
    head: Heads = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 64,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Ask about a picture, see where it looks.

    Any vision-language model of transformers. Prints the answer; draws the attention of each object word of question
    and answer over the picture.
    """
    from agevlm.analysis.attention import save_maps
    from agevlm.api import look as look_at

    quiet_transformers()
    seen = look_at(
        model,
        image,
        question,
        out=out,
        device=device,
        dtype=dtype,
        layers=layer,
        heads=head,
        max_new_tokens=max_new_tokens,
    )
    typer.echo(seen.answer)
    _print_unlearned(model, seen)
    if seen.note is not None:
        typer.echo(f"maps are made by occlusion: {seen.note}", err=True)
    if out is not None:
        typer.echo(f"picture: {out}")
    if maps is not None:
        typer.echo(f"maps: {save_maps(seen, maps)}")


def _print_unlearned(model: str, seen: Look) -> None:
    """A line for each word, and for a kind of question, that a model did not learn; else that it may be wrong."""
    from agevlm.analysis.learned import question_notice, unlearned_notice

    known = seen.known_words or ()
    lines = [unlearned_notice(word, model, known) for word in seen.unlearned]
    if notice := question_notice(seen.question, model, seen.known_questions):
        lines.append(notice)
    for line in lines:
        typer.echo(line)
    if known and not lines:
        typer.echo(f"{model} learned {len(known)} words, and may be wrong about each of them", err=True)


def evaluate(
    model: Model,
    benchmark: Annotated[
        str,
        typer.Option(
            help="scenes, the directory of a dataset in the project's Parquet, or with --data one by name: "
            "pope, repope, cv-bench, mmvp, realworldqa, mmstar, hallusionbench, amber, chair."
        ),
    ],
    out: OutDir,
    data: Annotated[
        str | None, typer.Option(help="The files of a benchmark by name: a directory, or a hub id (then fetched).")
    ] = None,
    protocol: Annotated[
        str | None, typer.Option(help="Whose prompt and scoring: official, lmms-eval, vlmevalkit, …")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Where the picture files of --data lie, if not beside it.")
    ] = None,
    seed: Seed = 0,
    num_images: Annotated[int | None, typer.Option(min=1, help="Pictures asked about; else 600 scenes or all.")] = None,
    split: WhichScenes = Split.TEST,
    parser: Annotated[Parser, typer.Option(help="How a yes or a no is read from an answer.")] = Parser.FIRST_WORD,
    answering: Annotated[
        Answering, typer.Option(help="As the model does, or in a way that hangs more on the picture, untrained.")
    ] = Answering.PLAIN,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Questions at once, no matter to scores; else what suits the model."),
    ] = None,
    correct_prior: Annotated[
        bool, typer.Option("--correct-prior", help="Report yes/no answers less what a blank picture says, too.")
    ] = False,
    allow_outside: AllowOutside = False,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Measure whether a model hallucinates.

    Any vision-language model of transformers. POPE, counting, colour, relation, localisation of object words and text
    perplexity, as JSON and as a table; or, with --data, a benchmark that papers quote.
    """
    from agevlm.api import evaluate as measure

    settings: dict[str, Any] = {"num_images": num_images, "device": device, "dtype": dtype}
    settings |= {"answering": answering.value} | ({} if batch_size is None else {"batch_size": batch_size})
    by_name = {"protocol": (protocol, None), "images": (images, None)}
    of_dataset = {
        "seed": (seed, 0),
        "split": (split.value, Split.TEST),
        "parser": (parser.value, Parser.FIRST_WORD),
        "correct_prior": (correct_prior, False),
        "allow_outside": (allow_outside, False),
    }
    settings |= _suiting(by_name, of_dataset, data is not None)
    quiet_transformers()
    with bars() as progress:
        metrics = measure(model, benchmark, out=out, data=data, progress=progress, **settings)
    if data is None:
        print_metrics(out)
    elif metrics is not None:  # the main process of several
        print_official(metrics, out)


Given = Mapping[str, tuple[Any, Any]]  # what was given for an option, and its default


def _suiting(by_name: Given, of_dataset: Given, has_data: bool) -> dict[str, Any]:
    """The options that were given, by name; ValueError for one that does not go with --data, or not without it."""
    own, others = (by_name, of_dataset) if has_data else (of_dataset, by_name)
    wrong = [_option(name) for name, (value, default) in others.items() if value != default]
    if wrong:
        raise ValueError(
            f"{', '.join(wrong)} {'cannot go' if has_data else 'goes only'} with --data: a benchmark by name takes "
            f"{', '.join(map(_option, by_name))}; scenes and datasets take {', '.join(map(_option, of_dataset))}"
        )
    return {name: value for name, (value, default) in own.items() if value != default}


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def diagnose(
    model: Model,
    data: Annotated[str, typer.Option(help="scenes, or the directory of a dataset with POPE's questions.")],
    out: OutDir,
    against: Annotated[str | None, typer.Option(help="A second model, asked the same: differences are paired.")] = None,
    seed: Seed = 0,
    num_images: Annotated[int, typer.Option(min=2, help="Pictures to ask about.")] = 100,
    split: WhichScenes = Split.TEST,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Questions at once, no matter to figures; else what suits the model.")
    ] = None,
    allow_outside: AllowOutside = False,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Say why a model hallucinates.

    Any vision-language model of transformers: what the prior alone knows, matching pictures, where every head looks,
    what tells made-up words. One HTML page, diagnosis.json and arrays.npz.
    """
    from agevlm.diagnosis.run import diagnose as examine
    from agevlm.evaluation.benchmarks import Settings

    settings = Settings(
        seed=seed,
        num_images=num_images,
        split=split.value,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        allow_outside=allow_outside,
    )
    quiet_transformers()
    with bars() as progress:
        found = examine(model, data, out, against=against, settings=settings, progress=progress)
    for sentence in found.verdict:
        typer.echo(sentence)
    for part, reason in found.record["left_out"].items():
        typer.echo(f"left out: {part}: {reason}")
    typer.echo(f"page: {found.page}")


def similarity(
    model: Model,
    out: Annotated[Path, typer.Option(help="The file of all figures (.json).")],
    benchmark: Annotated[str, typer.Option(help="scenes, or the directory of a dataset with captions.")] = "scenes",
    figure: Annotated[Path | None, typer.Option(help="Draw the histograms to this file (.png).")] = None,
    seed: Seed = 0,
    num_images: Annotated[int, typer.Option(min=2, help="Pictures, each with its own caption and another's.")] = 200,
    split: WhichScenes = Split.TEST,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures at once; figures do not depend on it.")] = 16,
    allow_outside: AllowOutside = False,
    device: Device = "auto",
    dtype: DType = "auto",
) -> None:
    """Tell matching pictures and captions from mismatched ones.

    By hidden states, by queries and keys at object words, and by the likelihood of the caption, in every layer that
    looks at images: AUROC, overlap and histograms, as JSON and as a table.
    """
    from agevlm.analysis.charts import similarity_figure
    from agevlm.analysis.figures import save_figure
    from agevlm.analysis.similarity import similarity_of_benchmark, write_similarity
    from agevlm.evaluation.benchmarks import Settings

    settings = Settings(
        seed=seed,
        num_images=num_images,
        split=split.value,
        batch_size=batch_size,
        device=device,
        dtype=dtype,
        allow_outside=allow_outside,
    )
    quiet_transformers()
    with bars() as progress:
        record = similarity_of_benchmark(
            model, benchmark, settings, progress=lambda done, total: progress("pairs", done, total)
        )
    write_similarity(record, out)
    print_similarity(record)
    typer.echo(f"figures: {out}")
    if figure is not None:
        typer.echo(f"picture: {save_figure(similarity_figure(record), figure)}")
