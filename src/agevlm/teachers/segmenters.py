"""Boxes → masks: Segment Anything (SAM) and SAM 2 of transformers, from a directory or a hub id.

The encoder sees a picture once, whatever the number of boxes. SAM 2's image processor needs torchvision, so its
resizing and normalisation, which its documentation states, are done here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from agevlm.teachers.base import Boxes, Masks, Scores
from agevlm.teachers.loading import load, load_model

_BOXES_AT_ONCE = 64
_PIXELS_AT_ONCE = 2**26  # of masks in the making: a quarter of a GiB
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as SAM 2 was trained


class Segmenter(Protocol):
    """Turns boxes into masks."""

    def segment(self, images: Sequence[Image.Image], boxes: Sequence[Boxes]) -> list[tuple[Masks, Scores]]:
        """For each picture a mask (height, width) and a score for each of its boxes."""
        ...


class Sam:
    """SAM (Kirillov et al. 2023, arXiv 2304.02643)."""

    MODEL_TYPES = ("sam",)

    def __init__(self, weights: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        self.model, self.processor = load(weights, "SamModel", self.MODEL_TYPES, dtype, device)

    @torch.inference_mode()
    def segment(self, images: Sequence[Image.Image], boxes: Sequence[Boxes]) -> list[tuple[Masks, Scores]]:
        """As `Segmenter` says."""
        inputs = self.processor.image_processor(list(images), return_tensors="pt")
        pixels = inputs["pixel_values"].to(self.model.device, self.model.dtype)
        embeddings = self.model.get_image_embeddings(pixels)
        side, found = self.model.config.vision_config.image_size, []
        for number, image in enumerate(images):
            height, width = (int(length) for length in inputs["reshaped_input_sizes"][number])
            own = embeddings[number : number + 1]
            found.append(_segment(self.model, own, boxes[number], image, (height, width), side))
        return found


class Sam2:
    """SAM 2 (Ravi et al. 2024, arXiv 2408.00714), on single pictures."""

    MODEL_TYPES = ("sam2", "sam2_video")  # the published weights are those of the video model

    def __init__(self, weights: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        self.model = load_model(weights, "Sam2Model", self.MODEL_TYPES, dtype, device)

    @torch.inference_mode()
    def segment(self, images: Sequence[Image.Image], boxes: Sequence[Boxes]) -> list[tuple[Masks, Scores]]:
        """As `Segmenter` says."""
        side = self.model.config.prompt_encoder_config.image_size
        pixels = normalised_pixels(images, side, _MEAN, _STD).to(self.model.device, self.model.dtype)
        embeddings = self.model.get_image_embeddings(pixels)
        found = []
        for number, image in enumerate(images):
            own = [level[number : number + 1] for level in embeddings]
            found.append(_segment(self.model, own, boxes[number], image, (side, side)))
        return found


def _segment(
    model: Any, embedding: Any, boxes: Boxes, image: Image.Image, size: tuple[int, int], padded: int | None = None
) -> tuple[Masks, Scores]:
    """Masks and scores of the boxes in one picture, which the model sees as `size` (height, width).

    A model that pads pictures to a square of side `padded` has masks of that square: what lies beside is cut off.
    """
    masks: list[Masks] = [np.zeros((0, image.height, image.width), dtype=bool)]
    scores: list[Scores] = [np.zeros(0, dtype=np.float32)]
    scale = torch.tensor([size[1] / image.width, size[0] / image.height]).repeat(2)
    for start in range(0, len(boxes), _BOXES_AT_ONCE):
        scaled = torch.from_numpy(boxes[start : start + _BOXES_AT_ONCE]) * scale
        outputs = model(
            image_embeddings=embedding,
            input_boxes=scaled[None].to(model.device, model.dtype),
            multimask_output=False,
        )
        logits = outputs.pred_masks[0].float()
        if padded is not None:
            logits = F.interpolate(logits, (padded, padded), mode="bilinear", align_corners=False)
            logits = logits[..., : size[0], : size[1]]
        masks.append(masks_of_picture(logits[:, 0], image, 0.0))
        scores.append(outputs.iou_scores[0, :, 0].float().cpu().numpy())
    return np.concatenate(masks), np.clip(np.concatenate(scores), 0, 1)


def masks_of_picture(values: Tensor, image: Image.Image, threshold: float) -> Masks:
    """Small maps (n, h, w) → masks (n, height, width) of the picture where they exceed `threshold`, a few at once."""
    masks: list[Masks] = [np.zeros((0, image.height, image.width), dtype=bool)]
    for few in values.split(max(1, _PIXELS_AT_ONCE // (image.width * image.height))) if len(values) else ():
        full = F.interpolate(few[:, None], (image.height, image.width), mode="bilinear", align_corners=False)
        masks.append((full[:, 0] > threshold).cpu().numpy())
    return np.concatenate(masks)


def normalised_pixels(
    images: Sequence[Image.Image], side: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Tensor:
    """Pictures as (n, 3, side, side): values to [0, 1], squeezed into the square, less `mean`, over `std`."""
    squares = []
    for image in images:
        values = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)[None]
        square = F.interpolate(values, (side, side), mode="bilinear", align_corners=False, antialias=True)
        squares.append((square - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1))
    return torch.cat(squares)
