"""The shape of the concatenation baseline: a decoder, a vision backbone, and how many image tokens stand in front.

Plain data with its checks. It builds no module and loads no weight.
"""

from __future__ import annotations

from typing import Any, ClassVar

from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec
from transformers.models.auto.configuration_auto import AutoConfig

from .configuration_agevlm import VisionGrid, check_known, check_model_type, check_vision_grid
from .versions import CACHE


class ConcatVlmConfig(PreTrainedConfig):
    """Configuration of `ConcatVlmForConditionalGeneration`.

    Args:
        text_config: configuration of the decoder, an object or a dict with its `model_type`. Default: Llama.
        vision_config: configuration of a backbone with a feature map. The maps that its `out_features` names, by
            default the last, are joined to one grid. Default: ConvNext.
        vision_grid: the grid of several joined feature maps: the "coarse" one or the "fine" one.
        image_token_id: id of the `<image>` placeholder, one for each image. Default: the decoder's vocabulary size.
        pool_size: side of the squares of cells whose features are averaged into one image token. 1 keeps all, 2 a
            quarter. A grid that it does not divide loses its last rows and columns to a smaller square.
        image_positions: adds the code of each image token's place to it, by a learned linear map.
        initializer_range: standard deviation of new weights. Default: `1 / sqrt(fan_in)`.
        known_words: names of things, and of their colours, that training pictures showed. Default: not told.
        known_questions: what kinds of question training asked ("presence", "counting"). Default: not told.

    Raises:
        ValueError: a pool size below 1, or a decoder with layers of sliding attention, which lose sight of what stands
            in front.
    """

    model_type = "agevlm_concat"
    keys_to_ignore_at_inference = (CACHE, "image_memory")
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="convnext"),
    }

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    vision_grid: VisionGrid = "coarse"
    image_token_id: int | None = None
    pool_size: int = 1
    image_positions: bool = True
    initializer_range: float | None = None
    known_words: list[str] | None = None
    known_questions: list[str] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        if self.image_token_id is None:
            self.image_token_id = self.text_config.vocab_size
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        check_vision_grid(self.vision_grid)
        check_known(self)
        if self.pool_size < 1:
            raise ValueError(f"pool_size={self.pool_size} must be at least 1")
        if "sliding_attention" in (getattr(self.text_config, "layer_types", None) or ()):
            raise ValueError(
                f"a decoder of type {self.text_config.model_type!r} has layers of sliding attention, which lose "
                "sight of image tokens in front of the text: take one without, such as Llama or Qwen3"
            )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As for any configuration, but ValueError for one of another architecture."""
        check_model_type(config_dict, cls.model_type)
        return super().from_dict(config_dict, **kwargs)

    @property
    def null_token(self) -> bool:
        """None here: the attention of an absent word has the text to go to."""
        return False

    @property
    def num_guided_layers(self) -> int:
        """How many layers look at images, and can be guided: all of the decoder's."""
        return self.text_config.num_hidden_layers


__all__ = ["ConcatVlmConfig"]
