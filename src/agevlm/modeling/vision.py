"""The vision backbone, its feature maps as image tokens, and the code of their places. Plain functions, no new module.

Letters: I images, C channels, h and w the grid, N = h * w image tokens, P numbers in a place code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import MODEL_FOR_BACKBONE_MAPPING, MODEL_MAPPING, AutoConfig, PreTrainedModel
from transformers.configuration_utils import PreTrainedConfig

from . import register
from .configuration_agevlm import AgeVlmConfig, VisionGrid
from .configuration_concat import ConcatVlmConfig
from .loading import load_whole, reading
from .timm_models import SavedTimm, check_timm, fixed_side, is_timm, load_timm
from .vit_backbone import TOWERS, VitBackbone, VitBackboneConfig

MAX_SIDE = 2048  # pixels of the square picture that a model takes
_CUTTING = ("convnext", "convnextv2")  # those of transformers with convolutions that do not pad
_PIXELS_AT_ONCE = 2**18  # on a CPU: what convolutions make of more does not stay in its caches
NUM_FREQUENCIES = 4
POSITION_CODE_SIZE = 2 + 4 * NUM_FREQUENCIES


def build_backbone(config: PreTrainedConfig) -> PreTrainedModel:
    """A new backbone; one without attention, such as ConvNext, is not asked for an attention kernel."""
    backbone = backbone_class(config)
    if config.model_type == "timm_backbone":
        check_timm(config.backbone)
    if not backbone.has_attentions:
        config._attn_implementation = "eager"
    return backbone._from_config(config)


def load_backbone(path: str | PathLike[str], out_features: Sequence[str] | None = None) -> PreTrainedModel:
    """The backbone in a directory or under a hub id, be it saved as backbone, plain model or classifier.

    Of a network of ours its vision model is taken, of a CLIP or SigLIP its vision transformer, and nothing else.
    `timm/NAME` is a model of timm's.
    `out_features` names the feature maps that it gives, in any order; None: as its configuration says, which is the
    last one where it says nothing. A name that it does not have is a ValueError that lists those it has, and so is a
    checkpoint that is not whole.
    `AutoBackbone.from_pretrained` does not take directories.
    """
    register()  # our own backbones are found by their type as any other
    if is_timm(path):
        return load_timm(path, out_features, lambda known, asked: _numbers(path, known, asked))
    with reading(path, "configuration"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    whole, config = config, backbone_config(path, config, out_features)
    if whole.model_type in {*TOWERS, *TOWERS.values()}:
        tower = load_whole(MODEL_MAPPING[type(config.vision_config)], path, config=config.vision_config)
        return VitBackbone(config, tower).eval()
    taken: dict[str, Any] = {}
    if isinstance(whole, AgeVlmConfig | ConcatVlmConfig):
        taken = {"key_mapping": {r"^vision_model\.": ""}}
    kind = backbone_class(config)
    saved_so = out_features is None and any("Backbone" in name for name in config.architectures or ())
    may_lack = None if saved_so else "hidden_states_norms"  # of the feature maps that were not asked for then
    reader = SavedTimm if config.model_type == "timm_backbone" else kind
    return load_whole(reader, path, may_lack=may_lack, takes_all=saved_so and not taken, config=config, **taken)


def backbone_config(path: str | PathLike[str], config: Any, out_features: Sequence[str] | None) -> Any:
    """The configuration of the backbone in a checkpoint with `config`, with the feature maps that are asked for.

    That of the vision model of a network of ours, or of the vision transformer of a CLIP or SigLIP, saved alone or with
    its text model. See `load_backbone`.
    """
    if config.model_type in {*TOWERS, *TOWERS.values()}:
        config = VitBackboneConfig(vision_config=config.vision_config if config.model_type in TOWERS else config)
    elif isinstance(config, AgeVlmConfig | ConcatVlmConfig):
        config = config.vision_config
    backbone_class(config)  # what gives no feature maps has no names of them either
    if out_features is not None:
        names = config.stage_names
        config.out_features = [names[number] for number in _numbers(path, names, out_features)]
    return config


def _numbers(path: str | PathLike[str], known: Sequence[str], asked: Sequence[str] | None) -> list[int]:
    """The numbers of the feature maps that are asked for by name, in order; of the last one where none are."""
    if asked is None:
        return [len(known) - 1]
    unknown = [name for name in asked if name not in known]
    if unknown or not asked:
        raise ValueError(
            f"the vision model {path} has the feature maps {', '.join(known)}, and "
            f"{repr(unknown[0]) if unknown else 'none'} was asked for: name one or more of these"
        )
    return [number for number, name in enumerate(known) if name in asked]


def fit_pictures(backbone: PreTrainedModel, image_processor: Any, side: int | None) -> None:
    """Let an image processor make squares of `side` pixels, or of its own where it is None, for a backbone.

    ValueError where the backbone cannot take them, or would not see their right and bottom edge, and above `MAX_SIDE`.
    """
    if side is not None:
        image_processor.size = {"height": side, "width": side}
    config = backbone.config
    only = fixed_side(config.backbone) if config.model_type == "timm_backbone" else None
    for size in (image_processor.size["height"], image_processor.size["width"]):
        if size > MAX_SIDE:
            raise ValueError(f"pictures of {size} pixels are too large: set image_size to {MAX_SIDE} or less")
        if only is not None and size != only:
            raise ValueError(
                f"{config.backbone} of timm takes pictures of {only} pixels alone, and image_size={size}: leave it out"
            )
        patch = _patch(backbone) if only is None else None
        if patch is None or size % patch == 0:
            continue
        below = size // patch * patch
        sides = [side for side in (below, below + patch) if 0 < side <= MAX_SIDE]
        raise ValueError(
            f"pictures of {size} pixels are not cut whole into patches of {patch}: set image_size to "
            f"{' or '.join(map(str, sides))}"
        )


def _patch(backbone: PreTrainedModel) -> int | None:
    """The side in pixels of the squares that a backbone cuts pictures into, of the coarsest feature map that it gives.

    What is left over at the right and the bottom it does not see. None where it pads pictures, or where none is known.
    """
    config = backbone.config
    if config.model_type == "timm_backbone":
        cuts = [
            _cuts(module) for module in backbone.modules() if isinstance(module, nn.Conv2d) and max(module.stride) > 1
        ]
        known = any(cuts) and (all(cuts) or "convnext" in config.backbone)  # the stems of some of these pad
        return int(max(backbone._backbone.feature_info.reduction())) if known else None
    patch = getattr(config, "patch_size", None)
    if not isinstance(patch, int):
        return None
    if config.model_type not in _CUTTING:
        return None if hasattr(config, "depths") else patch  # of those with stages others pad
    halvings = max(config.stage_names.index(name) for name in backbone.out_features) - 1  # none up to stage1
    return int(patch * 2 ** max(halvings, 0))


def _cuts(convolution: nn.Conv2d) -> bool:
    """Whether a convolution sees cells side by side and none beyond the picture; classes of timm's own pad."""
    plain = type(convolution) is nn.Conv2d and not any(convolution.padding)
    return plain and convolution.kernel_size == convolution.stride


def backbone_class(config: PreTrainedConfig) -> Any:
    """The class of transformers that gives feature maps for a configuration. ValueError where there is none."""
    if type(config) not in MODEL_FOR_BACKBONE_MAPPING:
        raise ValueError(
            f"vision models of type {config.model_type!r} give no feature map in transformers: "
            "use one with a backbone class (convnext, convnextv2, dinov2, swin, …), a CLIP, a SigLIP, or timm/NAME"
        )
    return MODEL_FOR_BACKBONE_MAPPING[type(config)]


def joined_features(backbone: Any, pixel_values: Tensor, grid: VisionGrid, *, at_once: bool = False) -> Tensor:
    """A backbone's feature maps of images (I, 3, height, width), joined to one (I, C, h, w).

    On a CPU large images are seen one at a time, unless `at_once`: processes that divide a backbone among them must
    make equally many passes.
    """
    pieces = (pixel_values,)
    if pixel_values.device.type == "cpu" and not at_once:
        height, width = pixel_values.shape[-2:]
        pieces = pixel_values.split(max(1, _PIXELS_AT_ONCE // (height * width)))
    maps = [backbone(piece).feature_maps for piece in pieces]
    return join_feature_maps(maps[0] if len(maps) == 1 else list(map(torch.cat, zip(*maps, strict=True))), grid)


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
