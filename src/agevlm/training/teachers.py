"""Teachers of the embedded world, made from nothing: a small OWLv2 that turns words into boxes, a small SAM.

They stand for the large ones, are saved in their formats and loaded by their classes, and are good: the whole path of
photographs (`agevlm ground`, then training on what it found) runs and is measured with them. The OWLv2 learns densely:
each patch on a thing says its word and its box. The SAM learns to mask the thing in a box or under a point.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from transformers import (
    CLIPTokenizerFast,
    Owlv2Config,
    Owlv2ForObjectDetection,
    Owlv2ImageProcessorPil,
    Owlv2Processor,
    SamConfig,
    SamImageProcessorPil,
    SamModel,
    SamProcessor,
)

from agevlm.data.masks import decode_mask
from agevlm.data.scenes import CATEGORIES, WorldSpec, draw_scene
from agevlm.files import write_beside
from agevlm.training.foundation import Progress, Strict, endless_order, make_optimizer, optimise

# Shapes: B pictures, N patches, Q words asked, K things of a picture (padded), M pixels of a mask's side.

MIN_COVERAGE_RATIO = 0.3  # of a patch: from here on it lies on a thing
MAX_THINGS = 8
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class DetectorSpec(Strict):
    """The OWLv2 and how it is trained."""

    hidden_size: int = Field(128, ge=8)
    num_hidden_layers: int = Field(4, ge=1)
    num_attention_heads: int = Field(4, ge=1)
    text_hidden_size: int = Field(64, ge=8)
    patch_size: int = Field(8, ge=1)
    steps: int = Field(4000, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(1e-3, gt=0)


class SegmenterSpec(Strict):
    """The SAM and how it is trained."""

    hidden_size: int = Field(96, ge=8)
    num_hidden_layers: int = Field(3, ge=1)
    num_attention_heads: int = Field(4, ge=1)
    decoder_hidden_size: int = Field(64, ge=8)
    patch_size: int = Field(8, ge=1)
    steps: int = Field(2000, ge=1)
    batch_size: int = Field(16, ge=1)
    prompts_per_image: int = Field(3, ge=1)
    point_ratio: float = Field(0.25, ge=0, le=1)  # of batches whose prompts are points; the others' are boxes
    jitter_ratio: float = Field(0.08, ge=0)  # of a box's sides: how far its edges are off
    learning_rate: float = Field(1e-3, gt=0)


class TeacherSpec(Strict):
    """The recipe of both teachers."""

    seed: int = 0
    world: WorldSpec = WorldSpec()
    num_scenes: int = Field(16_000, ge=4)
    num_workers: int = Field(2, ge=0)
    detector: DetectorSpec = DetectorSpec()
    segmenter: SegmenterSpec = SegmenterSpec()


def train_teachers(out: str | Path, spec: TeacherSpec, progress: Progress | None = None) -> None:
    """Train both and write them to `out/owlv2` and `out/sam`, each with its recipe."""
    report = progress or (lambda *_: None)
    pool = draw_pool(spec)
    for name, train in (("owlv2", train_detector), ("sam", train_segmenter)):
        model, processor = train(spec, pool, report)
        with write_beside(Path(out) / name) as beside:
            model.save_pretrained(beside)
            processor.save_pretrained(beside)
            (beside / "teacher.yaml").write_text(yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False))


# ------------------------------------------------------------------------------------------------------------ scenes


class Pool:
    """Drawn scenes: `pixels` (S, 3, H, W) uint8, `categories` (S, K) with -1 for none, `masks` (S, K, H, W) packed."""

    def __init__(self, drawn: Sequence[tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8]]]) -> None:
        pixels, categories, packed = (torch.from_numpy(np.stack(parts)) for parts in zip(*drawn, strict=True))
        self.pixels, self.categories, self.packed = pixels, categories, packed

    def __len__(self) -> int:
        return len(self.pixels)

    def masks(self, chosen: Tensor) -> Tensor:
        """Masks (B, K, H, W) of the chosen scenes, in float32."""
        side = self.pixels.shape[-1]
        bits = np.unpackbits(self.packed[chosen].numpy(), axis=-1)[..., : side * side]
        return torch.from_numpy(bits.astype(np.float32)).view(len(chosen), MAX_THINGS, side, side)


class _Scenes(Dataset[tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8]]]):
    def __init__(self, spec: TeacherSpec) -> None:
        self.spec = spec

    def __len__(self) -> int:
        return self.spec.num_scenes

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8]]:
        scene = draw_scene(self.spec.world, self.spec.seed, index)
        things = scene.annotation.instances[:MAX_THINGS]
        categories = np.full(MAX_THINGS, -1)
        masks = np.zeros((MAX_THINGS, *scene.image.shape[:2]), dtype=bool)
        for number, thing in enumerate(things):
            categories[number], masks[number] = CATEGORIES.index(thing.category), decode_mask(thing.mask)
        return scene.image.transpose(2, 0, 1), categories, np.packbits(masks.reshape(MAX_THINGS, -1), axis=-1)


def draw_pool(spec: TeacherSpec) -> Pool:
    """All scenes, drawn in worker processes."""
    loader = DataLoader(_Scenes(spec), batch_size=64, num_workers=spec.num_workers, collate_fn=list)
    return Pool([scene for batch in loader for scene in batch])


def boxes_of(masks_BKHW: Tensor) -> Tensor:
    """Boxes (B, K, 4) around masks: left, top, right, bottom as shares of the sides; zeros around nothing."""
    sides = []
    for axis in (-2, -1):  # columns, then rows
        there = masks_BKHW.amax(dim=axis) > 0
        length = there.shape[-1]
        first = there.float().argmax(-1)
        last = length - there.flip(-1).float().argmax(-1)
        sides += [torch.stack([first, last], dim=-1).float() / length]
    boxes = torch.stack([sides[0][..., 0], sides[1][..., 0], sides[0][..., 1], sides[1][..., 1]], dim=-1)
    return boxes * (masks_BKHW.flatten(2).amax(-1) > 0)[..., None]


# ---------------------------------------------------------------------------------------------------------- detector


def make_tokenizer() -> CLIPTokenizerFast:
    """CLIP's kind of tokenizer, of single letters: it can spell any word."""
    tokens = ["!", *_LETTERS, *(f"{letter}</w>" for letter in _LETTERS), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    return CLIPTokenizerFast(vocab=vocabulary, merges=[], pad_token="!", unk_token="<|endoftext|>")


def make_detector(spec: TeacherSpec) -> tuple[Owlv2ForObjectDetection, Owlv2Processor]:
    """The OWLv2 before training, and its processor."""
    settings, tokenizer = spec.detector, make_tokenizer()
    size, layers = spec.world.image_size, {"num_hidden_layers": settings.num_hidden_layers}
    vision = {"hidden_size": settings.hidden_size, "intermediate_size": 4 * settings.hidden_size, **layers}
    vision |= {"num_attention_heads": settings.num_attention_heads}
    text = {"hidden_size": settings.text_hidden_size, "intermediate_size": 2 * settings.text_hidden_size}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 16}
    text |= {"vocab_size": len(tokenizer), "pad_token_id": 0}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = Owlv2Config(
        text_config=text,
        vision_config=vision | {"image_size": size, "patch_size": settings.patch_size},
        projection_dim=settings.text_hidden_size,
    )
    processor = Owlv2Processor(Owlv2ImageProcessorPil(size={"height": size, "width": size}), tokenizer)
    return Owlv2ForObjectDetection(config), processor


def train_detector(spec: TeacherSpec, pool: Pool, report: Progress) -> tuple[Owlv2ForObjectDetection, Owlv2Processor]:
    """Train the OWLv2: every patch on a thing says its category and its box, the others say nothing."""
    torch.manual_seed(spec.seed)
    settings = spec.detector
    model, processor = make_detector(spec)
    words = processor.tokenizer(list(CATEGORIES), return_tensors="pt", padding="max_length", max_length=16)
    optimizer, schedule = make_optimizer(list(model.parameters()), settings, weight_decay=0.05)
    order = endless_order(len(pool), settings.batch_size, spec.seed)
    for step in range(settings.steps):
        chosen = next(order)
        pixels, masks = pool.pixels[chosen], pool.masks(chosen)
        if step % 2:
            pixels, masks = pixels.flip(-1), masks.flip(-1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits, boxes = _detect(model, normalised(pixels, processor.image_processor), words)
        loss = detector_loss(logits.float(), boxes.float(), pool.categories[chosen], masks, settings.patch_size)
        optimise(loss, list(model.parameters()), optimizer, schedule)
        report("owlv2", step + 1, settings.steps, loss.item())
    return model.eval(), processor


def _detect(model: Any, pixels: Tensor, words: Any) -> tuple[Tensor, Tensor]:
    """Logits (B, N, Q) of words and boxes (B, N, 4) of patches, the words read once for all pictures."""
    grid, _ = model.image_embedder(pixels)
    patches = grid.flatten(1, 2)
    text = model.owlv2.get_text_features(words.input_ids, words.attention_mask)
    text = getattr(text, "pooler_output", text)
    queries = F.normalize(text, dim=-1)[None].expand(len(pixels), -1, -1)
    logits, _ = model.class_predictor(patches, queries, torch.ones(queries.shape[:2], dtype=torch.bool))
    return logits, model.box_predictor(patches, grid)


def detector_loss(
    logits_BNQ: Tensor, boxes_BN4: Tensor, categories_BK: Tensor, masks_BKHW: Tensor, patch_size: int
) -> Tensor:
    """Cross-entropy of each word at each patch, and L1 and overlap of the boxes of patches that lie on things.

    The thing that covers most of a patch owns it; each thing owns the patch that it covers best. A patch that things
    cover a little says what it likes. `boxes_BN4` are (centre x, centre y, width, height).
    """
    shares_BKN = F.avg_pool2d(masks_BKHW, patch_size).flatten(2)
    best_BN, owner_BN = shares_BKN.max(dim=1)
    on_thing_BN = best_BN >= MIN_COVERAGE_RATIO
    peak_BK = shares_BKN.argmax(dim=2)
    there_BK = categories_BK >= 0
    batch_BK = torch.arange(len(peak_BK))[:, None].expand_as(peak_BK)
    on_thing_BN[batch_BK[there_BK], peak_BK[there_BK]] = True
    free_BN = ~on_thing_BN & (best_BN > 0.05)
    category_BN = categories_BK.gather(1, owner_BN)
    targets = F.one_hot(category_BN.clamp(min=0), logits_BNQ.shape[-1]) * on_thing_BN[..., None]
    each = F.binary_cross_entropy_with_logits(logits_BNQ, targets.float(), reduction="none").sum(-1)
    said = each[~free_BN].sum() / on_thing_BN.sum().clamp(min=1)
    truth_BN4 = boxes_of(masks_BKHW).gather(1, owner_BN[..., None].expand(-1, -1, 4))
    truth, found = truth_BN4[on_thing_BN], boxes_BN4[on_thing_BN]
    corners = torch.cat([found[:, :2] - found[:, 2:] / 2, found[:, :2] + found[:, 2:] / 2], dim=1)
    return said + 5 * F.l1_loss(corners, truth) * 4 + 2 * (1 - _generalised_iou(corners, truth)).mean()


def _generalised_iou(one: Tensor, two: Tensor) -> Tensor:
    """Of boxes (n, 4) pairwise (Rezatofighi et al. 2019, arXiv 1902.09630)."""
    shared = (torch.minimum(one[:, 2:], two[:, 2:]) - torch.maximum(one[:, :2], two[:, :2])).clamp(min=0).prod(1)
    around = (torch.maximum(one[:, 2:], two[:, 2:]) - torch.minimum(one[:, :2], two[:, :2])).clamp(min=0).prod(1)
    union = sum((box[:, 2:] - box[:, :2]).clamp(min=0).prod(1) for box in (one, two)) - shared
    return shared / union.clamp(min=1e-6) - (around - union) / around.clamp(min=1e-6)


# --------------------------------------------------------------------------------------------------------- segmenter


def make_segmenter(spec: TeacherSpec) -> tuple[SamModel, SamProcessor]:
    """The SAM before training, and its processor."""
    settings, size = spec.segmenter, spec.world.image_size
    shared = {"image_size": size, "patch_size": settings.patch_size}
    vision: dict[str, Any] = {"hidden_size": settings.hidden_size, **shared}
    vision |= {"num_hidden_layers": settings.num_hidden_layers}
    vision |= {"num_attention_heads": settings.num_attention_heads, "initializer_range": 0.02}
    vision |= {"output_channels": settings.decoder_hidden_size, "num_pos_feats": settings.decoder_hidden_size // 2}
    vision |= {"global_attn_indexes": list(range(settings.num_hidden_layers))}
    decoder = {"hidden_size": settings.decoder_hidden_size, "mlp_dim": 4 * settings.decoder_hidden_size}
    decoder |= {"num_attention_heads": 4, "iou_head_hidden_dim": settings.decoder_hidden_size}
    config = SamConfig(
        vision_config=vision,
        prompt_encoder_config={"hidden_size": settings.decoder_hidden_size, **shared},
        mask_decoder_config=decoder,
    )
    pad = {"height": size, "width": size}
    return SamModel(config), SamProcessor(SamImageProcessorPil(size={"longest_edge": size}, pad_size=pad))


def train_segmenter(spec: TeacherSpec, pool: Pool, report: Progress) -> tuple[SamModel, SamProcessor]:
    """Train the SAM on boxes that are a little off, and on points in things."""
    torch.manual_seed(spec.seed)
    settings = spec.segmenter
    model, processor = make_segmenter(spec)
    rng = np.random.default_rng(spec.seed)
    optimizer, schedule = make_optimizer(list(model.parameters()), settings, weight_decay=0.05)
    order = endless_order(len(pool), settings.batch_size, spec.seed)
    for step in range(settings.steps):
        chosen = next(order)
        pixels, masks = pool.pixels[chosen], _prompted(pool, chosen, settings.prompts_per_image, rng)
        as_points = rng.random() < settings.point_ratio
        prompts = _points(masks, rng) if as_points else {"input_boxes": _jittered(masks, settings.jitter_ratio)}
        with torch.autocast("cpu", dtype=torch.bfloat16):
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


def normalised(pixels: Tensor, processor: Any) -> Tensor:
    """Pixels (B, 3, H, W) in [0, 255] as an image processor gives pictures of its own size."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    return (pixels.float() / 255 - mean) / std
