"""What a plan must know of data: how long texts are, how many pictures there are, and how large. Known or assumed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from agevlm.checkpoints import resolve_model
from agevlm.documents import read_json
from agevlm.training.recipe import LabelsSource, ParquetSource, Recipe, ScenesSource, Source, StageRecipe
from agevlm.training.shapes import Shapes

TEXT_LEN = 128  # tokens of a row
SUPERVISED_RATIO = 0.5  # of these that are learned
NUM_GUIDED = 8  # positions of a row that are guided


@dataclass(frozen=True)
class TextShape:
    """The rows of a stage: tokens, how many of them are learned, and how many positions are guided."""

    text_len: int
    num_supervised: int
    num_guided: int


@dataclass(frozen=True)
class Reckoned:
    """What a plan reckons with: rows of stages by name, pictures of sources by name (None: not known), their pixels."""

    image_size: tuple[int, int]
    texts: Mapping[str, TextShape]
    num_images: Mapping[str, int | None]
    notes: tuple[str, ...] = ()

    @property
    def total_images(self) -> int | None:
        """Pictures of all sources; None where one is not known."""
        known = [number for number in self.num_images.values() if number is not None]
        return sum(known) if len(known) == len(self.num_images) else None


def reckon(recipe: Recipe, shapes: Shapes, text_len: int | None = None) -> Reckoned:
    """What is known of a recipe's data, and for the rest what is assumed; `text_len` tokens a row where given."""
    used = sorted({name for stage in recipe.stages for name, weight in stage.data.items() if weight})
    texts = {stage.name: _text_shape(recipe, stage, text_len) for stage in recipe.stages}
    images = {name: _num_images(recipe.data[name]) for name in used}
    notes = [
        *_text_notes(texts),
        *(f"how many pictures {name} has is not known" for name, n in images.items() if n is None),
    ]
    return Reckoned(_image_size(recipe, shapes), texts, images, tuple(notes))


def _text_shape(recipe: Recipe, stage: StageRecipe, text_len: int | None) -> TextShape:
    if text_len is None:
        sources = [recipe.data[name] for name, weight in stage.data.items() if weight]
        text_len = max(_expected_len(source) for source in sources)  # rows are padded to the longest
    text_len = min(text_len, recipe.max_length)
    supervised = max(1, min(round(text_len * SUPERVISED_RATIO), text_len - 1))
    return TextShape(text_len, supervised, NUM_GUIDED if stage.guidance is not None else 0)


def _expected_len(source: Source) -> int:
    if isinstance(source, ParquetSource) and source.expected is not None:
        return source.expected.text_len
    return TEXT_LEN


def _text_notes(texts: Mapping[str, TextShape]) -> Iterator[str]:
    lengths = ", ".join(f"{text.text_len} in {name}" for name, text in texts.items())
    yield f"rows of text have so many tokens: {lengths}; {SUPERVISED_RATIO:.0%} of them are learned (--text-len)"
    if any(text.num_guided for text in texts.values()):
        yield f"{NUM_GUIDED} positions of a row are guided"


def _num_images(source: Source) -> int | None:
    if isinstance(source, ScenesSource):
        return source.num_scenes
    if isinstance(source, LabelsSource):
        return sum(path.is_file() for path in source.labels.glob("*/*")) if source.labels.is_dir() else None
    views = source.augment.views if source.augment is not None else 1
    summary = source.parquet / "dataset.json"
    if summary.is_file():
        return views * int(read_json(summary, "write the dataset again")["num_images"])
    return views * source.expected.num_images if source.expected is not None else None


def _image_size(recipe: Recipe, shapes: Shapes) -> tuple[int, int]:
    """(height, width) in pixels: the recipe's, the processor's of the checkpoint, or what its configuration says."""
    settings = recipe.model
    if settings.image_size and not settings.init:
        return settings.image_size, settings.image_size
    size = _processor_size(settings.init or settings.vision_model) or getattr(shapes.vision.config, "image_size", 224)
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _processor_size(model: str) -> int | None:
    """The side of pictures in a directory's processor, or None where there is none."""
    try:
        directory = Path(resolve_model(model))
    except ValueError:
        return None
    for name, key in (("processor_config.json", "image_processor"), ("preprocessor_config.json", None)):
        if (directory / name).is_file():
            content = json.loads((directory / name).read_text(encoding="utf-8"))
            size = (content.get(key, {}) if key else content).get("size", {})
            return size.get("height") or size.get("shortest_edge")
    return None
