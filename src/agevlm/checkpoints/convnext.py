"""Weights of ConvNeXt with the names of timm or open_clip → `ConvNextBackbone` of transformers.

What is not taken: classifiers, projections, text models and the last norm, which was learned on the mean of all cells.
Each feature map has a norm of transformers' own, as those of the checkpoints that transformers' authors converted.
What calls this is `importing.py`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agevlm.checkpoints.weights import CARD, SIGN

if TYPE_CHECKING:
    from torch import Tensor

NORMALISATIONS = {  # name → mean, standard deviation, side in pixels where nothing tells it
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), 256),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 224),
}
_NAMES = {  # widest and narrowest channels and number of blocks → what the network is called
    ((3, 3, 9, 3), 96): "convnext-tiny",
    ((3, 3, 27, 3), 96): "convnext-small",
    ((3, 3, 27, 3), 128): "convnext-base",
    ((3, 3, 27, 3), 192): "convnext-large",
    ((3, 3, 27, 3), 256): "convnext-xlarge",
    ((3, 4, 30, 3), 384): "convnext-xxlarge",
}
_OTHER_EPS = {"convnext-xxlarge": 1e-5}  # of its norms
_EPS = 1e-6  # of all others, and of transformers', which cannot be set
_TRUNK = "visual.trunk."  # in open_clip
_LEFT_OUT = ("head.", "norm_pre.")
_BLOCK = {"conv_dw": "dwconv", "norm": "layernorm", "mlp.fc1": "pwconv1", "mlp.fc2": "pwconv2"}
_STEM = {"stem.0": "embeddings.patch_embeddings", "stem.1": "embeddings.layernorm"}


@dataclass(frozen=True)
class Pixels:
    """What pictures a network was trained on: mean and standard deviation of three channels, and the side in pixels."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    side: int


def is_convnext(tensors: dict[str, Tensor]) -> bool:
    """Whether these are weights of a ConvNeXt with the names of timm or open_clip."""
    names = _trunk(tensors)
    return "stem.0.weight" in names and "stages.0.blocks.0.conv_dw.weight" in names


def find_pixels(tensors: dict[str, Tensor], source: Path, normalisation: str | None, image_size: int | None) -> Pixels:
    """What the options, else a configuration beside the weights, else their names say of the pictures.

    open_clip trains with CLIP's mean and deviation. Where only timm's names tell, which may be either, a ValueError.
    """
    beside = _beside(source)
    if normalisation is None and beside is not None:
        return Pixels(beside.mean, beside.std, image_size or beside.side)
    if normalisation is None and not any(name.startswith(_TRUNK) for name in tensors):
        raise ValueError(
            f"{source}: nothing beside it says which pictures it was trained on; say --normalisation clip or imagenet"
        )
    mean, std, side = NORMALISATIONS[normalisation or "clip"]
    return Pixels(mean, std, image_size or (beside.side if beside is not None else side))


def _beside(source: Path) -> Pixels | None:
    """What the configuration of timm or of open_clip beside the weights says."""
    from agevlm.documents import read_json

    for name, key in (("config.json", "pretrained_cfg"), ("open_clip_config.json", "preprocess_cfg")):
        path = source.parent / name
        content = read_json(path, "copy it again") if path.is_file() else None
        if not isinstance(content, dict) or not isinstance(content.get(key), dict):
            continue
        known = content[key]
        vision = (content.get("model_cfg") or {}).get("vision_cfg") or {}
        side = known["input_size"][-1] if "input_size" in known else vision.get("image_size")
        mean, std, usual = NORMALISATIONS["clip"]
        return Pixels(tuple(known.get("mean", mean)), tuple(known.get("std", std)), int(side or usual))
    return None


def convert_convnext(tensors: dict[str, Tensor], source: Path, out: Path, pixels: Pixels) -> str:
    """Write the backbone of weights, read from `source`, to the directory `out`, and name the network.

    Weights of a ConvNeXt that transformers does not build (V2, another stem, …) are a ValueError that names one.
    """
    import torch
    from transformers import ConvNextBackbone, ViTImageProcessorPil

    trunk = {name: value.float() for name, value in _trunk(tensors).items() if not name.startswith(_LEFT_OUT)}
    config = _configuration(trunk)
    name = _NAMES.get((tuple(config.depths), config.hidden_sizes[0]), "convnext")
    with torch.device("meta"):
        backbone = ConvNextBackbone(config)
    renamed = {_renamed(key): value.flatten(1) if _is_point(key) else value for key, value in trunk.items()}
    norm = f"hidden_states_norms.{config.out_features[0]}"
    renamed |= {f"{norm}.weight": torch.ones(config.hidden_sizes[-1])}
    renamed |= {f"{norm}.bias": torch.zeros(config.hidden_sizes[-1])}
    _check(renamed, backbone.state_dict(), source)
    renamed = _for_other_eps(renamed, _OTHER_EPS.get(name, _EPS))
    backbone.load_state_dict(renamed, assign=True)
    size = {"height": pixels.side, "width": pixels.side}
    processor = ViTImageProcessorPil(size=size, image_mean=list(pixels.mean), image_std=list(pixels.std), resample=3)
    for part in (backbone, processor):
        part.save_pretrained(out)
    (out / CARD).write_text(_card(name, source.name), "utf-8")
    return name


def _trunk(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the network of pictures, with timm's names."""
    if any(name.startswith(_TRUNK) for name in tensors):
        return {name.removeprefix(_TRUNK): value for name, value in tensors.items() if name.startswith(_TRUNK)}
    return tensors


def _configuration(trunk: dict[str, Tensor]) -> Any:
    """The shape of a network, read from the names and shapes of its weights."""
    from transformers import ConvNextConfig

    found = (re.fullmatch(r"stages\.(\d+)\.blocks\.\d+\.conv_dw\.weight", name) for name in trunk)
    stages = [int(match[1]) for match in found if match]
    num_stages = 1 + max(stages)
    depths = [stages.count(stage) for stage in range(num_stages)]
    widths = [
        trunk[f"stages.{stage}.blocks.0.conv_dw.weight"].shape[0] if depth else 0 for stage, depth in enumerate(depths)
    ]
    return ConvNextConfig(
        num_channels=trunk["stem.0.weight"].shape[1],
        patch_size=trunk["stem.0.weight"].shape[-1],
        num_stages=num_stages,
        hidden_sizes=widths,
        depths=depths,
        layer_scale_init_value=1e-6 if any(name.endswith(".gamma") for name in trunk) else 0.0,
        out_features=[f"stage{num_stages}"],
    )


def _renamed(name: str) -> str:
    """Transformers' name for timm's; a name that is none of them stays, and fits nothing."""
    part, _, end = name.rpartition(".")
    if part in _STEM:
        return f"{_STEM[part]}.{end}"
    if block := re.fullmatch(r"stages\.(\d+)\.blocks\.(\d+)\.(.+)", part):
        place = f"encoder.stages.{block[1]}.layers.{block[2]}"
        return f"{place}.{_BLOCK[block[3]]}.{end}" if block[3] in _BLOCK else name
    if block := re.fullmatch(r"stages\.(\d+)\.blocks\.(\d+)\.gamma", name):
        return f"encoder.stages.{block[1]}.layers.{block[2]}.layer_scale_parameter"
    if down := re.fullmatch(r"stages\.(\d+)\.downsample\.([01])", part):
        return f"encoder.stages.{down[1]}.downsampling_layer.{down[2]}.{end}"
    return name


def _is_point(name: str) -> bool:
    """Whether a weight is a matrix in transformers, which some variants of timm have as a convolution of one cell."""
    return name.endswith((".mlp.fc1.weight", ".mlp.fc2.weight"))


def _check(found: dict[str, Tensor], expected: dict[str, Tensor], source: Path) -> None:
    shapes, wanted = ({name: tuple(value.shape) for name, value in side.items()} for side in (found, expected))
    wrong = sorted(name for name in shapes.keys() | wanted.keys() if shapes.get(name) != wanted.get(name))
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{source}: is no ConvNeXt that transformers builds: {name} is {shapes.get(name, 'missing')}, and "
            f"{wanted.get(name, 'nothing of that name')} was expected; ConvNeXt V2 and others go by timm/NAME"
        )


def _for_other_eps(weights: dict[str, Tensor], eps: float) -> dict[str, Tensor]:
    """Weights with which norms of transformers' eps compute what those given compute with `eps`.

    A norm of s·x with s² = 1e-6 / eps is the norm of x with eps. So all that goes into norms is scaled by s: what the
    stem, the blocks and the steps between stages add to the residual stream. Equal up to rounding.
    """
    if eps == _EPS:
        return weights
    scale = (_EPS / eps) ** 0.5
    has_layer_scale = any(name.endswith("layer_scale_parameter") for name in weights)
    written = ["layer_scale_parameter"] if has_layer_scale else ["pwconv2.weight", "pwconv2.bias"]
    scaled = (*written, "dwconv.bias", "downsampling_layer.1.weight", "downsampling_layer.1.bias")
    return {
        name: value * scale if name.startswith("embeddings.") or name.endswith(scaled) else value
        for name, value in weights.items()
    }


def _card(name: str, source: str) -> str:
    return (
        f"# {name}\n\nThe backbone of {name} with the weights of `{source}`, renamed for transformers. The licence is "
        f"that of those weights. Load it as `vision_model` of a recipe. {SIGN}\n"
    )
