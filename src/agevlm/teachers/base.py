"""What a teacher is: pictures and phrases in, masks and scores out, and a verdict on what was found.

A teacher that finds nothing has not shown that nothing is there. So a verdict has three values: present with masks,
surely absent, and unknown, which nothing is trained on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from agevlm.data.masks import encode_mask
from agevlm.data.schema import RLE, AnnotatedImage

MAX_ASPECT_RATIO = 32  # a longer side that is more times the shorter one leaves nothing of it when a network resizes

Reason = Literal[
    "found", "absent", "uncertain", "too large", "empty mask", "not annotated", "picture too thin", "phrase too long"
]
Masks = NDArray[np.bool_]  # (n, height, width)
Boxes = NDArray[np.float32]  # (n, 4): left, top, right, bottom in pixels of the picture
Scores = NDArray[np.float32]  # (n,), in [0, 1]


@dataclass(frozen=True)
class Request:
    """A picture, upright and in RGB, the phrases to find in it, and what is known of it already, if anything is."""

    image: Image.Image
    phrases: tuple[str, ...]
    annotated: AnnotatedImage | None = None


@dataclass(frozen=True)
class Verdict:
    """What a teacher says of one phrase in one picture. `present` is None where it does not know."""

    present: bool | None
    reason: Reason
    masks: tuple[RLE, ...] = ()
    scores: tuple[float, ...] = ()


class Teacher(Protocol):
    """Whatever finds phrases in pictures."""

    def ground(self, requests: Sequence[Request]) -> list[list[Verdict]]:
        """For each picture a verdict on each of its phrases, in order."""
        ...


@dataclass(frozen=True)
class Thresholds:
    """When a score counts. Scores of different models are on different scales: each has its own defaults."""

    present: float  # a mask of at least this score is kept
    absent: float  # a phrase whose best score is below is surely not there
    max_area_ratio: float = 0.9  # of the picture: a larger mask is a teacher's way to say that it found nothing

    def __post_init__(self) -> None:
        if not 0 <= self.absent <= self.present <= 1:
            raise ValueError(
                f"thresholds must satisfy 0 <= absent <= present <= 1, got absent={self.absent} and "
                f"present={self.present}"
            )
        if not 0 < self.max_area_ratio <= 1:
            raise ValueError(f"max_area_ratio must lie in (0, 1], got {self.max_area_ratio}")


def is_thin(image: Image.Image) -> bool:
    """Whether a picture is of a shape that networks cannot read."""
    return max(image.size) > MAX_ASPECT_RATIO * min(image.size)


def ground_readable(
    requests: Sequence[Request],
    reads: Callable[[str], bool],
    ground: Callable[[Sequence[Request]], list[list[Verdict]]],
) -> list[list[Verdict]]:
    """What `ground` says where a network can read the picture and `reads` the phrase; the rest is unknown."""
    asked = [
        replace(request, phrases=() if is_thin(request.image) else tuple(filter(reads, request.phrases)))
        for request in requests
    ]
    readable = [request for request in asked if request.phrases]
    answers = iter(ground(readable) if readable else ())
    verdicts = []
    for request, part in zip(requests, asked, strict=True):
        known = dict(zip(part.phrases, next(answers) if part.phrases else (), strict=True))
        unread = Verdict(None, "picture too thin" if is_thin(request.image) else "phrase too long")
        verdicts.append([known.get(phrase, unread) for phrase in request.phrases])
    return verdicts


def judge(masks: Masks, scores: Scores, best: float, thresholds: Thresholds) -> Verdict:
    """The verdict on a phrase from the masks that may show it and their scores.

    `best` is the best score that anything in the picture had, also below the threshold of what has a mask.
    """
    likely = scores >= thresholds.present
    area = masks.mean(axis=(1, 2)) if len(masks) else np.zeros(0)
    kept = np.flatnonzero(likely & (area > 0) & (area <= thresholds.max_area_ratio))
    if len(kept):
        kept = kept[np.argsort(-scores[kept], kind="stable")]
        codes = tuple(encode_mask(masks[index]) for index in kept)
        return Verdict(True, "found", codes, tuple(float(scores[index]) for index in kept))
    if likely.any():
        return Verdict(None, "too large" if (area[likely] > 0).any() else "empty mask")
    if best < thresholds.absent:
        return Verdict(False, "absent")
    return Verdict(None, "uncertain")
