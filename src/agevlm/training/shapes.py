"""Networks without weights: the parts of a recipe by their configurations, joined on the meta device.

A configuration is that of a directory or a GGUF file, of a hub id that is in the cache, or one of `known_shapes/`:
facts of well-known models (widths, depths, heads), no weights. Nothing is downloaded, and nothing is allocated.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from agevlm.checkpoints import resolve_language_model
from agevlm.modeling import register
from agevlm.modeling.configuration_agevlm import AgeVlmConfig
from agevlm.modeling.configuration_concat import ConcatVlmConfig
from agevlm.modeling.joined import JoinedModel
from agevlm.modeling.language import check_gguf_named, is_gguf, load_gguf_config
from agevlm.modeling.loading import reading
from agevlm.modeling.modeling_agevlm import AgeVlmForConditionalGeneration
from agevlm.modeling.modeling_concat import ConcatVlmForConditionalGeneration
from agevlm.modeling.vision import backbone_config, build_backbone
from agevlm.training.needs import at_hand
from agevlm.training.recipe import ModelRecipe

DIRECTORY = Path(__file__).parent / "known_shapes"


@dataclass(frozen=True)
class Shape:
    """The configuration of a part, and where it was read: a path, a hub id, or the name of a shape in the package."""

    config: PreTrainedConfig
    source: str
    is_known: bool = False  # of a shape in the package


def known_shapes() -> dict[str, Path]:
    """The shapes in the package by name, in alphabetical order."""
    return {path.stem: path for path in sorted(DIRECTORY.glob("*.json"))}


def find_shape(model: str, shape: str | None) -> Shape:
    """The configuration of a model: its own where it is at hand, else that of `shape`, else of a shape of its name.

    A `shape` is a name of `known_shapes`, or a config.json. ValueError where none is to be had.
    """
    register()
    known = known_shapes()
    found = _local(model)
    if found is not None:
        return Shape(found, model)
    name = shape or next((name for name, path in known.items() if model in _names(path)), None)
    if name is None:
        raise ValueError(
            f"the configuration of {model} is neither here nor in the cache: name a shape ({', '.join(known)}, or a "
            "config.json) by model.language_shape or model.vision_shape, or fetch the model"
        )
    path = known.get(name, Path(name))
    if not path.is_file():
        raise ValueError(f"no shape {name!r}: expected one of {', '.join(known)}, or a config.json")
    return Shape(_read(path), name, is_known=name in known)


def _local(model: str) -> PreTrainedConfig | None:
    """The configuration in a directory, in a GGUF file, or in the cache of the hub, or None."""
    try:
        source, place = resolve_language_model(model), at_hand(model)
    except ValueError:
        return None
    if is_gguf(source):
        return load_gguf_config(place) if place is not None else None
    if Path(source).is_dir():
        check_gguf_named(source, "config.json")
        with reading(source, "configuration"):
            return AutoConfig.from_pretrained(source, trust_remote_code=False)
    try:
        return AutoConfig.from_pretrained(source, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError):
        return None


def _names(path: Path) -> list[str]:
    names: list[str] = json.loads(path.read_text(encoding="utf-8"))["models"]
    return names


def _read(path: Path) -> PreTrainedConfig:
    with reading(path, "configuration"):
        content = json.loads(path.read_text(encoding="utf-8"))
        content.pop("models", None)
        return AutoConfig.for_model(content.pop("model_type"), **content)


@dataclass(frozen=True)
class Shapes:
    """The configurations that a recipe's network is joined from; with `init` the one of the whole network."""

    language: Shape
    vision: Shape
    whole: PreTrainedConfig | None = None

    @classmethod
    def of(cls, settings: ModelRecipe) -> Shapes:
        """Those of a recipe. ValueError where one is not to be had."""
        if settings.init:
            whole = find_shape(settings.init, None)
            if not isinstance(whole.config, AgeVlmConfig | ConcatVlmConfig):
                raise ValueError(f"{settings.init} is of the type {whole.config.model_type!r}, none of ours")
            language, vision = (getattr(whole.config, f"{name}_config") for name in ("text", "vision"))
            return cls(Shape(language, whole.source), Shape(vision, whole.source), whole.config)
        found = find_shape(settings.vision_model, settings.vision_shape)
        vision = replace(found, config=backbone_config(found.source, found.config, settings.vision_stages))
        return cls(find_shape(settings.language_model, settings.language_shape), vision)

    @property
    def notes(self) -> Iterator[str]:
        """Where configurations do not come from the models themselves."""
        for part in (self.language, self.vision):
            if part.is_known:
                yield f"the shape of the {_role(part, self)} is {part.source}, as the package knows it"

    def build(self, settings: ModelRecipe) -> JoinedModel:
        """The network on the meta device: every module and parameter, in float32 as training holds them, no memory."""
        with torch.device("meta"):
            model = self._build(settings).float()
        kernel = settings.attn_implementation
        if kernel:  # memory and operations of the fused kernels are the same
            model.set_attn_implementation("sdpa" if kernel.startswith("flash") else kernel)
        return model

    def _build(self, settings: ModelRecipe) -> JoinedModel:
        if self.whole is not None:
            concat = isinstance(self.whole, ConcatVlmConfig)
            return (ConcatVlmForConditionalGeneration if concat else AgeVlmForConditionalGeneration)(self.whole)
        kind, fields = network_of(settings)
        language = AutoModelForCausalLM.from_config(self.language.config)
        return kind.from_backbones(language, build_backbone(self.vision.config), **fields)


def _role(part: Shape, shapes: Shapes) -> str:
    return "language model" if part is shapes.language else "vision model"


def network_of(settings: ModelRecipe) -> tuple[type[JoinedModel], dict[str, Any]]:
    """The class of a recipe's network, and the fields of its configuration beside those of its parts."""
    fields: dict[str, Any] = {"vision_grid": settings.vision_grid}
    if settings.architecture == "concat":
        fields |= {"pool_size": settings.pool_size, "image_positions": settings.image_positions != "none"}
        return ConcatVlmForConditionalGeneration, fields
    fields |= {name: getattr(settings, name) for name in ("null_token", "image_positions", "query_key_norm_init")}
    if settings.cross_attention_layers is not None:
        fields["cross_attention_layers"] = list(settings.cross_attention_layers)
    return AgeVlmForConditionalGeneration, fields
