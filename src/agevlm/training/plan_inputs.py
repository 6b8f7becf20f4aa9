"""What a plan must know of data: how long texts are, how many pictures there are, and how large. Known or assumed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers.utils.import_utils import is_timm_available

from agevlm.checkpoints import resolve_model
from agevlm.data.collate import Collator
from agevlm.data.schema import IGNORE_INDEX
from agevlm.documents import read_json
from agevlm.modeling.processing_agevlm import AgeVlmProcessor, squeezing_processor
from agevlm.modeling.timm_models import is_timm
from agevlm.modeling.vision import build_backbone, fit_pictures
from agevlm.training.dataset import SourceData, StageDataset
from agevlm.training.needs import at_hand, missing
from agevlm.training.recipe import LabelsSource, ParquetSource, Recipe, ScenesSource, Source, StageRecipe
from agevlm.training.run import join_processor, open_source
from agevlm.training.shapes import Shapes

TEXT_LEN = 128  # tokens of a row
SUPERVISED_RATIO = 0.5  # of these that are learned
NUM_GUIDED = 8  # positions of a row that are guided
BATCHES = 6  # of a stage that are drawn, where its data are at hand
SAMPLES = 8  # of each of them


@dataclass(frozen=True)
class TextShape:
    """The rows of a stage: tokens, how many of them are learned, and how many positions are guided.

    `measured`: so it is on average in some batches of the stage, and the longest have `longest` tokens.
    """

    text_len: int
    num_supervised: int
    num_guided: int
    measured: bool = False
    longest: int | None = None


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
    """What is known of a recipe's data, and for the rest what is assumed; `text_len` tokens a row where given.

    Where language model and data are at hand, some batches of each stage are drawn and measured.
    """
    used = sorted(recipe.used_data)
    processor = _processor(recipe) if text_len is None else None
    texts = {stage.name: _text_shape(recipe, stage, text_len, processor) for stage in recipe.stages}
    images = {name: _num_images(recipe.data[name]) for name in used}
    unknown = [f"how many pictures {name} has is not known" for name, number in images.items() if number is None]
    return Reckoned(_image_size(recipe, shapes), texts, images, (*_text_notes(texts), *unknown))


def _processor(recipe: Recipe) -> Any:
    """What makes tokens of the recipe's texts, or None where it or the data are not at hand."""
    if any(need.key not in ("model.vision_model", "evaluation.benchmark") for need in missing(recipe)):
        return None
    if recipe.model.init:
        return AgeVlmProcessor.from_pretrained(at_hand(recipe.model.init))
    return join_processor(recipe.model, str(at_hand(recipe.model.language_model)), 32)


def _text_shape(recipe: Recipe, stage: StageRecipe, text_len: int | None, processor: Any) -> TextShape:
    if processor is not None:
        return _measured(recipe, stage, processor)
    if text_len is None:
        sources = [recipe.data[name] for name, weight in stage.data.items() if weight]
        text_len = max(_expected_len(source) for source in sources)  # rows are padded to the longest
    text_len = min(text_len, recipe.max_length)
    supervised = max(1, min(round(text_len * SUPERVISED_RATIO), text_len - 1))
    return TextShape(text_len, supervised, NUM_GUIDED if _guides(stage) else 0)


def _guides(stage: StageRecipe) -> bool:
    return stage.guidance is not None and stage.guidance.weight > 0


def _measured(recipe: Recipe, stage: StageRecipe, processor: Any) -> TextShape:
    """The average over some batches of a stage, drawn as training draws them; presence is asked naturally."""
    batches = list(_batches(recipe, stage.model_copy(update={"presence": None}), processor))
    lengths = [batch["input_ids"].shape[1] for batch in batches]
    rows = sum(len(batch["labels"]) for batch in batches)
    learned = sum(int((batch["labels"] != IGNORE_INDEX).sum()) for batch in batches)
    guided = [batch["attention_rows"].shape[1] for batch in batches] if _guides(stage) else [0]
    length = _mean(lengths)
    return TextShape(length, max(1, min(math.ceil(learned / rows), length - 1)), _mean(guided), True, max(lengths))


def _mean(numbers: Iterable[int]) -> int:
    return math.ceil(np.mean(list(numbers)))


def _batches(recipe: Recipe, stage: StageRecipe, processor: Any) -> Iterator[dict[str, Any]]:
    used = [name for name, weight in stage.data.items() if weight]
    sources = {name: SourceData(open_source(recipe.data[name], recipe.seed)) for name in used}
    stage = stage.model_copy(update={"data": {name: stage.data[name] for name in used}})
    data = StageDataset(stage, sources, recipe.seed)
    collator = Collator(processor, (4, 4), guided=_guides(stage), max_length=recipe.max_length)
    size, number = stage.images_per_batch, len(data) // stage.images_per_batch
    for batch in sorted({index * number // BATCHES for index in range(BATCHES)}):
        items = [data[batch * size + item] for item in range(min(SAMPLES, size))]
        yield collator([(sample, np.zeros((len(sample.images), 1, 4, 4), np.float16)) for sample, _ in items])


def _expected_len(source: Source) -> int:
    if isinstance(source, ParquetSource) and source.expected is not None:
        return source.expected.text_len
    return TEXT_LEN


def _text_notes(texts: Mapping[str, TextShape]) -> Iterator[str]:
    lengths = ", ".join(f"{text.text_len} in {name}" for name, text in texts.items())
    if all(text.measured for text in texts.values()):
        longest = max(text.longest or 0 for text in texts.values())
        yield f"rows of text have as many tokens as in some batches: {lengths}; the longest of these has {longest}"
        return
    yield f"rows of text have so many tokens: {lengths}; {SUPERVISED_RATIO:.0%} of them are learned (--text-len)"
    if any(text.num_guided for text in texts.values()):
        yield f"{NUM_GUIDED} positions of a row are guided"


def _num_images(source: Source) -> int | None:
    if isinstance(source, ScenesSource):
        return source.num_scenes
    views = source.augment.views if source.augment is not None else 1
    if isinstance(source, LabelsSource):
        return views * sum(path.is_file() for path in source.labels.glob("*/*")) if source.labels.is_dir() else None
    summary, num = source.parquet / "dataset.json", None
    if summary.is_file():
        num = int(read_json(summary, "write the dataset again")["num_images"])
    elif source.expected is not None:
        num = source.expected.num_images
    return None if num is None else views * max(1, round(source.share * num))


def _image_size(recipe: Recipe, shapes: Shapes) -> tuple[int, int]:
    """(height, width) in pixels of the pictures that training takes; ValueError where it takes none of that size.

    What is not known of a vision model that is not at hand is what its configuration says.
    """
    settings = recipe.model
    processor = _image_processor(settings.init or settings.vision_model)
    if processor is None:
        size = getattr(shapes.vision.config, "image_size", 224)
        height, width = (size, size) if isinstance(size, int) else size
        processor = SimpleNamespace(size={"height": int(height), "width": int(width)})
    if not settings.init:
        with torch.device("meta"):
            backbone = build_backbone(shapes.vision.config)
        fit_pictures(backbone, processor, settings.image_size)
    return processor.size["height"], processor.size["width"]


def _image_processor(model: str) -> Any:
    """The image processor that comes along with a model, as training takes it over; None where it is not at hand."""
    try:
        source = resolve_model(model)
    except ValueError:
        return None
    if is_timm(source):
        return squeezing_processor(source) if is_timm_available() else None
    place = at_hand(model)
    names = ("processor_config.json", "preprocessor_config.json")
    here = place is not None and any((place / name).is_file() for name in names)
    return squeezing_processor(place) if here else None
