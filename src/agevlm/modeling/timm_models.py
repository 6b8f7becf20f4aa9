"""Backbones of timm, as transformers' `TimmBackbone`: found by name or in a directory, with their own pictures' values.

timm is an extra, imported where it is used. What is saved afterwards is an ordinary checkpoint in safetensors, which
still needs timm to be built again.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel
from transformers.utils.import_utils import is_timm_available

from .loading import reading

PREFIX = "timm/"  # of a name: timm/convnext_base.clip_laion2b_augreg, which is its repository on the hub as well
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_ADVICE = "name another one, or copy it again"


class SavedTimm:
    """Reads a `TimmBackbone` that transformers saved; its own `from_pretrained` knows timm's names alone."""

    @staticmethod
    def from_pretrained(source: str | PathLike[str], **options: Any) -> Any:
        """As for any model of transformers."""
        from transformers import TimmBackbone

        check_timm(source)
        reader: Any = super(TimmBackbone, TimmBackbone)
        return reader.from_pretrained(source, **options)


def is_timm(source: str | PathLike[str]) -> bool:
    """Whether a model is timm's: `timm/NAME`, or a directory as the hub has it, with timm's own configuration."""
    path = Path(source)
    if not path.is_dir():
        return fspath(source).startswith(PREFIX)
    return (path / _CONFIG).is_file() and "pretrained_cfg" in _read(path)


def load_timm(source: str | PathLike[str], out_features: Sequence[str] | None, choose: Any) -> PreTrainedModel:
    """The backbone of a name or a directory of timm's, with its weights.

    `choose(stage_names, out_features)` gives the numbers of the feature maps that are wanted. A name that timm does not
    know, a model without feature maps, and a directory without safetensors are ValueErrors.
    """
    import torch
    from transformers import TimmBackbone, TimmBackboneConfig

    check_timm(source)
    name, where = _find(source)
    import timm

    with reading(source, "feature maps", _ADVICE), torch.device("meta"):
        stage_names = [stage["module"] for stage in timm.create_model(name, features_only=True).feature_info.info]
    config = TimmBackboneConfig(backbone=where, out_indices=choose(stage_names, out_features))
    with reading(source, "weights", _ADVICE):
        backbone = TimmBackbone._from_config(config, pretrained=True)
    backbone.config.backbone = name  # where it was found says nothing elsewhere
    return backbone.eval()


def timm_pixels(source: str | PathLike[str]) -> tuple[int, tuple[float, ...], tuple[float, ...]]:
    """The side in pixels, the mean and the standard deviation of the pictures that a model of timm was trained on."""
    check_timm(source)
    name, _ = _find(source)
    if Path(source).is_dir():
        known = _read(Path(source))["pretrained_cfg"]
    else:
        import timm

        known = timm.get_pretrained_cfg(name).to_dict()
    return known["input_size"][-1], tuple(known["mean"]), tuple(known["std"])


def fixed_side(name: str) -> int | None:
    """The only side in pixels that a model of timm takes; None where it takes any."""
    import timm

    known = timm.get_pretrained_cfg(name)
    return int(known.input_size[-1]) if known is not None and known.fixed_input_size else None


def check_timm(source: str | PathLike[str]) -> None:
    """ValueError where timm is not installed."""
    if not is_timm_available():
        raise ValueError(
            f"{source} is a model of the package timm: pip install 'agevlm[timm]', which needs torchvision; a ConvNeXt "
            "does without it once agevlm import-backbone has converted it"
        )


def _find(source: str | PathLike[str]) -> tuple[str, str]:
    """The name that timm knows a model's network by, and where it finds the weights."""
    path = Path(source)
    if not path.is_dir():
        name = fspath(source).removeprefix(PREFIX)
        return _known(name), name
    content = _read(path)
    if not (path / _WEIGHTS).is_file():
        raise ValueError(f"{path} holds no {_WEIGHTS}: copy the model again, in safetensors")
    if content.get("model_args"):
        raise ValueError(
            f"{path} changes its network by model_args={content['model_args']!s:.200}, which the TimmBackbone of "
            "transformers does not keep: name a model without"
        )
    return _known(str(content.get("architecture"))), f"local-dir:{path}"


def _known(name: str) -> str:
    """The name, if timm has weights of that name; ValueError with the nearest one where it does not."""
    import timm

    try:
        found = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except (RuntimeError, ValueError):
        found = None
    if found is None or not timm.is_model(name):
        architecture = name.split(".")[0]
        known = timm.list_pretrained(f"{architecture}.*") or timm.list_pretrained()
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
        raise ValueError(f"timm has no model {name!r}: did you mean {PREFIX}{near[0]}?")
    return name


def _read(directory: Path) -> dict[str, Any]:
    with reading(directory, "configuration"):
        content = json.loads((directory / _CONFIG).read_text(encoding="utf-8"))
        assert isinstance(content, dict), f"{_CONFIG} is no mapping"
    return content
