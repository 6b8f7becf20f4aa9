"""The same questions about three pictures: the true one, a blank one and another sample's.

What a model still gets right without its picture, it knows from the question alone: the prior.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from PIL import Image

from agevlm.data.images import open_image
from agevlm.data.language import family
from agevlm.data.schema import Conversation, ImageSource, Sample
from agevlm.evaluation.runner import evaluate
from agevlm.vlms import Vlm

Condition = Literal["picture", "blank", "other"]
CONDITIONS: tuple[Condition, ...] = ("picture", "blank", "other")
GREY = (127, 127, 127)
REQUEST = "describe the picture."  # names no thing

Record = dict[str, Any]  # a line of predictions.jsonl
Progress = Callable[[str, int, int], None]  # what is done, how much of it, of how much


@dataclass(frozen=True)
class Answers:
    """The records of every condition, in one order, and why words were not localised (None: they were)."""

    records: dict[Condition, list[Record]]
    note: str | None


def presence_samples(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with their questions whether a thing is there, POPE's, about one picture.

    ValueError where there are none, or pictures are too few to be exchanged.
    """
    asked = [replace(s, conversations=tuple(c for c in s.conversations if _asks_presence(c))) for s in samples]
    asked = [sample for sample in asked if sample.conversations]
    if len(asked) < 2:
        raise ValueError(
            f"a diagnosis asks POPE's questions about at least two pictures, and {len(asked)} of {len(samples)} "
            "samples have some: give scenes, or a dataset with conversations of the kinds pope.random, pope.popular "
            "or pope.adversarial (`agevlm data coco` writes them)"
        )
    return asked


def _asks_presence(conversation: Conversation) -> bool:
    pictures = sum(message.num_images for message in conversation.messages)
    return family(conversation.kind) == "pope" and pictures == 1


def ask(vlm: Vlm, samples: Sequence[Sample], batch_size: int | None, progress: Progress | None) -> Answers:
    """Ask all questions under all conditions."""
    records: dict[Condition, list[Record]] = {}
    note = None
    for condition in CONDITIONS:
        found = evaluate(
            vlm.model,
            vlm.processor,
            [_shown(samples, number, condition) for number in range(len(samples))],
            batch_size=batch_size,
            progress=_named(progress, {"picture": "questions", "blank": "blank", "other": "exchanged"}[condition]),
        )
        records[condition] = list(found.records())
        note = note or found.note
    return Answers(records, note)


def _named(progress: Progress | None, name: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(name, done, total)


def _shown(samples: Sequence[Sample], number: int, condition: Condition) -> Sample:
    """A sample with the picture of a condition; masks are those of the true one, and go with it."""
    sample = samples[number]
    if condition == "picture":
        return sample
    source = _blank(sample.images[0]) if condition == "blank" else samples[(number + 1) % len(samples)].images[0]
    return replace(
        sample, images=(source,), conversations=tuple(replace(c, groundings=()) for c in sample.conversations)
    )


def _blank(source: ImageSource) -> ImageSource:
    """A grey picture of the same size."""
    size = open_image(source).size
    file = io.BytesIO()
    Image.new("RGB", size, GREY).save(file, "PNG")
    return ImageSource(f"{source.id} (blank)", size[1], size[0], data=file.getvalue())
