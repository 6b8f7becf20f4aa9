"""Join any decoder of transformers with any ConvNeXt into a new AGE-VLM.

    python examples/from_backbones.py                       # tiny random ones, offline
    python examples/from_backbones.py joined LANGUAGE VISION

LANGUAGE and VISION are directories or hub ids, such as HuggingFaceTB/SmolLM2-135M and facebook/convnext-tiny-224. The
new model answers as its decoder does until its cross-attention is trained: `agevlm train` with `model.init: joined`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from transformers import ConvNextConfig, ConvNextModel, LlamaConfig, LlamaForCausalLM, ViTImageProcessorPil

from agevlm import AgeVlmForConditionalGeneration, AgeVlmProcessor
from agevlm.training.tokenizer import build_tokenizer


def main(out: str = "joined", language: str = "", vision: str = "") -> AgeVlmForConditionalGeneration:
    """Join two checkpoints (both empty: tiny random ones), say what came of it, and save it to `out`."""
    with tempfile.TemporaryDirectory() as directory:
        if not language:
            language, vision = make_tiny_backbones(Path(directory))
        processor = AgeVlmProcessor.from_backbones(language, vision)
        model = AgeVlmForConditionalGeneration.from_backbones(
            language, vision, image_token_id=processor.image_token_id, null_token=True
        )
    depth = len(model.config.cross_attention_layers) + model.config.text_config.num_hidden_layers
    print(f"cross-attention at {model.config.cross_attention_layers} of {depth} layers")
    for name, part in model.named_children():
        print(f"{name:16} {sum(parameter.numel() for parameter in part.parameters()):>12,} parameters")
    model.save_pretrained(out)
    processor.save_pretrained(out)
    return model


def make_tiny_backbones(directory: Path) -> tuple[str, str]:
    """A LLaMA with its tokenizer and a ConvNeXt with its image processor, saved as any checkpoint is."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer(["is there a fish in the picture?", "yes", "no"] * 2)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **shape))
    convnext = ConvNextModel(ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2))
    pixels = ViTImageProcessorPil(size={"height": 64, "width": 64})
    for part in (llama, tokenizer):
        part.save_pretrained(directory / "llama")
    for part in (convnext, pixels):
        part.save_pretrained(directory / "convnext")
    return str(directory / "llama"), str(directory / "convnext")


if __name__ == "__main__":
    main(*sys.argv[1:])
