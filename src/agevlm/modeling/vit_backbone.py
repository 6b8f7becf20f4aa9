"""The vision transformers of CLIP and SigLIP as backbones: patch tokens as feature maps, for pictures of any size.

Transformers has the models, and backbone classes for other vision transformers alone (DINOv2, DINOv3, …). The layers
are transformers' own. Positions are interpolated where the picture has another size than pretraining's. The class token
is in no feature map, nor is SigLIP's pooling head in the model.

Letters: I images, T tokens, N = h * w patch tokens, C channels.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec
from transformers.modeling_outputs import BackboneOutput

TOWERS = {"clip": "clip_vision_model", "siglip": "siglip_vision_model"}  # of a model of pictures and text, its vision's


class VitBackboneConfig(BackboneConfigMixin, PreTrainedConfig):
    """Configuration of `VitBackbone`.

    Its feature maps are called `stem`, `stage1`, …: the tokens in front of the layers, and behind each.

    Args:
        vision_config: of the vision transformer, of the type `clip_vision_model` or `siglip_vision_model`.
        out_features, out_indices: which feature maps are given; by default the last layer's.
    """

    model_type = "agevlm_vit"
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="clip_vision_model"),
    }

    vision_config: dict | PreTrainedConfig | None = None
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        out = {name: kwargs.pop(name, None) for name in ("out_features", "out_indices")}
        super().__post_init__(**kwargs)
        if self.vision_config.model_type not in TOWERS.values():
            raise ValueError(
                f"vision_config is of the type {self.vision_config.model_type!r}, and one of "
                f"{', '.join(TOWERS.values())} was expected"
            )
        if hasattr(self.vision_config, "vision_use_head"):
            self.vision_config.vision_use_head = False  # SigLIP's pooling, through which no feature map has passed
        numbers = range(1, self.vision_config.num_hidden_layers + 1)
        self.stage_names = ["stem", *(f"stage{number}" for number in numbers)]
        self.set_output_features_output_indices(**out)

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.vision_config.patch_size

    @property
    def image_size(self) -> int:
        """Side of pretraining's pictures in pixels."""
        return self.vision_config.image_size


class VitBackbone(BackboneMixin, PreTrainedModel):
    """A vision transformer whose patch tokens, behind its last norm, are its feature maps (I, C, h, w)."""

    config_class = VitBackboneConfig
    base_model_prefix = ""
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True

    def __init__(self, config: VitBackboneConfig, tower: PreTrainedModel | None = None) -> None:
        super().__init__(config)
        self.tower = tower if tower is not None else AutoModel.from_config(config.vision_config)
        self.num_features = [config.vision_config.hidden_size] * len(config.stage_names)
        self.post_init()

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BackboneOutput:
        """The feature maps that the configuration names, of images (I, 3, height, width).

        A picture's rest that fills no patch is not seen, at the right and at the bottom.
        """
        tower, wanted = self.tower, self.out_features
        tokens_ITC = tower.embeddings(pixel_values, interpolate_pos_encoding=True)
        if hasattr(tower, "pre_layrnorm"):
            tokens_ITC = tower.pre_layrnorm(tokens_ITC)
        grid = tuple(side // self.config.patch_size for side in pixel_values.shape[-2:])
        maps = [self._feature_map(tokens_ITC, grid)] if "stem" in wanted else []
        for name, layer in zip(self.stage_names[1:], tower.encoder.layers, strict=True):
            if len(maps) == len(wanted):
                break
            tokens_ITC = layer(tokens_ITC, None)
            if name in wanted:
                maps.append(self._feature_map(tokens_ITC, grid))
        return BackboneOutput(feature_maps=tuple(maps))

    def _feature_map(self, tokens_ITC: Tensor, grid: tuple[int, ...]) -> Tensor:
        patches_INC = self.tower.post_layernorm(tokens_ITC[:, -grid[0] * grid[1] :])  # a class token stands in front
        return patches_INC.transpose(1, 2).unflatten(2, grid)


__all__ = ["VitBackbone", "VitBackboneConfig"]
