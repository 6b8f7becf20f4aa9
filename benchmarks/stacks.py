"""Text stacks of equal width that benchmarks compare, and batches of questions for them: ours, concatenation, Mllama.

Weights and inputs are random: time does not depend on them. Pictures come as feature maps, the vision model is not run.
Letters: R rows of text, T text tokens, K asked text tokens, I images, N image tokens of an image, W model width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import ConvNextBackbone, ConvNextConfig, LlamaConfig, LlamaForCausalLM, MllamaForCausalLM
from transformers.models.mllama.configuration_mllama import MllamaTextConfig

from agevlm import AgeVlmForConditionalGeneration
from agevlm.modeling.modeling_concat import ConcatVlmForConditionalGeneration
from agevlm.modeling.vision import flatten_feature_map

NUM_CHANNELS = 64  # of a feature map


@dataclass(frozen=True)
class StackShape:
    """A decoder between the embedded world's and a small real one, with three cross-attention layers."""

    vocabulary_size: int = 8192
    width: int = 512
    intermediate_size: int = 1408
    num_layers: int = 8
    cross_attention_layers: tuple[int, ...] = (2, 5, 8)  # in the combined stack, as Mllama counts them too
    num_heads: int = 8
    num_key_value_heads: int = 4
    tied: bool = False

    @property
    def decoder(self) -> dict[str, Any]:
        """What all decoders are told."""
        return {
            "vocab_size": self.vocabulary_size,
            "hidden_size": self.width,
            "intermediate_size": self.intermediate_size,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "tie_word_embeddings": self.tied,
            "pad_token_id": None,
            "bos_token_id": 0,
            "eos_token_id": 1,
        }


@dataclass(frozen=True)
class BatchShape:
    """Questions on pictures, their answers at the end: what of a row is supervised."""

    num_pictures: int = 4
    questions_per_picture: int = 1
    text_len: int = 64
    grid: tuple[int, int] = (12, 12)
    supervised_ratio: float = 1.0
    num_asked: int = 8  # tokens of a row whose attention guidance asks for


def build_ours(shape: StackShape) -> Any:
    """An AGE-VLM in training mode with open gates; all but the vision model trains."""
    return _joined(AgeVlmForConditionalGeneration, shape, attn_gate_init=0.1, mlp_gate_init=0.1)


def build_concat(shape: StackShape) -> Any:
    """The same decoder with all image tokens in front of the text."""
    return _joined(ConcatVlmForConditionalGeneration, shape)


def _joined(kind: Any, shape: StackShape, **fields: Any) -> Any:
    torch.manual_seed(0)
    decoder = LlamaForCausalLM(LlamaConfig(num_hidden_layers=shape.num_layers, **shape.decoder))
    backbone = ConvNextBackbone(
        ConvNextConfig(num_stages=1, hidden_sizes=[NUM_CHANNELS], depths=[1], out_features=["stage1"])
    )
    if kind is AgeVlmForConditionalGeneration:
        fields["cross_attention_layers"] = list(shape.cross_attention_layers)
    model = kind.from_backbones(decoder, backbone, **fields)
    model.vision_model.requires_grad_(False)
    return model.train()


class MllamaStack(nn.Module):
    """transformers' own Mllama decoder behind a projector, called as ours is.

    It is given the masks that transformers' `MllamaForConditionalGeneration` makes. Without one its cross-attention is
    causal under SDPA, and most of the picture is never read.
    """

    def __init__(self, shape: StackShape):
        super().__init__()
        torch.manual_seed(0)
        self.projector = nn.Linear(NUM_CHANNELS, shape.width)
        self.language_model = MllamaForCausalLM(
            MllamaTextConfig(
                num_hidden_layers=shape.num_layers + len(shape.cross_attention_layers),
                cross_attention_layers=list(shape.cross_attention_layers),
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
                **shape.decoder,
            )
        )
        for layer in shape.cross_attention_layers:
            for gate in ("cross_attn_attn_gate", "cross_attn_mlp_gate"):
                nn.init.constant_(getattr(self.language_model.model.layers[layer], gate), 0.1)

    def forward(self, input_ids: Tensor, image_features: Tensor, rows_per_image: int, **kwargs: Any) -> Any:
        """Logits, and the loss where there are labels. Each row sees its picture from its first token on."""
        kwargs.pop("images_seen")
        states_RNW = self.projector(flatten_feature_map(image_features)).repeat_interleave(rows_per_image, dim=0)
        rows, length = input_ids.shape
        return self.language_model(
            input_ids,
            cross_attention_states=states_RNW,
            cross_attention_mask=states_RNW.new_zeros(rows, 1, length, states_RNW.shape[1]),
            full_text_row_masked_out_mask=states_RNW.new_ones(rows, 1, length, 1),
            **kwargs,
        )


def build_batch(shape: BatchShape, vocabulary_size: int) -> dict[str, Any]:
    """Arguments of a training forward pass, rows image by image; labels at the last tokens of each row."""
    generator = torch.Generator().manual_seed(0)
    rows = shape.num_pictures * shape.questions_per_picture
    ids = torch.randint(vocabulary_size, (rows, shape.text_len), generator=generator)
    labels = ids.clone()
    labels[:, : shape.text_len - round(shape.supervised_ratio * shape.text_len)] = -100
    return {
        "input_ids": ids,
        "labels": labels,
        "image_features": torch.randn(shape.num_pictures, NUM_CHANNELS, *shape.grid, generator=generator),
        "images_seen": torch.ones_like(ids),
        "rows_per_image": shape.questions_per_picture,
        "use_cache": False,
    }


def build_guidance(shape: BatchShape) -> tuple[Tensor, Tensor, Tensor]:
    """What guidance adds to a batch: asked tokens (R, K), shares of their masks (R, K, N), and that all are there."""
    generator = torch.Generator().manual_seed(1)
    rows = shape.num_pictures * shape.questions_per_picture
    asked = torch.stack(
        [torch.randperm(shape.text_len, generator=generator)[: shape.num_asked].sort().values for _ in range(rows)]
    )
    height, width = shape.grid
    shares = torch.zeros(*asked.shape, height, width)
    shares[..., : max(1, height // 3), : max(1, width // 3)] = 1.0
    return asked, shares.flatten(2), torch.ones_like(asked)
