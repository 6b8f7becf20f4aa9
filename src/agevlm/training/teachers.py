"""Teachers of the embedded world: a small Grounding DINO that turns words into boxes, a small SAM for their masks.

They stand for the large ones, are saved in their formats and loaded by their classes, and are good: the whole path of
photographs (`agevlm ground`, then training on what it found) runs and is measured with them. The Grounding DINO stands
on a frozen `tiny-convnext` and learns densely, in minutes: each cell on a thing says its word and its box, so does each
query that starts on one, and nothing is matched. The SAM learns from nothing to mask what is in a box or under a point.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
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
    BertTokenizerFast,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessorPil,
    GroundingDinoProcessor,
    SamConfig,
    SamImageProcessorPil,
    SamModel,
    SamProcessor,
)

from agevlm.checkpoints import resolve_model
from agevlm.data.masks import decode_mask
from agevlm.data.scenes import CATEGORIES, WorldSpec, draw_scene
from agevlm.files import write_beside
from agevlm.modeling.vision import load_backbone
from agevlm.training.foundation import Progress, Strict, endless_order, make_optimizer, optimise

# Shapes: B pictures, N cells or queries, Q queries, W words asked, K things of a picture (padded), M a mask's side.

MIN_COVERAGE_RATIO = 0.3  # of a cell: from here on it lies on a thing
MAX_THINGS = 8
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


class DetectorSpec(Strict):
    """The Grounding DINO and how it is trained."""

    backbone: str = "tiny-convnext"  # a name of the package, a directory or a hub id; frozen
    hidden_size: int = Field(128, ge=32, multiple_of=32)
    num_attention_heads: int = Field(4, ge=1)
    text_hidden_size: int = Field(64, ge=8)
    num_queries: int = Field(24, ge=1)
    steps: int = Field(2500, ge=1)
    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(1e-3, gt=0)


class SegmenterSpec(Strict):
    """The SAM and how it is trained."""

    hidden_size: int = Field(96, ge=8)
    num_hidden_layers: int = Field(3, ge=1)
    num_attention_heads: int = Field(4, ge=1)
    decoder_hidden_size: int = Field(64, ge=8)
    patch_size: int = Field(8, ge=1)
    steps: int = Field(2500, ge=1)
    batch_size: int = Field(16, ge=1)
    prompts_per_image: int = Field(3, ge=1)
    point_ratio: float = Field(0.25, ge=0, le=1)  # of batches whose prompts are points; the others' are boxes
    jitter_ratio: float = Field(0.08, ge=0)  # of a box's sides: how far its edges are off
    learning_rate: float = Field(2e-3, gt=0)


class TeacherSpec(Strict):
    """The recipe of both teachers."""

    seed: int = 0
    world: WorldSpec = WorldSpec()
    num_scenes: int = Field(16_000, ge=4)
    num_workers: int = Field(2, ge=0)
    detector: DetectorSpec = DetectorSpec()
    segmenter: SegmenterSpec = SegmenterSpec()


def train_teachers(out: str | Path, spec: TeacherSpec, progress: Progress | None = None) -> None:
    """Train both and write them to `out/grounding-dino` and `out/sam`, each with its recipe."""
    report = progress or (lambda *_: None)
    pool = draw_pool(spec)
    for name, train in (("grounding-dino", train_detector), ("sam", train_segmenter)):
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


def make_tokenizer() -> BertTokenizerFast:
    """BERT's kind of tokenizer: the world's words whole, any other one in letters.

    Grounding DINO knows the ends of phrases by the numbers that BERT has for its marks, so they have them here.
    """
    marks = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]", 1012: ".", 1029: "?"}
    tokens = [marks.get(number, f"[unused{number}]") for number in range(1030)]
    tokens += [*CATEGORIES, *_LETTERS, *(f"##{letter}" for letter in _LETTERS)]
    return BertTokenizerFast(vocab={token: number for number, token in enumerate(tokens)}, do_lower_case=True)


def make_detector(spec: TeacherSpec) -> tuple[GroundingDinoForObjectDetection, GroundingDinoProcessor]:
    """The Grounding DINO before training, upon its frozen backbone, and its processor."""
    settings, tokenizer = spec.detector, make_tokenizer()
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
    size = {"shortest_edge": spec.world.image_size, "longest_edge": spec.world.image_size}
    pictures = GroundingDinoImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return model, GroundingDinoProcessor(pictures, tokenizer)


def train_detector(
    spec: TeacherSpec, pool: Pool, report: Progress
) -> tuple[GroundingDinoForObjectDetection, GroundingDinoProcessor]:
    """Train the Grounding DINO to find some of the words, others each time: by each cell, and by each query."""
    torch.manual_seed(spec.seed)
    settings = spec.detector
    model, processor = make_detector(spec)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rng = np.random.default_rng(spec.seed)
    optimizer, schedule = make_optimizer(parameters, settings, weight_decay=0.05)
    order = endless_order(len(pool), settings.batch_size, spec.seed)
    for step in range(settings.steps):
        chosen = next(order)
        pixels, masks = pool.pixels[chosen], pool.masks(chosen)
        if step % 2:
            pixels, masks = pixels.flip(-1), masks.flip(-1)
        asked = rng.permutation(len(CATEGORIES))[: rng.integers(2, len(CATEGORIES), endpoint=True)]
        categories, masks = of_asked(pool.categories[chosen], masks, asked)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inputs = normalised(pixels, processor.image_processor)
            found = _detect(model, processor.tokenizer, inputs, [CATEGORIES[number] for number in asked])
        loss = cells_loss(found.cell_logits, found.cell_boxes, categories, masks)
        loss = loss + queries_loss(found.logits, found.boxes, found.references, categories, masks)
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


def cells_loss(logits_BNW: Tensor, boxes_BN4: Tensor, categories_BK: Tensor, masks_BKHW: Tensor) -> Tensor:
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
    return _loss(logits_BNW, boxes_BN4, categories_BK, boxes_of(masks_BKHW), owner_BN, on_thing_BN, free_BN)


def queries_loss(
    logits_BQW: Tensor, boxes_BQ4: Tensor, references_BQ4: Tensor, categories_BK: Tensor, masks_BKHW: Tensor
) -> Tensor:
    """What queries say of words, and the boxes of those that start on a thing, with an IoU of at least half.

    One that starts between things and nothing says what it likes.
    """
    truth_BK4 = boxes_of(masks_BKHW)
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


# --------------------------------------------------------------------------------------------------------- segmenter


def make_segmenter(spec: TeacherSpec) -> tuple[SamModel, SamProcessor]:
    """The SAM before training, and its processor."""
    settings, size = spec.segmenter, spec.world.image_size
    shared = {"image_size": size, "patch_size": settings.patch_size}
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
    pad = {"height": size, "width": size}
    model = SamModel(config)
    with torch.no_grad():  # transformers draws frequencies so high that neighbours have nothing in common
        model.shared_image_embedding.positional_embedding.normal_()  # the prompt encoder's too: they are one
    return model, SamProcessor(SamImageProcessorPil(size={"longest_edge": size}, pad_size=pad))


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
