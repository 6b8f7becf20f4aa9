"""Tiny random models, a word tokenizer and pictures for all tests: built in memory, offline, from fixed seeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

WORDS = (
    "a is there fish boat house red blue left of the in picture yes no two what how many ? . : user assistant".split()
)
VOCABULARY_SIZE = 5 + len(WORDS)  # and four special tokens and a line break
WIDTH = 32
IMAGE_SIZE = 32
DECODERS = ("llama", "qwen3", "gemma3_text")
VISION = ("convnext", "convnextv2")


def make_tokenizer() -> Any:
    """A tokenizer of whole words, with special tokens and without a chat template or a placeholder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", "\n", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Punctuation()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>"
    )


def add_bos(tokenizer: Any) -> Any:
    """The same tokenizer, which from now on puts `<bos>` in front of a text by itself, as Llama's does."""
    from tokenizers.processors import TemplateProcessing

    special = [(tokenizer.bos_token, tokenizer.bos_token_id)]
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=special
    )
    return tokenizer


def make_text_config(name: str = "llama", **overrides: Any) -> Any:
    """The configuration of a tiny decoder with grouped queries, four layers deep."""
    from transformers import AutoConfig

    options: dict[str, Any] = {
        "vocab_size": VOCABULARY_SIZE,
        "hidden_size": WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if name == "gemma3_text":
        options |= {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"] * 2}
    return AutoConfig.for_model(name, **options | overrides)


def make_vision_config(name: str = "convnext", **overrides: Any) -> Any:
    """The configuration of a tiny backbone: images of 32 pixels give a grid of 4 x 4."""
    from transformers import AutoConfig

    options: dict[str, Any] = {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 4}
    return AutoConfig.for_model(name, **options | overrides)


def make_model(decoder: str = "llama", vision: str = "convnext", gate: float = 0.7, **overrides: Any) -> Any:
    """A tiny AGE-VLM in evaluation mode, with open gates so that images matter."""
    from agevlm import AgeVlmConfig, AgeVlmForConditionalGeneration

    torch.manual_seed(0)
    config = AgeVlmConfig(
        text_config=make_text_config(decoder),
        vision_config=make_vision_config(vision),
        **{"attn_gate_init": gate, "mlp_gate_init": gate} | overrides,
    )
    return AgeVlmForConditionalGeneration(config).eval()


def make_processor() -> Any:
    """A processor for `make_model`: its placeholder has the id behind the tokenizer's words."""
    from agevlm import AgeVlmProcessor

    return AgeVlmProcessor.from_backbones(make_tokenizer(), IMAGE_SIZE)


def make_picture(seed: int = 0, size: tuple[int, int] = (40, 24)) -> Image.Image:
    """A picture of noise; `size` is (width, height)."""
    noise = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise)


def make_pixels(num_images: int, seed: int = 0) -> torch.Tensor:
    """Random images as the vision model takes them."""
    return torch.randn(num_images, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed))
