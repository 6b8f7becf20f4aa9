"""The end of a run: measure the model, choose cases by rule, look at them, write the report."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from agevlm.analysis.attention import look
from agevlm.analysis.gallery import GalleryItem, choose_cases
from agevlm.analysis.gallery_files import save_gallery
from agevlm.analysis.report import write_report
from agevlm.checkpoints import load_vlm
from agevlm.data.images import open_image
from agevlm.data.masks import union_mask
from agevlm.data.parquet import read_parquet
from agevlm.data.scenes import CATEGORIES
from agevlm.data.schema import Conversation, Sample
from agevlm.evaluation.benchmarks import SCENES, Settings, evaluate_benchmark, test_samples
from agevlm.training.recipe import Recipe
from agevlm.training.trainer import read_log


def measure(recipe: Recipe, out: Path, model_directory: Path, console: Console) -> None:
    """Run the recipe's evaluation on a trained model and write metrics, gallery and report into the run."""
    asked = recipe.evaluation
    assert asked is not None
    settings = Settings(
        seed=asked.seed,
        num_images=asked.num_images,
        split=asked.split,
        batch_size=asked.batch_size,
        correct_prior=asked.correct_prior,
        allow_outside=asked.allow_outside,
        language_model=None if recipe.model.init else recipe.model.language_model,
    )

    def progress(name: str, done: int, total: int) -> None:
        if done == total:
            console.print(f"measured {name}: {done} pictures", highlight=False)

    evaluate_benchmark(model_directory, asked.benchmark, out, settings, progress=progress)
    predictions = read_log(out / "predictions.jsonl")
    model, processor = load_vlm(model_directory)
    samples = test_samples(model_directory, asked.benchmark, settings)
    vocabulary = CATEGORIES if asked.benchmark == SCENES else read_parquet(asked.benchmark).vocabulary
    save_gallery(out, cases(model, processor, samples, predictions, vocabulary))
    write_report(out)
    console.print(f"report: {out / 'report.html'}", highlight=False)


def cases(
    model: Any,
    processor: Any,
    samples: Iterable[Sample],
    predictions: Sequence[dict[str, Any]],
    vocabulary: Sequence[str],
) -> list[GalleryItem]:
    """The gallery: predictions chosen by rule, each asked once more with its attention kept.

    What is asked about several pictures at once is shown with the first of them and without attention.
    """
    chosen = choose_cases(predictions)
    rows = {row["id"]: row for row in predictions}
    asked = {c.id: (sample, c) for sample in samples for c in sample.conversations if c.id in set(chosen)}
    items = []
    for identity in chosen:
        (sample, conversation), row = asked[identity], rows[identity]
        picture = open_image(sample.images[0])
        *before, question, _ = conversation.messages
        single = sum(message.num_images for message in conversation.messages) == 1
        items.append(
            GalleryItem(
                image=picture,
                question=row["question"],
                answer=row["answer"],
                truth=row["reference"],
                kind=row["kind"],
                correct=row["correct"],
                look=look(model, processor, picture, question.content, before=before, vocabulary=vocabulary)
                if single
                else None,
                masks=_masks(conversation),
                id=identity,
            )
        )
    return items


def _masks(conversation: Conversation) -> dict[str, Any]:
    """The masks, in the first picture, of the phrases of the last question and its answer."""
    last = len(conversation.messages) - 2
    shown = (g for g in conversation.groundings if g.masks and g.image == 0 and g.message >= last)
    return {g.phrase: union_mask(g.masks) for g in shown}
