"""A tiny random AGE-VLM, its processor, and a few drawn pictures with questions: all made here, offline."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ConvNextBackbone, ConvNextConfig, LlamaConfig, LlamaForCausalLM

from agevlm.data.language import make_conversations
from agevlm.data.masks import encode_mask
from agevlm.data.pope import pope_conversations
from agevlm.data.schema import AnnotatedImage, ImageSource, Instance, Sample
from agevlm.modeling.modeling_agevlm import AgeVlmForConditionalGeneration
from agevlm.modeling.processing_agevlm import AgeVlmProcessor
from agevlm.training.tokenizer import build_tokenizer

VOCABULARY = ("cup", "fish", "boat", "key")
_PAINT = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 160, 30)}


def annotated_image(number: int, size: int = 64) -> AnnotatedImage:
    """A picture of two or three coloured squares with their masks."""
    rng = np.random.default_rng(number)
    pixels = np.full((size, size, 3), 128, dtype=np.uint8)
    instances = []
    for place, category in enumerate(rng.permutation(VOCABULARY)[: 2 + number % 2]):
        top, left = ((4, 4), (4, 36), (36, 20))[place]
        colour = str(rng.choice(list(_PAINT)))
        pixels[top : top + 20, left : left + 20] = _PAINT[colour]
        mask = np.zeros((size, size), dtype=bool)
        mask[top : top + 20, left : left + 20] = True
        instances.append(Instance(str(category), encode_mask(mask), (left, top, 20, 20), 400.0, colour))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return AnnotatedImage(ImageSource(f"picture-{number}", size, size, data=file.getvalue()), tuple(instances))


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    images = [annotated_image(number) for number in range(5)]
    pope = pope_conversations(images, vocabulary=VOCABULARY)
    made = []
    for annotated in images:
        rng = np.random.default_rng(len(made))
        others = make_conversations(annotated, rng, VOCABULARY, num=6)
        made.append(Sample(annotated.image.id, (annotated.image,), (*pope[annotated.image.id], *others)))
    return made


@pytest.fixture(scope="session")
def processor(samples: list[Sample]) -> AgeVlmProcessor:
    said = [m.content for sample in samples for c in sample.conversations for m in c.messages]
    return AgeVlmProcessor.from_backbones(build_tokenizer(said, vocab_size=512), 64)


def tiny_model(processor: AgeVlmProcessor, null_token: bool = True) -> AgeVlmForConditionalGeneration:
    """A random model whose gates are open, so that answers depend on pictures."""
    torch.manual_seed(1)
    tokenizer = processor.tokenizer
    language = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = ConvNextConfig(
        num_stages=2, hidden_sizes=[8, 16], depths=[1, 1], image_size=64, out_features=["stage2"], patch_size=4
    )
    model = AgeVlmForConditionalGeneration.from_backbones(
        LlamaForCausalLM(language),
        ConvNextBackbone(vision),
        null_token=null_token,
        image_token_id=processor.image_token_id,
    )
    with torch.no_grad():
        for layer in model.cross_attention:
            layer.attn_gate.fill_(1.0)
            layer.mlp_gate.fill_(1.0)
    return model.eval()


@pytest.fixture(scope="session")
def model(processor: AgeVlmProcessor) -> AgeVlmForConditionalGeneration:
    return tiny_model(processor)
