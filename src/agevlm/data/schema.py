"""The records that every dataset, trainer and benchmark of the project speaks.

`AnnotatedImage` is what a world or an annotation file knows of one picture: its instances and their masks.
`Sample` is what a model learns from or is asked: one or more pictures and the conversations about them, each object
word grounded in masks. `data/language.py` makes the second from the first; `data/parquet.py` stores both.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypedDict

IGNORE_INDEX = -100

Role = Literal["system", "user", "assistant"]


class RLE(TypedDict):
    """A binary mask in COCO's compressed run-length code, as pycocotools reads and writes it."""

    size: list[int]  # [height, width]
    counts: str  # ASCII


@dataclass(frozen=True)
class Instance:
    """One thing in a picture: `box` is (x, y, width, height) in pixels, `mask` its visible part."""

    category: str
    mask: RLE
    box: tuple[float, float, float, float]
    area: float  # visible pixels
    colour: str | None = None
    crowd: bool = False

    @property
    def centre(self) -> tuple[float, float]:
        """Centre (y, x) of the box in pixels."""
        x, y, width, height = self.box
        return y + height / 2, x + width / 2


@dataclass(frozen=True)
class ImageSource:
    """A picture by file, by encoded bytes, or both; `id` is unique in its dataset and names it in errors."""

    id: str
    height: int
    width: int
    path: Path | None = None
    data: bytes | None = None  # an encoded file (PNG, JPEG)


@dataclass(frozen=True)
class AnnotatedImage:
    """A picture and all that is known to be in it; `labels` are categories that are there, nobody knows where."""

    image: ImageSource
    instances: tuple[Instance, ...]
    labels: tuple[str, ...] = ()

    @property
    def categories(self) -> tuple[str, ...]:
        """The categories in the picture, each once, in order of first appearance, labels last."""
        return tuple(dict.fromkeys((*(instance.category for instance in self.instances), *self.labels)))


@dataclass(frozen=True)
class Message:
    """One turn. `num_images` pictures are shown in front of `content`; spans count characters of `content` alone."""

    role: Role
    content: str
    num_images: int = 0


@dataclass(frozen=True)
class Grounding:
    """Where the thing is that a phrase names.

    `content[start:end]` of message number `message` is `phrase`. `masks` holds one mask for each instance that the
    phrase means, in picture number `image`. `present` is True with masks, False where the thing is surely not in the
    picture (then `masks` is empty), None where nobody knows: unknown phrases are not supervised.
    """

    message: int
    start: int
    end: int
    phrase: str
    present: bool | None
    masks: tuple[RLE, ...] = ()
    image: int = 0

    def __post_init__(self) -> None:
        if self.present and not self.masks:
            raise ValueError(f"grounding of {self.phrase!r} says present=True and has no mask")
        if not self.present and self.masks:
            raise ValueError(f"grounding of {self.phrase!r} has {len(self.masks)} masks and present={self.present}")
        if not 0 <= self.start < self.end:
            raise ValueError(f"grounding of {self.phrase!r} has the span [{self.start}, {self.end})")


@dataclass(frozen=True)
class Conversation:
    """Turns about the pictures of a sample. `kind` says what is asked: see `data/language.py`, KINDS."""

    id: str
    kind: str
    messages: tuple[Message, ...]
    groundings: tuple[Grounding, ...] = ()

    def __post_init__(self) -> None:
        for grounding in self.groundings:
            content = self.messages[grounding.message].content
            if content[grounding.start : grounding.end] != grounding.phrase:
                raise ValueError(
                    f"conversation {self.id}: span [{grounding.start}, {grounding.end}) of {content!r} "
                    f"is not the phrase {grounding.phrase!r}"
                )


@dataclass(frozen=True)
class Sample:
    """Pictures and the conversations about them, which share one vision pass."""

    id: str
    images: tuple[ImageSource, ...]
    conversations: tuple[Conversation, ...] = field(default=())
