"""The two foundation models of the embedded world, made from nothing: a ConvNeXt that knows words, a LLaMA.

They stand for a CLIP-trained ConvNeXt and a pretrained LLaMA, are saved in the same formats, and are all that the four
stages start from. The ConvNeXt learns by contrast with words: each cell of its feature map against the words for what
lies there (category, colour, how many of its category the caption names, middle or rim of the thing), and the whole
picture against the words of its caption (a word is in a picture where some cell says it).
The LLaMA reads captions and conversations about scenes whose pictures it never sees, so it learns the world's prior.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset
from transformers import (
    ConvNextBackbone,
    ConvNextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    ViTImageProcessorPil,
    get_cosine_schedule_with_warmup,
)

from agevlm.data.chat import tokenise_conversation
from agevlm.data.language import make_conversations
from agevlm.data.masks import decode_mask, mask_to_grid
from agevlm.data.scenes import CATEGORIES, COLOURS, WorldSpec, draw_scene
from agevlm.data.schema import IGNORE_INDEX, AnnotatedImage, Conversation
from agevlm.documents import Strict, read_yaml
from agevlm.files import write_beside
from agevlm.training.arithmetic import autocast, choose_arithmetic
from agevlm.training.dataset import without_pictures
from agevlm.training.depthwise import speed_up_depthwise
from agevlm.training.recipe import AtOnce, Seed, Steps
from agevlm.training.tokenizer import build_tokenizer

# Shapes: B pictures, N cells of the grid, G groups of words, W words of a group, C categories.

BACKGROUND = len(CATEGORIES)
WORDS: dict[str, tuple[str, ...]] = {  # a cell says one word of each group, or any
    "category": (*CATEGORIES, "background"),
    "colour": tuple(COLOURS),
    "number": ("one", "two", "three", "four", "five", "six"),  # things of its category in the picture; six or more
    "part": ("middle", "rim"),
}
MIDDLE, RIM = range(2)
MIN_COVERAGE_RATIO = 0.3  # of a cell: from here on the cell must say the object's words
MAX_BACKGROUND_RATIO = 0.05  # of a cell: up to here it must say "background"; between the two it may say anything

MODELS = ("tiny-llama", "tiny-convnext")  # in the order in which they are trained
RECIPE = "foundation.yaml"  # beside each

Progress = Callable[[str, int, int, float], None]  # name of the model, step, number of steps, loss


class VisionSpec(Strict):
    """The ConvNeXt and how it is trained."""

    hidden_sizes: tuple[int, ...] = (64, 128)
    """Channels of each stage of the ConvNeXt."""
    depths: tuple[int, ...] = (2, 6)
    """Layers of each stage."""
    patch_size: int = Field(4, ge=1)
    """Side of the patches of its stem in pixels."""
    steps: Steps = 5000
    """Optimiser steps."""
    batch_size: AtOnce = 32
    """Scenes of a step."""
    learning_rate: float = Field(2e-3, gt=0)
    """Peak of the schedule."""
    weight_decay: float = Field(0.05, ge=0)
    """Of all weights."""
    picture_weight: float = Field(0.5, ge=0)
    """Of the contrast of whole pictures, beside that of cells."""


class LanguageSpec(Strict):
    """The LLaMA and how it is trained."""

    num_scenes: int = Field(20_000, ge=8)
    """How many of the scenes are read about, and never seen."""
    hidden_size: int = Field(128, ge=8)
    """Width of the decoder."""
    intermediate_size: int = Field(344, ge=8)
    """Width of its MLPs."""
    num_hidden_layers: int = Field(4, ge=1)
    """Layers."""
    num_attention_heads: int = Field(4, ge=1)
    """Heads of queries."""
    num_key_value_heads: int = Field(4, ge=1)
    """Heads of keys and values."""
    steps: Steps = 1500
    """Optimiser steps."""
    batch_size: AtOnce = 64
    """Texts of a step."""
    learning_rate: float = Field(2e-3, gt=0)
    """Peak of the schedule."""


class FoundationSpec(Strict):
    """The recipe of both foundation models."""

    seed: Seed = 0
    """Of scenes, weights and order."""
    world: WorldSpec = WorldSpec()
    """The world of most scenes."""
    crowded: WorldSpec = WorldSpec(repeat_ratio=0.6, min_objects=3)
    """The world of the last of them: more of the same, something to count."""
    crowded_ratio: float = Field(0.25, ge=0, le=1)
    """Share of the scenes that are crowded."""
    num_scenes: int = Field(32_000, ge=8)
    """How many scenes."""
    num_workers: int = Field(2, ge=0)
    """Processes that draw them."""
    vision: VisionSpec = VisionSpec()
    """The ConvNeXt."""
    language: LanguageSpec = LanguageSpec()
    """The LLaMA."""


def train_foundation(out: str | Path, spec: FoundationSpec, progress: Progress | None = None) -> None:
    """Train both models and write them to `out/tiny-convnext` and `out/tiny-llama`, each with its recipe.

    Takes about half an hour on one core with the default recipe, which is recipes/foundation/tiny.yaml. The same recipe
    gives the same scenes everywhere; weights agree as far as the machine's arithmetic does. A model of the same recipe
    that is there stays, so a run that was stopped goes on with the one that it was at.
    """
    report = progress or (lambda *_: None)
    out = Path(out)
    if all(made_by(out / name, spec) for name in MODELS):
        return
    only_read = made_by(out / "tiny-convnext", spec)  # about the scenes: nobody has to see them
    pixels, targets, annotations = draw_pool(spec, spec.language.num_scenes if only_read else None)
    if not made_by(out / "tiny-llama", spec):
        language, tokenizer = train_language(spec, annotations[: spec.language.num_scenes], report)
        _save(out / "tiny-llama", spec, language, tokenizer)
    if not made_by(out / "tiny-convnext", spec):
        vision = train_vision(spec, pixels, targets, report)
        _save(out / "tiny-convnext", spec, vision, image_processor(spec.world.image_size))


def image_processor(image_size: int) -> ViTImageProcessorPil:
    """The processor of the embedded world: the whole picture squeezed into a square, values in [-1, 1]."""
    size = {"height": image_size, "width": image_size}
    return ViTImageProcessorPil(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=2)


def _save(directory: Path, spec: FoundationSpec, *parts: Any) -> None:
    with write_beside(directory) as beside:
        for part in parts:
            part.save_pretrained(beside)
        (beside / RECIPE).write_text(yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False), encoding="utf-8")


def made_by(directory: Path, spec: FoundationSpec) -> bool:
    """Whether a directory holds a foundation model that was made by this recipe."""
    known = directory / RECIPE
    return known.exists() and read_yaml(known) == spec.model_dump(mode="json")


# ---------------------------------------------------------------------------------------------------------- scenes


class _Pool(Dataset[tuple[NDArray[np.uint8], NDArray[np.int64], AnnotatedImage]]):
    """Scenes by index: pixels (3, H, W), targets (G, h, w) of words, annotation."""

    def __init__(self, spec: FoundationSpec) -> None:
        self.spec = spec
        stride = spec.vision.patch_size * 2 ** (len(spec.vision.depths) - 1)
        self.grid = (spec.world.image_size // stride,) * 2

    def __len__(self) -> int:
        return self.spec.num_scenes

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], AnnotatedImage]:
        crowded = index >= self.spec.num_scenes * (1 - self.spec.crowded_ratio)
        scene = draw_scene(self.spec.crowded if crowded else self.spec.world, self.spec.seed, index)
        return scene.image.transpose(2, 0, 1), cell_words(scene.annotation, self.grid), scene.annotation


def cell_words(annotation: AnnotatedImage, grid: tuple[int, int]) -> NDArray[np.int64]:
    """For each cell the words for what lies there: shape (G, h, w), indices into `WORDS`, IGNORE_INDEX for any.

    The object that covers most of a cell names it, and each object names the cell that it covers best. Its middle
    is the cell of its centroid, even where it has a hole there.
    """
    words = np.full((len(WORDS), *grid), IGNORE_INDEX, dtype=np.int64)
    shares = [mask_to_grid(decode_mask(instance.mask), grid) for instance in annotation.instances]
    covered = np.sum(shares, axis=0) if shares else np.zeros(grid)
    words[0][covered <= MAX_BACKGROUND_RATIO] = BACKGROUND
    best = np.max(shares, axis=0) if shares else covered
    numbers = Counter(instance.category for instance in annotation.instances)
    middles = []
    for instance, share in zip(annotation.instances, shares, strict=True):
        cells = (share >= MIN_COVERAGE_RATIO) & (share == best) | (share == share.max())
        number = min(numbers[instance.category], len(WORDS["number"]))
        said = (CATEGORIES.index(instance.category), WORDS["colour"].index(str(instance.colour)), number - 1, RIM)
        words[:, cells] = np.array(said)[:, None]
        middles.append(middle_cell(share))
    for middle in middles:
        words[-1][middle] = MIDDLE
    return words


def middle_cell(share: NDArray[np.floating]) -> tuple[int, int]:
    """The cell in which the centroid of a thing lies, given the share of each cell that it covers, shape (h, w)."""
    y, x = (np.average(axis, weights=share) for axis in np.indices(share.shape))
    return round(float(y)), round(float(x))


def draw_pool(spec: FoundationSpec, most: int | None = None) -> tuple[Tensor, Tensor, list[AnnotatedImage]]:
    """The first scenes, or all, drawn by workers: pixels (S, 3, H, W) uint8, targets (S, G, h, w), annotations."""
    pool = Subset(_Pool(spec), range(spec.num_scenes)[:most])
    loader = DataLoader(pool, batch_size=64, num_workers=spec.num_workers, collate_fn=list)
    drawn = [scene for batch in loader for scene in batch]
    pixels, targets, annotations = zip(*drawn, strict=True)
    return torch.from_numpy(np.stack(pixels)), torch.from_numpy(np.stack(targets)), list(annotations)


# ---------------------------------------------------------------------------------------------------------- vision


class WordContrast(nn.Module):
    """Similarity of feature-map cells with learned word vectors: the text side, used in training only."""

    def __init__(self, channels: int, dim: int = 64) -> None:
        super().__init__()
        self.project = nn.Linear(channels, dim)
        self.words = nn.Embedding(sum(map(len, WORDS.values())), dim)
        self.logit_scale = nn.Parameter(torch.tensor(2.3))

    def forward(self, features_BCHW: Tensor) -> list[Tensor]:
        """Log probabilities of the words for each cell: one tensor (B, N, W) for each group of `WORDS`."""
        cells = F.normalize(self.project(features_BCHW.flatten(2).transpose(1, 2)), dim=-1)
        words = F.normalize(self.words.weight, dim=-1)
        similarity = self.logit_scale.exp() * (cells @ words.T).float()
        return [group.log_softmax(-1) for group in similarity.split([len(group) for group in WORDS.values()], dim=-1)]

    def loss(self, features_BCHW: Tensor, targets_BGHW: Tensor, picture_weight: float) -> Tensor:
        """Contrast of cells with words, and of pictures with the category words of their captions."""
        groups = self(features_BCHW)
        targets = targets_BGHW.flatten(2).unbind(1)
        cells = torch.stack(
            [
                F.nll_loss(said.flatten(0, 1), target.flatten(), ignore_index=IGNORE_INDEX)
                for said, target in zip(groups, targets, strict=True)
            ]
        ).sum()
        category_BN = targets[0]
        said_BC = groups[0][..., :BACKGROUND].amax(dim=1).exp().clamp(1e-6, 1 - 1e-6)
        there_BC = F.one_hot(category_BN.clamp(min=0, max=BACKGROUND), BACKGROUND + 1).amax(dim=1)[:, :BACKGROUND]
        there_BC[:, 0] = (category_BN == 0).any(dim=1)  # cells that may say anything were counted as word 0
        return cells + picture_weight * F.binary_cross_entropy(said_BC, there_BC.float()) * 4


def train_vision(spec: FoundationSpec, pixels: Tensor, targets: Tensor, report: Progress) -> ConvNextBackbone:
    """Train the ConvNeXt on drawn scenes, half of them mirrored at each visit."""
    torch.manual_seed(spec.seed)
    settings, model = spec.vision, build_vision(spec)
    speed_up_depthwise(model)
    contrast = WordContrast(settings.hidden_sizes[-1])
    parameters = [*model.parameters(), *contrast.parameters()]
    optimizer, schedule = make_optimizer(parameters, settings, weight_decay=settings.weight_decay)
    order, arithmetic = endless_order(len(pixels), settings.batch_size, spec.seed), choose_arithmetic(device="cpu")
    for step in range(settings.steps):
        chosen = next(order)
        pictures, words = pixels[chosen].float() / 127.5 - 1, targets[chosen]
        if step % 2:
            pictures, words = pictures.flip(-1), words.flip(-1)
        with autocast(arithmetic):
            features = model(pictures.to(memory_format=torch.channels_last)).feature_maps[-1]
            loss = contrast.loss(features, words, settings.picture_weight)
        optimise(loss, parameters, optimizer, schedule)
        report("tiny-convnext", step + 1, settings.steps, loss.item())
    return model.eval()


def build_vision(spec: FoundationSpec) -> ConvNextBackbone:
    """The ConvNeXt, untrained, channels last."""
    settings = spec.vision
    config = ConvNextConfig(
        num_stages=len(settings.depths),
        hidden_sizes=list(settings.hidden_sizes),
        depths=list(settings.depths),
        patch_size=settings.patch_size,
        image_size=spec.world.image_size,
        layer_scale_init_value=0.0,  # none: a small network that trains for minutes must use all layers at once
        out_features=[f"stage{len(settings.depths)}"],
    )
    model = ConvNextBackbone(config).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    reset_parameters(model)
    return model  # type: ignore[no-any-return]


def reset_parameters(model: nn.Module) -> None:
    """Give layers torch's own initialisation: transformers' std of 0.02 is too small for small widths."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.reset_parameters()


def endless_order(size: int, batch_size: int, seed: int) -> Iterator[Tensor]:
    """Batches of indices below `size`, shuffled anew each time round."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(size, generator=generator).split(batch_size)


def make_optimizer(parameters: Sequence[Tensor], settings: Any, **options: Any) -> tuple[torch.optim.AdamW, Any]:
    """AdamW of these `options`, and its cosine schedule over `settings.steps` after a twentieth of them to warm up."""
    optimizer = torch.optim.AdamW(parameters, settings.learning_rate, **options)
    return optimizer, get_cosine_schedule_with_warmup(optimizer, settings.steps // 20, settings.steps)


def optimise(loss: Tensor, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer, schedule: Any) -> None:
    """One step of training, its gradient clipped to norm 1. A loss that is no number is a FloatingPointError."""
    if not torch.isfinite(loss):
        raise FloatingPointError(f"the loss became {loss.item()}; lower the learning rate")
    optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    schedule.step()


# -------------------------------------------------------------------------------------------------------- language


def train_language(
    spec: FoundationSpec, annotations: Sequence[AnnotatedImage], report: Progress
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """Build the tokenizer and train the LLaMA on captions and conversations about the scenes, without the scenes."""
    torch.manual_seed(spec.seed)
    settings = spec.language
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([spec.seed, 1])))
    conversations = [
        without_pictures(conversation)
        for annotated in annotations
        for conversation in make_conversations(annotated, rng, CATEGORIES, num=2)
    ]
    tokenizer = build_tokenizer(message.content for conversation in conversations for message in conversation.messages)
    model = LlamaForCausalLM(_llama_config(settings, tokenizer))
    model.set_attn_implementation("eager")  # at this size faster than the fused kernel on a CPU
    coded = _tokenise_all(tokenizer, conversations)
    optimizer, schedule = make_optimizer(list(model.parameters()), settings, weight_decay=0.01, betas=(0.9, 0.98))
    arithmetic = choose_arithmetic(device="cpu")
    order = _by_length(endless_order(len(coded), 16 * settings.batch_size, spec.seed), coded, settings.batch_size)
    for step in range(settings.steps):
        ids = nn.utils.rnn.pad_sequence([coded[i] for i in next(order)], True, tokenizer.pad_token_id)
        mask = ids != tokenizer.pad_token_id
        with autocast(arithmetic):
            loss = model(input_ids=ids, attention_mask=mask.long(), labels=ids.masked_fill(~mask, IGNORE_INDEX)).loss
        optimise(loss, list(model.parameters()), optimizer, schedule)
        report("tiny-llama", step + 1, settings.steps, loss.item())
    return model.eval(), tokenizer


def _by_length(blocks: Iterator[Tensor], coded: Sequence[Tensor], batch_size: int) -> Iterator[list[int]]:
    """Cut blocks of shuffled indices into batches of like length, the batches shuffled again: little is padded."""
    for block in blocks:
        ordered = sorted(block.tolist(), key=lambda i: len(coded[i]))
        batches = [ordered[start : start + batch_size] for start in range(0, len(ordered), batch_size)]
        yield from (batches[number] for number in torch.randperm(len(batches)).tolist())


def _llama_config(settings: LanguageSpec, tokenizer: PreTrainedTokenizerFast) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.num_hidden_layers,
        num_attention_heads=settings.num_attention_heads,
        num_key_value_heads=settings.num_key_value_heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


class _TextProcessor:
    """What `tokenise_conversation` asks of a processor, for text alone."""

    image_token = ""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.apply_chat_template = tokenizer.apply_chat_template


def _tokenise_all(tokenizer: PreTrainedTokenizerFast, conversations: Sequence[Conversation]) -> list[Tensor]:
    processor = _TextProcessor(tokenizer)
    return [torch.tensor(tokenise_conversation(processor, c).input_ids) for c in conversations]


def console_progress(every: int = 50) -> Progress:
    """A progress function that prints a line every so many steps."""
    start = time.monotonic()

    def show(name: str, step: int, steps: int, loss: float) -> None:
        if step % every == 0 or step == steps:
            print(f"{name}  step {step}/{steps}  loss {loss:.4f}  {time.monotonic() - start:.0f} s", flush=True)

    return show
