"""Phrase → boxes: Grounding DINO and OWLv2 of transformers, from a directory or a hub id.

Both read all phrases of a picture in as few passes as they can: Grounding DINO as one sentence of its 256 tokens, OWLv2
as any number of queries. Scores are theirs: sigmoids of logits, in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from agevlm.teachers.base import Boxes, Scores, Thresholds
from agevlm.teachers.loading import load

_MAX_IOU = 0.7  # of two boxes of one phrase: beyond, they are one thing, seen twice
_MAX_BOXES = 50  # of one phrase in one picture


@dataclass(frozen=True)
class Detection:
    """Where a phrase may be: boxes of a score of at least `floor`, best first, and the best score of all."""

    boxes: Boxes
    scores: Scores
    best: float


class Detector(Protocol):
    """Finds phrases as boxes."""

    thresholds: Thresholds

    def detect(
        self, images: Sequence[Image.Image], phrases: Sequence[Sequence[str]], floor: float
    ) -> list[list[Detection]]:
        """A detection of each phrase in each picture, with boxes of scores from `floor`."""
        ...

    def reads(self, phrase: str) -> bool:
        """Whether it can read the whole of a phrase."""
        ...


class GroundingDino:
    """Grounding DINO (Liu et al. 2023, arXiv 2303.05499) and MM Grounding DINO."""

    MODEL_TYPES = ("grounding-dino", "mm-grounding-dino")
    thresholds = Thresholds(present=0.3, absent=0.15)

    def __init__(self, weights: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        self.model, self.processor = load(
            weights, "AutoModelForZeroShotObjectDetection", self.MODEL_TYPES, dtype, device
        )
        self.max_tokens = self.model.config.max_text_len

    @torch.inference_mode()
    def detect(
        self, images: Sequence[Image.Image], phrases: Sequence[Sequence[str]], floor: float
    ) -> list[list[Detection]]:
        """As `Detector` says."""
        found: list[list[Detection]] = [[] for _ in images]
        parts = [list(self._sentences(names)) for names in phrases]
        for turn in range(max(map(len, parts), default=0)):
            asked = [number for number, sentences in enumerate(parts) if turn < len(sentences)]
            batch = self._detect([images[number] for number in asked], [parts[number][turn] for number in asked], floor)
            for number, detections in zip(asked, batch, strict=True):
                found[number] += detections
        return found

    def reads(self, phrase: str) -> bool:
        """As `Detector` says."""
        return self._num_tokens([_lower(phrase)]) <= self.max_tokens

    def _sentences(self, names: Sequence[str]) -> Iterator[list[str]]:
        """The phrases, parted so that each part is a sentence that the model can read."""
        part: list[str] = []
        for name in map(_lower, names):
            if part and self._num_tokens([*part, name]) > self.max_tokens:
                yield part
                part = []
            part.append(name)
        if part:
            yield part

    def _num_tokens(self, names: Sequence[str]) -> int:
        return len(self.processor.tokenizer(_sentence(names)).input_ids)

    def _detect(self, images: Sequence[Image.Image], names: Sequence[list[str]], floor: float) -> list[list[Detection]]:
        text = self.processor.tokenizer(
            [_sentence(part) for part in names], return_tensors="pt", padding=True, return_offsets_mapping=True
        )
        offsets = text.pop("offset_mapping").numpy()
        pixels = self.processor.image_processor(list(images), return_tensors="pt")
        inputs = {**text, **pixels}
        inputs = {key: value.to(self.model.device) for key, value in inputs.items()}
        inputs["pixel_values"] = inputs["pixel_values"].to(self.model.dtype)
        outputs = self.model(**inputs)
        probabilities = outputs.logits.float().sigmoid().cpu().numpy()  # (images, queries, max_tokens)
        corners = _corners(outputs.pred_boxes.float().cpu().numpy())
        detections = []
        for number, (image, part) in enumerate(zip(images, names, strict=True)):
            boxes = corners[number] * _scale(image.width, image.height)
            detections.append(
                [
                    select(boxes, probabilities[number][:, tokens].max(axis=1), floor, image.size)
                    for tokens in _token_spans(part, offsets[number])
                ]
            )
        return detections


class Owlv2:
    """OWLv2 (Minderer et al. 2023, arXiv 2306.09683)."""

    MODEL_TYPES = ("owlv2",)
    thresholds = Thresholds(present=0.2, absent=0.05)

    def __init__(self, weights: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        self.model, self.processor = load(
            weights, "AutoModelForZeroShotObjectDetection", self.MODEL_TYPES, dtype, device
        )
        self.max_tokens = self.model.config.text_config.max_position_embeddings

    @torch.inference_mode()
    def detect(
        self, images: Sequence[Image.Image], phrases: Sequence[Sequence[str]], floor: float
    ) -> list[list[Detection]]:
        """As `Detector` says."""
        num_queries = max(map(len, phrases), default=0)
        if not num_queries:
            return [[] for _ in images]
        queries = [name for names in phrases for name in [*map(_lower, names), *[""] * (num_queries - len(names))]]
        text = self.processor.tokenizer(queries, return_tensors="pt", padding="max_length", max_length=self.max_tokens)
        pixels = self.processor.image_processor(list(images), return_tensors="pt").pixel_values
        outputs = self.model(
            input_ids=text.input_ids.to(self.model.device),
            attention_mask=text.attention_mask.to(self.model.device),
            pixel_values=pixels.to(self.model.device, self.model.dtype),
        )
        probabilities = outputs.logits.float().sigmoid().cpu().numpy()  # (images, patches, queries)
        corners = _corners(outputs.pred_boxes.float().cpu().numpy())
        detections = []
        for number, (image, names) in enumerate(zip(images, phrases, strict=True)):
            side = max(image.size)  # the picture was padded to a square, below and to the right
            boxes = corners[number] * _scale(side, side)
            detections.append(
                [select(boxes, probabilities[number][:, query], floor, image.size) for query in range(len(names))]
            )
        return detections

    def reads(self, phrase: str) -> bool:
        """As `Detector` says."""
        return len(self.processor.tokenizer(_lower(phrase)).input_ids) <= self.max_tokens


def select(boxes: Boxes, scores: Scores, floor: float, size: tuple[int, int]) -> Detection:
    """The boxes of a score of at least `floor`, clipped to a picture of `size` (width, height), each thing once.

    Greedy non-maximum suppression, best first; boxes that have no area in the picture are left out.
    """
    best = float(scores.max(initial=0.0))
    width, height = size
    clipped = np.clip(boxes, 0, [width, height, width, height]).astype(np.float32)
    sides = clipped[:, 2:] - clipped[:, :2]
    candidates = np.flatnonzero((scores >= floor) & (sides > 0).all(axis=1))
    candidates = candidates[np.argsort(-scores[candidates], kind="stable")]
    kept: list[int] = []
    for candidate in candidates:
        if len(kept) == _MAX_BOXES:
            break
        if not kept or _iou(clipped[candidate], clipped[kept]).max() <= _MAX_IOU:
            kept.append(int(candidate))
    return Detection(clipped[kept], scores[kept].astype(np.float32), best)


def _iou(box: Boxes, others: Boxes) -> Any:
    corner, far = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.clip(far - corner, 0, None).prod(axis=1)
    return shared / ((box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - shared)


def _corners(boxes: Boxes) -> Boxes:
    """(centre x, centre y, width, height) → (left, top, right, bottom)."""
    centre, sides = boxes[..., :2], boxes[..., 2:]
    return np.concatenate([centre - sides / 2, centre + sides / 2], axis=-1)


def _scale(width: int, height: int) -> Boxes:
    return np.array([width, height, width, height], dtype=np.float32)


def _lower(name: str) -> str:
    """A phrase without what Grounding DINO parts phrases with."""
    return " ".join(name.lower().replace(".", " ").split())


def _sentence(names: Sequence[str]) -> str:
    return ". ".join(names) + "."


def _token_spans(names: Sequence[str], offsets: Any) -> list[list[int]]:
    """The positions of each phrase's tokens in the sentence of `_sentence`, by the tokens' character offsets."""
    spans, start = [], 0
    for name in names:
        end = start + len(name)
        spans.append([n for n, (a, b) in enumerate(offsets.tolist()) if a < b and start <= a and b <= end])
        start = end + 2
    return spans
