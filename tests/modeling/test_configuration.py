"""The configuration: placement, defaults, checks, and its way to disk and back."""

from __future__ import annotations

from typing import Any

import pytest
from tiny_models import make_text_config, make_vision_config
from transformers import AutoConfig

from agevlm import AgeVlmConfig
from agevlm.modeling.configuration_agevlm import default_cross_attention_layers


@pytest.mark.parametrize(
    ("depth", "layers", "behind"),
    [
        (16, [2, 7, 12, 17], [2, 6, 10, 14]),  # the paper's
        (4, [1, 4], [1, 3]),
        (1, [0], [0]),
        (2, [0, 2], [0, 1]),
        (3, [0, 3], [0, 2]),
        (28, [2, 7, 12, 17, 22, 27, 32], [2, 6, 10, 14, 18, 22, 26]),
    ],
)
def test_the_default_placement(depth: int, layers: list[int], behind: list[int]) -> None:
    config = AgeVlmConfig(text_config=make_text_config(num_hidden_layers=depth))
    assert config.cross_attention_layers == default_cross_attention_layers(depth) == layers
    assert config.decoder_layers_behind == behind


@pytest.mark.parametrize("depth", range(1, 90))
def test_the_default_placement_is_sound_at_any_depth(depth: int) -> None:
    layers = default_cross_attention_layers(depth)
    behind = [index - rank for rank, index in enumerate(layers)]
    assert behind == sorted(set(behind))
    assert behind[0] >= 0
    assert behind[-1] < depth


def test_defaults_are_the_decoders() -> None:
    config = AgeVlmConfig(text_config=make_text_config(rms_norm_eps=1e-4), vision_config=make_vision_config())
    assert config.cross_attention_heads == 4
    assert config.cross_attention_key_value_heads == 2
    assert config.cross_attention_head_dim == 8
    assert config.cross_attention_intermediate_size == 48
    assert config.rms_norm_eps == 1e-4
    assert config.image_token_id == config.text_config.vocab_size
    assert config.image_positions == "values"
    assert not config.null_token
    assert config.get_text_config() is config.text_config
    assert AgeVlmConfig().text_config.model_type == "llama"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cross_attention_layers": []}, "is empty"),
        ({"cross_attention_layers": [4, 1]}, r"\[4, 1\] must be sorted"),
        ({"cross_attention_layers": [1, 1]}, r"\[1, 1\] must be sorted, each index once"),
        ({"cross_attention_layers": [-1, 2]}, "combined stack of 6 layers"),
        ({"cross_attention_layers": [1, 5]}, "ends with a decoder layer"),
        ({"cross_attention_heads": 5}, "cross_attention_heads=5 must be a multiple"),
        ({"image_positions": "keys"}, "image_positions='keys' must be one of"),
        ({"cross_attention_head_dim": 0}, "cross_attention_head_dim=0 must be above 0"),
    ],
)
def test_what_cannot_be_built_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AgeVlmConfig(text_config=make_text_config(), vision_config=make_vision_config(), **options)


def test_a_configuration_survives_the_disk_and_unknown_keys(tmp_path: Any) -> None:
    config = AgeVlmConfig(
        text_config=make_text_config("qwen3"),
        vision_config=make_vision_config("convnextv2", out_features=["stage1"]),
        cross_attention_layers=[0, 2],
        null_token=True,
        from_the_future=3,
    )
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert type(again) is AgeVlmConfig
    assert again.to_dict() | {"_name_or_path": ""} == config.to_dict()
    assert again.from_the_future == 3
    assert again.vision_config.out_features == ["stage1"]


def test_a_checkpoint_of_another_architecture_is_named(tmp_path: Any) -> None:
    make_text_config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="of type 'llama', not 'agevlm'"):
        AgeVlmConfig.from_pretrained(tmp_path)
