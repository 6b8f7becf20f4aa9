"""The vision backbone, its feature map as image tokens, and the code of their places. Plain functions, no new module.

Letters: I images, C channels, h and w the grid, N = h * w image tokens, P numbers in a place code.
"""

from __future__ import annotations

import math
from os import PathLike
from typing import Any

import torch
from torch import Tensor
from transformers import MODEL_FOR_BACKBONE_MAPPING, AutoConfig, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

NUM_FREQUENCIES = 4
POSITION_CODE_SIZE = 2 + 4 * NUM_FREQUENCIES


def build_backbone(config: PreTrainedConfig) -> PreTrainedModel:
    """A new backbone; one without attention, such as ConvNext, is not asked for an attention kernel."""
    backbone = backbone_class(config)
    if not backbone.has_attentions:
        config._attn_implementation = "eager"
    return backbone._from_config(config)


def load_backbone(path: str | PathLike[str]) -> PreTrainedModel:
    """The backbone in a directory or under a hub id, be it saved as backbone, plain model or classifier.

    `AutoBackbone.from_pretrained` does not take directories.
    """
    config = AutoConfig.from_pretrained(path)
    return backbone_class(config).from_pretrained(path, config=config)


def backbone_class(config: PreTrainedConfig) -> Any:
    """The class of transformers that gives feature maps for a configuration. ValueError where there is none."""
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        raise ValueError(
            f"vision models of type {config.model_type!r} give no feature map in transformers: "
            "use one with a backbone class (convnext, convnextv2, dinov2, swin, …)"
        )
    return MODEL_FOR_BACKBONE_MAPPING[type(config)]


def flatten_feature_map(features_IChw: Tensor) -> Tensor:
    """Image tokens (I, N, C) of a feature map, row by row from the top left."""
    return features_IChw.flatten(2).transpose(1, 2)


def position_code(grid: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """The fixed code (N, P) of the centres of the grid's cells, in float32.

    A centre is (x, y) in [-1, 1] of width and height; its code is x, y and their sines and cosines at the frequencies
    pi, 2 pi, 4 pi and 8 pi, so that a linear map can read off both where a cell is and which one it is.
    """
    height, width = grid
    y_h = (torch.arange(height, device=device, dtype=torch.float32) + 0.5) * (2 / height) - 1
    x_w = (torch.arange(width, device=device, dtype=torch.float32) + 0.5) * (2 / width) - 1
    xy_N2 = torch.stack([x_w.expand(height, width), y_h[:, None].expand(height, width)], dim=-1).reshape(-1, 2)
    frequencies = math.pi * 2.0 ** torch.arange(NUM_FREQUENCIES, device=device, dtype=torch.float32)
    angles_NF = (xy_N2[:, :, None] * frequencies).flatten(1)
    return torch.cat([xy_N2, angles_NF.sin(), angles_NF.cos()], dim=-1)
