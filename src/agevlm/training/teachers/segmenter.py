"""A small SAM that learns from nothing to mask what is in a box or under a point."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from transformers import SamConfig, SamImageProcessorPil, SamModel, SamProcessor

from agevlm.documents import Strict
from agevlm.training.arithmetic import autocast, choose_arithmetic
from agevlm.training.foundation import Progress, endless_order, make_optimizer, optimise
from agevlm.training.teachers.pool import Pool, boxes_of, normalised

# Shapes: B pictures, K things asked of a picture, M a mask's side.


class SegmenterSpec(Strict):
    """The SAM and how it is trained."""

    hidden_size: int = Field(96, ge=8)
    """Width of the vision encoder."""
    num_hidden_layers: int = Field(3, ge=1)
    """Its layers."""
    num_attention_heads: int = Field(4, ge=1)
    """Its heads."""
    decoder_hidden_size: int = Field(64, ge=8)
    """Width of the mask decoder."""
    patch_size: int = Field(8, ge=1)
    """Side of a patch in pixels."""
    steps: int = Field(2500, ge=1)
    """Optimiser steps."""
    batch_size: int = Field(16, ge=1)
    """Scenes of a step."""
    prompts_per_image: int = Field(3, ge=1)
    """Things that are asked for in each."""
    point_ratio: float = Field(0.25, ge=0, le=1)
    """Share of the batches whose prompts are points; the others' are boxes."""
    jitter_ratio: float = Field(0.08, ge=0)
    """How far the edges of a box are off, as a share of its sides."""
    learning_rate: float = Field(2e-3, gt=0)
    """Peak of the schedule."""


def make_segmenter(settings: SegmenterSpec, image_size: int) -> tuple[SamModel, SamProcessor]:
    """The SAM before training, and its processor."""
    shared = {"image_size": image_size, "patch_size": settings.patch_size}
    vision: dict[str, Any] = {"hidden_size": settings.hidden_size, **shared}
    vision |= {"num_hidden_layers": settings.num_hidden_layers}
    vision |= {"num_attention_heads": settings.num_attention_heads, "initializer_range": 0.1}
    vision |= {"output_channels": settings.decoder_hidden_size, "num_pos_feats": settings.decoder_hidden_size // 2}
    vision |= {"global_attn_indexes": list(range(settings.num_hidden_layers))}
    decoder = {"hidden_size": settings.decoder_hidden_size, "mlp_dim": 4 * settings.decoder_hidden_size}
    decoder |= {"num_attention_heads": 4, "iou_head_hidden_dim": settings.decoder_hidden_size}
    config = SamConfig(
        initializer_range=0.1,  # 0.02 is for wide layers; narrow ones pass hardly anything on with it
        vision_config=vision,
        prompt_encoder_config={"hidden_size": settings.decoder_hidden_size, **shared},
        mask_decoder_config=decoder,
    )
    pad = {"height": image_size, "width": image_size}
    model = SamModel(config)
    with torch.no_grad():  # transformers draws frequencies so high that neighbours have nothing in common
        model.shared_image_embedding.positional_embedding.normal_()  # the prompt encoder's too: they are one
    return model, SamProcessor(SamImageProcessorPil(size={"longest_edge": image_size}, pad_size=pad))


def train_segmenter(settings: SegmenterSpec, pool: Pool, seed: int, report: Progress) -> tuple[SamModel, SamProcessor]:
    """Train the SAM on boxes that are a little off, and on points in things."""
    torch.manual_seed(seed)
    model, processor = make_segmenter(settings, pool.image_size)
    rng = np.random.default_rng(seed)
    optimizer, schedule = make_optimizer(list(model.parameters()), settings, weight_decay=0.05)
    order, arithmetic = endless_order(len(pool), settings.batch_size, seed), choose_arithmetic(device="cpu")
    for step in range(settings.steps):
        chosen = next(order)
        pixels, masks = pool.pixels[chosen], _prompted(pool, chosen, settings.prompts_per_image, rng)
        as_points = rng.random() < settings.point_ratio
        prompts = _points(masks, rng) if as_points else {"input_boxes": _jittered(masks, settings.jitter_ratio)}
        with autocast(arithmetic):
            inputs = normalised(pixels, processor.image_processor)
            outputs = model(pixel_values=inputs, **prompts, multimask_output=False)
        loss = segmenter_loss(outputs.pred_masks[:, :, 0].float(), outputs.iou_scores[..., 0].float(), masks)
        optimise(loss, list(model.parameters()), optimizer, schedule)
        report("sam", step + 1, settings.steps, loss.item())
    return model.eval(), processor


def segmenter_loss(logits_BKMM: Tensor, scores_BK: Tensor, masks_BKHW: Tensor) -> Tensor:
    """Cross-entropy and Dice of masks in the picture's pixels, and how wrong the score is about the IoU."""
    logits = F.interpolate(logits_BKMM, masks_BKHW.shape[-2:], mode="bilinear", align_corners=False)
    said, truth = logits.sigmoid().flatten(2), masks_BKHW.flatten(2)
    shared = (said * truth).sum(-1)
    dice = 1 - (2 * shared + 1) / (said.sum(-1) + truth.sum(-1) + 1)
    hard = (logits.detach() > 0).flatten(2).float()
    both, either = (hard * truth).sum(-1), torch.maximum(hard, truth).sum(-1)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, masks_BKHW)
    return 5 * cross_entropy + dice.mean() + F.mse_loss(scores_BK, both / either.clamp(min=1))


def _prompted(pool: Pool, chosen: Tensor, num: int, rng: np.random.Generator) -> Tensor:
    """Masks (B, num, H, W) of things of the chosen scenes, drawn with repetition."""
    masks, numbers = pool.masks(chosen), (pool.categories[chosen] >= 0).sum(1).clamp(min=1).numpy()
    picked = torch.from_numpy(rng.integers(numbers[:, None], size=(len(chosen), num)))
    return masks[torch.arange(len(chosen))[:, None], picked]


def _jittered(masks_BKHW: Tensor, ratio: float) -> Tensor:
    """Boxes (B, K, 4) in pixels around masks, each edge off by a share of the side, drawn evenly."""
    boxes = boxes_of(masks_BKHW) * masks_BKHW.shape[-1]
    sides = (boxes[..., 2:] - boxes[..., :2]).repeat(1, 1, 2)
    return (boxes + (2 * torch.rand_like(boxes) - 1) * ratio * sides).clamp(0, masks_BKHW.shape[-1])


def _points(masks_BKHW: Tensor, rng: np.random.Generator) -> dict[str, Tensor]:
    """One point (x, y) inside each mask, as prompts."""
    noise = torch.from_numpy(rng.random(masks_BKHW.shape, dtype=np.float32))
    place = (masks_BKHW * (noise + 0.01)).flatten(2).argmax(-1)
    width = masks_BKHW.shape[-1]
    points = torch.stack([place % width, place // width], dim=-1).float()[:, :, None]
    return {"input_points": points, "input_labels": torch.ones(points.shape[:3], dtype=torch.long)}
