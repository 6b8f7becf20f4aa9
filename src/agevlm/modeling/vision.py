"""The vision backbone, its feature maps as image tokens, and the code of their places. Plain functions, no new module.

Letters: I images, C channels, h and w the grid, N = h * w image tokens, P numbers in a place code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import MODEL_FOR_BACKBONE_MAPPING, AutoConfig, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

from . import register
from .configuration_agevlm import AgeVlmConfig, VisionGrid
from .configuration_concat import ConcatVlmConfig
from .loading import load_whole, reading

NUM_FREQUENCIES = 4
POSITION_CODE_SIZE = 2 + 4 * NUM_FREQUENCIES


def build_backbone(config: PreTrainedConfig) -> PreTrainedModel:
    """A new backbone; one without attention, such as ConvNext, is not asked for an attention kernel."""
    backbone = backbone_class(config)
    if not backbone.has_attentions:
        config._attn_implementation = "eager"
    return backbone._from_config(config)


def load_backbone(path: str | PathLike[str], out_features: Sequence[str] | None = None) -> PreTrainedModel:
    """The backbone in a directory or under a hub id, be it saved as backbone, plain model or classifier.

    Of a network of ours its vision model is taken, and nothing else.
    `out_features` names the feature maps that it gives, in any order; None: as its configuration says, which is the
    last one where it says nothing. A name that it does not have is a ValueError that lists those it has, and so is a
    checkpoint that is not whole.
    `AutoBackbone.from_pretrained` does not take directories.
    """
    register()  # our own backbone is found by its type as any other
    with reading(path, "configuration"):
        config = AutoConfig.from_pretrained(path)
    taken: dict[str, Any] = {}
    if isinstance(config, AgeVlmConfig | ConcatVlmConfig):
        config, taken = config.vision_config, {"key_mapping": {r"^vision_model\.": ""}}
    backbone_class(config)
    if out_features is not None:
        unknown = [name for name in out_features if name not in config.stage_names]
        if unknown or not out_features:
            asked = repr(unknown[0]) if unknown else "none"
            raise ValueError(
                f"the vision model {path} has the feature maps {', '.join(config.stage_names)}, and {asked} was asked "
                "for: name one or more of these"
            )
        config.out_features = [name for name in config.stage_names if name in out_features]
    saved_so = out_features is None and any("Backbone" in name for name in config.architectures or ())
    may_lack = None if saved_so else "hidden_states_norms"  # of the feature maps that were not asked for then
    return load_whole(backbone_class(config), path, may_lack=may_lack, config=config, **taken)


def backbone_class(config: PreTrainedConfig) -> Any:
    """The class of transformers that gives feature maps for a configuration. ValueError where there is none."""
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        raise ValueError(
            f"vision models of type {config.model_type!r} give no feature map in transformers: "
            "use one with a backbone class (convnext, convnextv2, dinov2, swin, …)"
        )
    return MODEL_FOR_BACKBONE_MAPPING[type(config)]


def join_feature_maps(maps_IChw: Sequence[Tensor], grid: VisionGrid) -> Tensor:
    """Feature maps of the same images at several strides as one (I, C, h, w), the channels of all side by side.

    `grid` says whose h and w: those of the coarsest map, to which finer ones are averaged, or those of the finest, to
    which coarser ones are interpolated. A single map stays as it is.
    """
    if len(maps_IChw) == 1:
        return maps_IChw[0]
    choose = min if grid == "coarse" else max
    size = choose((features.shape[-2:] for features in maps_IChw), key=math.prod)
    return torch.cat([_resized(features_IChw, size) for features_IChw in maps_IChw], dim=1)


def _resized(features_IChw: Tensor, size: torch.Size) -> Tensor:
    if features_IChw.shape[-2:] == size:
        return features_IChw
    if math.prod(features_IChw.shape[-2:]) > math.prod(size):
        return F.adaptive_avg_pool2d(features_IChw, size)
    return F.interpolate(features_IChw, size=size, mode="bilinear", align_corners=False)


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
