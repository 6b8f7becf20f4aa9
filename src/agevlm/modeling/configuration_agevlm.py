"""The shape of an AGE-VLM: a decoder, a vision backbone, and the cross-attention layers between them.

Plain data with its checks. It builds no module and loads no weight.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, ClassVar, Literal, get_args

from transformers.configuration_utils import PreTrainedConfig, SubConfigSpec
from transformers.models.auto.configuration_auto import AutoConfig

from .versions import CACHE

ImagePositions = Literal["none", "values", "keys_and_values"]
VisionGrid = Literal["coarse", "fine"]


def default_cross_attention_layers(num_hidden_layers: int) -> list[int]:
    """Indices of the cross-attention layers in the combined stack, for a decoder of `num_hidden_layers` layers.

    One layer for every four of the decoder, at least two, evenly spread: layer `i` of `n` stands in front of decoder
    layer `floor((i + 0.5) * num_hidden_layers / n)`. Sixteen layers give the paper's 2, 7, 12, 17 of 20.
    """
    num_layers = min(num_hidden_layers, max(2, round(num_hidden_layers / 4)))
    return [i + int((i + 0.5) * num_hidden_layers / num_layers) for i in range(num_layers)]


def check_model_type(config_dict: dict[str, Any], expected: str) -> None:
    """ValueError for the configuration of another architecture; transformers would read it with a warning."""
    model_type = config_dict.get("model_type", expected)
    if model_type != expected:
        raise ValueError(
            f"the checkpoint is of type {model_type!r}, not {expected!r}: name one of that type, "
            "or make one of a language and a vision model by from_backbones"
        )


def check_vision_grid(vision_grid: str) -> None:
    """ValueError for a grid of joined feature maps that is none."""
    if vision_grid not in get_args(VisionGrid):
        raise ValueError(f"vision_grid={vision_grid!r} must be one of {get_args(VisionGrid)}")


def check_known(config: Any) -> None:
    """ValueError where what a configuration tells of its training is no list of texts; None tells nothing."""
    for name in ("known_words", "known_questions"):
        told = getattr(config, name)
        if told is not None and not (isinstance(told, list | tuple) and all(isinstance(text, str) for text in told)):
            raise ValueError(f"{name}={told!r:.80} must be a list of texts")


class AgeVlmConfig(PreTrainedConfig):
    """Configuration of `AgeVlmForConditionalGeneration`.

    Args:
        text_config: configuration of the decoder, an object or a dict with its `model_type`. Default: Llama.
        vision_config: configuration of a backbone with a feature map (ConvNext, ConvNextV2, Dinov2, …). The maps that
            its `out_features` names, by default the last, are joined to one grid. Default: ConvNext.
        vision_grid: the grid of several joined feature maps: the "coarse" one or the "fine" one.
        cross_attention_layers: sorted indices of the cross-attention layers in the combined stack of decoder and
            cross-attention layers, Mllama's convention. Each must have a decoder layer somewhere behind it.
            Default: `default_cross_attention_layers`.
        cross_attention_heads, cross_attention_key_value_heads, cross_attention_head_dim: default to the decoder's.
        cross_attention_intermediate_size: width of the gated MLP; defaults to the decoder's.
        image_token_id: id of the `<image>` placeholder, one for each image. It may lie outside the decoder's embedding
            table, which is never asked for it. Default: the decoder's vocabulary size.
        image_positions: where the code of an image token's place goes: into the attention's values, into keys and
            values, or nowhere.
        null_token: adds a learnable key and value that words attend to whose object is not in the image.
        attn_gate_init, mlp_gate_init: start of the gates before their tanh. At 0 the model is its decoder exactly.
        query_key_norm_init: start of the weights of the norms of queries and keys, whose product scales the logits of
            attention. At 1 those of unrelated queries and keys have a standard deviation of 1, so that attention over
            many tokens starts nearly even; at 2 it is 4.
        rms_norm_eps: of the cross-attention's norms; defaults to the decoder's, or 1e-6.
        initializer_range: standard deviation of new weights. Default: `1 / sqrt(fan_in)`, which is 0.022 at width 2048.
        known_words: names of things, and of their colours, that training pictures showed. Default: not told.
        known_questions: what kinds of question training asked ("presence", "counting"). Default: not told.

    Raises:
        ValueError: layers out of range, unsorted or repeated, heads that do not divide, or an unknown choice.
    """

    model_type = "agevlm"
    keys_to_ignore_at_inference = (CACHE, "image_memory")
    sub_configs_defaults: ClassVar[dict[str, SubConfigSpec]] = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="convnext"),
    }

    text_config: dict | PreTrainedConfig | None = None
    vision_config: dict | PreTrainedConfig | None = None
    vision_grid: VisionGrid = "coarse"
    cross_attention_layers: list[int] | None = None
    cross_attention_heads: int | None = None
    cross_attention_key_value_heads: int | None = None
    cross_attention_head_dim: int | None = None
    cross_attention_intermediate_size: int | None = None
    image_token_id: int | None = None
    image_positions: ImagePositions = "values"
    null_token: bool = False
    attn_gate_init: float = 0.0
    mlp_gate_init: float = 0.0
    query_key_norm_init: float = 1.0
    rms_norm_eps: float | None = None
    initializer_range: float | None = None
    known_words: list[str] | None = None
    known_questions: list[str] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        text = self.text_config
        heads = text.num_attention_heads
        for name, default in {
            "cross_attention_layers": default_cross_attention_layers(text.num_hidden_layers),
            "cross_attention_heads": heads,
            "cross_attention_key_value_heads": getattr(text, "num_key_value_heads", None) or heads,
            "cross_attention_head_dim": getattr(text, "head_dim", None) or text.hidden_size // heads,
            "cross_attention_intermediate_size": getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
            "image_token_id": text.vocab_size,
            "rms_norm_eps": getattr(text, "rms_norm_eps", None) or 1e-6,
        }.items():
            if getattr(self, name) is None:
                setattr(self, name, default)
        self.tie_word_embeddings = bool(getattr(text, "tie_word_embeddings", False))
        self._check_layers()
        self._check_sizes()

    def _check_sizes(self) -> None:
        if self.image_positions not in get_args(ImagePositions):
            raise ValueError(f"image_positions={self.image_positions!r} must be one of {get_args(ImagePositions)}")
        check_vision_grid(self.vision_grid)
        check_known(self)
        heads, key_value_heads = self.cross_attention_heads, self.cross_attention_key_value_heads
        if heads % key_value_heads:
            raise ValueError(
                f"cross_attention_heads={heads} must be a multiple of cross_attention_key_value_heads={key_value_heads}"
            )
        above_0 = (
            "cross_attention_head_dim",
            "cross_attention_intermediate_size",
            "rms_norm_eps",
            "query_key_norm_init",
        )
        for name in above_0:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be above 0")

    def _check_layers(self) -> None:
        layers, depth = self.cross_attention_layers, self.text_config.num_hidden_layers
        if not layers:
            raise ValueError("cross_attention_layers is empty: name at least one layer, or None for the default")
        if any(later <= earlier for earlier, later in pairwise(layers)):
            raise ValueError(f"cross_attention_layers={layers} must be sorted, each index once")
        if layers[0] < 0 or self.decoder_layers_behind[-1] >= depth:
            raise ValueError(
                f"cross_attention_layers={layers} must lie in a combined stack of {depth + len(layers)} layers "
                f"({depth} of the decoder and {len(layers)} of cross-attention) that ends with a decoder layer"
            )

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As for any configuration, but ValueError for one of another architecture."""
        check_model_type(config_dict, cls.model_type)
        return super().from_dict(config_dict, **kwargs)

    @property
    def num_guided_layers(self) -> int:
        """How many layers look at images, and can be guided."""
        return len(self.cross_attention_layers)

    @property
    def decoder_layers_behind(self) -> list[int]:
        """For each cross-attention layer, the index of the decoder layer that it stands in front of."""
        return [index - rank for rank, index in enumerate(self.cross_attention_layers)]


__all__ = ["AgeVlmConfig", "default_cross_attention_layers"]
