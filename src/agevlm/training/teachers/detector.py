"""A small Grounding DINO on a frozen `tiny-convnext`, trained densely, in minutes.

Each cell on a thing says its word and its box, so does each query that starts on one, and nothing is matched.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    BertTokenizerFast,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
)

from agevlm.checkpoints import resolve_model
from agevlm.data.scenes import CATEGORIES
from agevlm.documents import Strict
from agevlm.modeling.vision import load_backbone
from agevlm.training.arithmetic import autocast, choose_arithmetic
from agevlm.training.foundation import Progress, endless_order, make_optimizer, optimise
from agevlm.training.teachers.pool import Pool, boxes_of, normalised

# Shapes: B pictures, N cells or queries, Q queries, W words asked, K things of a picture (padded).

MIN_COVERAGE_RATIO = 0.3  # of a cell: from here on it lies on a thing
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class DetectorSpec(Strict):
    """The Grounding DINO and how it is trained."""

    backbone: str = "tiny-convnext"
    """A name of the package, a directory or a hub id. It stays frozen."""
    hidden_size: int = Field(128, ge=32, multiple_of=32)
    """Width of the detector."""
    num_attention_heads: int = Field(4, ge=1)
    """Heads."""
    text_hidden_size: int = Field(64, ge=8)
    """Width of its reader of text."""
    num_queries: int = Field(24, ge=1)
    """Boxes that it proposes."""
    steps: int = Field(2500, ge=1)
    """Optimiser steps."""
    batch_size: int = Field(16, ge=1)
    """Scenes of a step."""
    learning_rate: float = Field(1e-3, gt=0)
    """Peak of the schedule."""


def make_tokenizer() -> BertTokenizerFast:
    """BERT's kind of tokenizer: the world's words whole, any other one in letters.

    Grounding DINO knows the ends of phrases by the numbers that BERT has for its marks, so they have them here.
    """
    marks = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    tokens = [marks.get(number, f"[unused{number}]") for number in range(1030)]
    tokens += [*CATEGORIES, *_LETTERS, *(f"##{letter}" for letter in _LETTERS)]
    return BertTokenizerFast(vocab={token: number for number, token in enumerate(tokens)}, do_lower_case=True)


def make_detector(
    settings: DetectorSpec, image_size: int
) -> tuple[GroundingDinoForObjectDetection, GroundingDinoProcessor]:
    """The Grounding DINO before training, upon its frozen backbone, and its processor."""
    tokenizer = make_tokenizer()
    backbone = load_backbone(resolve_model(settings.backbone))
    num_heads, wide = settings.num_attention_heads, 2 * settings.hidden_size
    text = {"model_type": "bert", "vocab_size": len(tokenizer), "hidden_size": settings.text_hidden_size}
    text |= {
        "num_hidden_layers": 1,
        "num_attention_heads": num_heads,
        "intermediate_size": 2 * settings.text_hidden_size,
    }
    config = GroundingDinoConfig(
        backbone_config=backbone.config,
        text_config=text,
        num_queries=settings.num_queries,
        d_model=settings.hidden_size,
        encoder_layers=1,
        decoder_layers=1,
        decoder_bbox_embed_share=False,
        encoder_ffn_dim=wide,
        decoder_ffn_dim=wide,
        encoder_attention_heads=num_heads,
        decoder_attention_heads=num_heads,
        num_feature_levels=1,
        max_text_len=64,
        dropout=0.0,
        fusion_dropout=0.0,
        fusion_droppath=0.0,
        text_enhancer_dropout=0.0,
    )
    model = GroundingDinoForObjectDetection(config)
    model.model.backbone.conv_encoder.model.load_state_dict(backbone.state_dict())
    model.model.freeze_backbone()
    size = {"shortest_edge": image_size, "longest_edge": image_size}
    pictures = GroundingDinoImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return model, GroundingDinoProcessor(pictures, tokenizer)


def train_detector(
    settings: DetectorSpec, pool: Pool, seed: int, report: Progress
) -> tuple[GroundingDinoForObjectDetection, GroundingDinoProcessor]:
    """Train the Grounding DINO to find some of the words, others each time: by each cell, and by each query."""
    torch.manual_seed(seed)
    model, processor = make_detector(settings, pool.image_size)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rng = np.random.default_rng(seed)
    optimizer, schedule = make_optimizer(parameters, settings, weight_decay=0.05)
    order, arithmetic = endless_order(len(pool), settings.batch_size, seed), choose_arithmetic(device="cpu")
    for step in range(settings.steps):
        chosen = next(order)
        pixels, masks = pool.pixels[chosen], pool.masks(chosen)
        if step % 2:
            pixels, masks = pixels.flip(-1), masks.flip(-1)
        asked = rng.permutation(len(CATEGORIES))[: rng.integers(2, len(CATEGORIES), endpoint=True)]
        categories, masks = of_asked(pool.categories[chosen], masks, asked)
        with autocast(arithmetic):
            inputs = normalised(pixels, processor.image_processor)
            found = _detect(model, processor.tokenizer, inputs, [CATEGORIES[number] for number in asked])
        truth = boxes_of(masks)
        loss = cells_loss(found.cell_logits, found.cell_boxes, categories, truth, masks)
        loss = loss + queries_loss(found.logits, found.boxes, found.references, categories, truth)
        optimise(loss, parameters, optimizer, schedule)
        report("grounding-dino", step + 1, settings.steps, loss.item())
    return model.eval(), processor


def of_asked(categories_BK: Tensor, masks_BKHW: Tensor, asked: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Categories as their places among those asked, and the masks; of things that are not asked, -1 and nothing."""
    places = torch.full((len(CATEGORIES) + 1,), -1)  # the last one is for -1
    places[torch.from_numpy(asked)] = torch.arange(len(asked))
    categories = places[categories_BK]
    return categories, masks_BKHW * (categories >= 0)[..., None, None]


@dataclass(frozen=True)
class _Found:
    """What the cells of the feature map say, and the queries. Boxes are (centre x, centre y, width, height)."""

    cell_logits: Tensor  # (B, N, W)
    cell_boxes: Tensor  # (B, N, 4)
    logits: Tensor  # (B, Q, W)
    boxes: Tensor  # (B, Q, 4)
    references: Tensor  # (B, Q, 4), where queries start from


def _detect(model: Any, tokenizer: Any, pixels: Tensor, words: Sequence[str]) -> _Found:
    text = tokenizer(". ".join(words) + ".", return_tensors="pt")
    places = [int((text.input_ids[0] == tokenizer.convert_tokens_to_ids(word)).nonzero()) for word in words]
    sentence = {key: value.expand(len(pixels), -1) for key, value in text.items()}
    outputs = model(pixel_values=pixels, pixel_mask=torch.ones_like(pixels[:, 0], dtype=torch.long), **sentence)
    return _Found(
        outputs.enc_outputs_class[..., places].float(),
        outputs.enc_outputs_coord_logits.float().sigmoid(),
        outputs.logits[..., places].float(),
        outputs.pred_boxes.float(),
        outputs.init_reference_points.float().detach(),
    )


def cells_loss(
    logits_BNW: Tensor, boxes_BN4: Tensor, categories_BK: Tensor, truth_BK4: Tensor, masks_BKHW: Tensor
) -> Tensor:
    """What cells of a square grid say of words, and the boxes of those that lie on things.

    The thing that covers most of a cell owns it; each thing owns the cell that it covers best. A cell of which things
    cover a little says what it likes.
    """
    cell = masks_BKHW.shape[-1] // math.isqrt(logits_BNW.shape[1])
    shares_BKN = F.avg_pool2d(masks_BKHW, cell).flatten(2)
    best_BN, owner_BN = shares_BKN.max(dim=1)
    on_thing_BN = best_BN >= MIN_COVERAGE_RATIO
    peak_BK = shares_BKN.argmax(dim=2)
    there_BK = categories_BK >= 0
    batch_BK = torch.arange(len(peak_BK))[:, None].expand_as(peak_BK)
    on_thing_BN[batch_BK[there_BK], peak_BK[there_BK]] = True
    free_BN = ~on_thing_BN & (best_BN > 0.05)
    return _loss(logits_BNW, boxes_BN4, categories_BK, truth_BK4, owner_BN, on_thing_BN, free_BN)


def queries_loss(
    logits_BQW: Tensor, boxes_BQ4: Tensor, references_BQ4: Tensor, categories_BK: Tensor, truth_BK4: Tensor
) -> Tensor:
    """What queries say of words, and the boxes of those that start on a thing, with an IoU of at least half.

    One that starts between things and nothing says what it likes.
    """
    iou_BQK, _ = _overlaps(_corners(references_BQ4)[:, :, None], truth_BK4[:, None])
    best_BQ, owner_BQ = iou_BQK.max(dim=2)
    on_thing_BQ, free_BQ = best_BQ >= 0.5, (best_BQ >= 0.3) & (best_BQ < 0.5)
    return _loss(logits_BQW, boxes_BQ4, categories_BK, truth_BK4, owner_BQ, on_thing_BQ, free_BQ)


def _loss(
    logits_BNW: Tensor,
    boxes_BN4: Tensor,
    categories_BK: Tensor,
    truth_BK4: Tensor,
    owner_BN: Tensor,
    on_thing_BN: Tensor,
    free_BN: Tensor,
) -> Tensor:
    """Cross-entropy of words of all but the free, L1 and overlap of boxes of those on things; per one of these."""
    number = on_thing_BN.sum().clamp(min=1)
    category_BN = categories_BK.gather(1, owner_BN)
    targets = F.one_hot(category_BN.clamp(min=0), logits_BNW.shape[-1]) * on_thing_BN[..., None]
    each = F.binary_cross_entropy_with_logits(logits_BNW, targets.float(), reduction="none").sum(-1)
    truth = truth_BK4.gather(1, owner_BN[..., None].expand(-1, -1, 4))[on_thing_BN]
    found = _corners(boxes_BN4[on_thing_BN])
    overlap, around = _overlaps(found, truth)
    generalised = overlap - around  # of Rezatofighi et al. 2019, arXiv 1902.09630
    off = 5 * (found - truth).abs().sum(-1) + 2 * (1 - generalised)
    return (each[~free_BN].sum() + off.sum()) / number


def _corners(boxes: Tensor) -> Tensor:
    """(centre x, centre y, width, height) → (left, top, right, bottom)."""
    return torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], dim=-1)


def _overlaps(one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
    """IoU of boxes (…, 4) pairwise, and the share of the box around both that neither covers."""
    shared = (
        (torch.minimum(one[..., 2:], two[..., 2:]) - torch.maximum(one[..., :2], two[..., :2])).clamp(min=0).prod(-1)
    )
    around = (
        (torch.maximum(one[..., 2:], two[..., 2:]) - torch.minimum(one[..., :2], two[..., :2])).clamp(min=0).prod(-1)
    )
    areas = [(box[..., 2:] - box[..., :2]).clamp(min=0).prod(-1) for box in (one, two)]
    union = areas[0] + areas[1] - shared
    return shared / union.clamp(min=1e-6), (around - union) / around.clamp(min=1e-6)
