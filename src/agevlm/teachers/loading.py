"""A teacher's network and processor from a directory or a hub id, checked to be of the right kind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from agevlm.modeling.loading import load_whole, reading


def load(
    weights: str | Path, auto_class: str, model_types: Sequence[str], dtype: torch.dtype, device: str
) -> tuple[Any, Any]:
    """The model (frozen, in evaluation mode, on `device`) and its processor.

    A directory without a model, a model of another kind, and a checkpoint that is not whole are ValueErrors that name
    it.
    """
    model = load_model(weights, auto_class, model_types, dtype, device)
    with reading(weights, "processor"):
        return model, transformers.AutoProcessor.from_pretrained(weights, trust_remote_code=False)


def load_model(
    weights: str | Path, auto_class: str, model_types: Sequence[str], dtype: torch.dtype, device: str
) -> Any:
    """As `load`, the model alone: of SAM 2 and SAM 3 the image processors need torchvision."""
    wanted = " or ".join(model_types)
    is_local = isinstance(weights, Path) or Path(weights).exists()
    if is_local and not (Path(weights) / "config.json").is_file():
        raise ValueError(f"{weights}: holds no config.json; give the directory of a {wanted} model, or a hub id")
    with reading(weights, "configuration"):
        config = transformers.AutoConfig.from_pretrained(weights, trust_remote_code=False)
    if config.model_type not in model_types:
        raise ValueError(f"{weights}: is a {config.model_type} model, this teacher needs {wanted}")
    model = load_whole(getattr(transformers, auto_class), weights, dtype=dtype)
    return model.to(device).eval().requires_grad_(False)
