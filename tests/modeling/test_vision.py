"""Feature maps of a vision model, joined to one grid: values, sizes, and the way through both networks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import make_pixels, make_text_config, make_vision_config
from transformers import AutoBackbone, AutoModelForCausalLM, ResNetConfig, SwinConfig

from agevlm import AgeVlmConfig, AgeVlmForConditionalGeneration, ConcatVlmConfig, ConcatVlmForConditionalGeneration
from agevlm.modeling.efficientnet_lite import EfficientNetLiteConfig
from agevlm.modeling.processing_agevlm import squeezing_processor
from agevlm.modeling.vision import build_backbone, fit_pictures, join_feature_maps, load_backbone

NETWORKS = (AgeVlmForConditionalGeneration, ConcatVlmForConditionalGeneration)


def test_finer_maps_are_averaged_and_coarser_ones_interpolated() -> None:
    fine, coarse = torch.arange(16.0).reshape(1, 1, 4, 4), torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    joined = join_feature_maps((fine, coarse), "coarse")
    assert joined.shape == (1, 2, 2, 2)
    assert torch.equal(joined[0, 0], torch.tensor([[2.5, 4.5], [10.5, 12.5]]))
    assert torch.equal(joined[0, 1], coarse[0, 0])
    joined = join_feature_maps((fine, coarse), "fine")
    assert joined.shape == (1, 2, 4, 4)
    assert torch.equal(joined[0, 0], fine[0, 0])
    assert joined[0, 1].mean() == pytest.approx(2.5)
    assert joined[0, 1, 0, 0] == 1 and joined[0, 1, 3, 3] == 4


def test_a_single_map_stays_as_it_is() -> None:
    features = torch.randn(2, 3, 4, 4)
    assert join_feature_maps((features,), "fine") is features


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("vision")
    torch.manual_seed(0)
    AutoBackbone.from_config(make_vision_config()).save_pretrained(directory)
    return directory


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(("grid", "cells"), [("coarse", (4, 4)), ("fine", (8, 8))])
def test_both_networks_take_joined_features(
    network: Any, grid: str, cells: tuple[int, int], vision: Path, tmp_path: Path
) -> None:
    language = AutoModelForCausalLM.from_config(make_text_config())
    backbone = load_backbone(vision, ["stage2", "stage1"])  # in any order
    model = network.from_backbones(language, backbone, vision_grid=grid)
    assert model.vision_model.out_features == ["stage1", "stage2"]
    assert model.projector.in_features == 8 + 16
    pixels = make_pixels(2)
    features = model.vision_features(pixels)
    assert features.shape == (2, 24, *cells)
    maps = backbone(pixels).feature_maps
    assert torch.equal(features, join_feature_maps(maps, grid))  # type: ignore[arg-type]
    model.save_pretrained(tmp_path)
    again = network.from_pretrained(tmp_path).eval()
    assert again.config.vision_grid == grid
    assert torch.equal(again.vision_features(pixels), features)
    assert again.encode_images(pixels).grid == cells


def test_large_pictures_are_seen_one_at_a_time_but_not_in_training(vision: Path) -> None:
    model = AgeVlmForConditionalGeneration.from_backbones(
        AutoModelForCausalLM.from_config(make_text_config()), load_backbone(vision, ["stage2", "stage1"])
    )
    seen: list[int] = []
    model.vision_model.register_forward_pre_hook(lambda _, pixels: seen.append(len(pixels[0])))
    large = torch.randn(3, 3, 384, 512, generator=torch.Generator().manual_seed(0))
    apart = model.vision_features(large)
    assert seen == [1, 1, 1]
    together = model.train().vision_features(large)
    assert seen == [1, 1, 1, 3]
    torch.testing.assert_close(apart, together)
    model.eval().vision_features(make_pixels(8))
    assert seen == [1, 1, 1, 3, 8]


def test_larger_pictures_make_more_tokens(vision: Path) -> None:
    language = AutoModelForCausalLM.from_config(make_text_config())
    model = AgeVlmForConditionalGeneration.from_backbones(language, vision)
    assert model.encode_images(torch.zeros(1, 3, 64, 96)).grid == (8, 12)


@pytest.mark.parametrize(("asked", "message"), [(["stage3"], "'stage3' was asked for"), ([], "none was asked for")])
def test_stages_that_are_none_are_named(asked: list[str], message: str, vision: Path) -> None:
    with pytest.raises(ValueError, match=f"the feature maps stem, stage1, stage2, and {message}"):
        load_backbone(vision, asked)


def test_without_timm_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agevlm.modeling.timm_models.is_timm_available", lambda: False)
    (tmp_path / "config.json").write_text('{"architecture": "resnet18", "pretrained_cfg": {}}')
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "config.json").write_text('{"model_type": "timm_backbone", "backbone": "resnet18"}')
    for name in ("timm/resnet18.a1_in1k", tmp_path, saved):
        with pytest.raises(ValueError, match=r"pip install 'agevlm\[timm\]'"):
            load_backbone(name)
    with pytest.raises(ValueError, match=r"pip install 'agevlm\[timm\]'"):
        squeezing_processor("timm/resnet18.a1_in1k")


@pytest.mark.parametrize("config", [AgeVlmConfig, ConcatVlmConfig])
def test_a_grid_that_is_none_is_named(config: Any) -> None:
    with pytest.raises(ValueError, match="vision_grid='middle' must be one of"):
        config(text_config=make_text_config(), vision_config=make_vision_config(), vision_grid="middle")


@pytest.mark.parametrize("name", ["convnext", "convnextv2"])
@pytest.mark.parametrize(
    ("stages", "side", "near"),
    [(["stage2"], 36, "32 or 40"), (["stage1", "stage2"], 4, "8"), (["stage1"], 36, None), (["stem"], 36, None)],
)
def test_pictures_whose_edge_a_convnext_would_not_see_are_refused(
    name: str, stages: list[str], side: int, near: str | None
) -> None:
    backbone, processor = build_backbone(make_vision_config(name, out_features=stages)), squeezing_processor(32)
    fit_pictures(backbone, processor, None)
    if near is None:
        fit_pictures(backbone, processor, side)
    else:
        message = f"pictures of {side} pixels are not cut whole into patches of 8: set image_size to {near}$"
        with pytest.raises(ValueError, match=message):
            fit_pictures(backbone, processor, side)
    seen = 8 if near else 4
    (features, *_) = reversed(backbone(torch.zeros(1, 3, 40, 40)).feature_maps)
    assert features.shape[-1] == 40 // seen


def test_a_side_above_the_largest_is_not_advised() -> None:
    backbone = build_backbone(make_vision_config(patch_size=24, out_features=["stage1"]))
    with pytest.raises(ValueError, match=r"set image_size to 2040$"):
        fit_pictures(backbone, squeezing_processor(24), 2047)


@pytest.mark.parametrize(
    "config",
    [
        EfficientNetLiteConfig(stem_size=8, head_size=16),
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1]),
        SwinConfig(embed_dim=8, depths=[1, 1], num_heads=[1, 1], image_size=32),
    ],
    ids=lambda config: config.model_type,
)
def test_networks_that_pad_take_any_side(config: Any) -> None:
    backbone, processor = build_backbone(config), squeezing_processor(32)
    fit_pictures(backbone, processor, 75)
    assert processor.size["height"] == 75
    cells = backbone(torch.zeros(1, 3, 75, 75)).feature_maps[-1].shape[-1]
    strides = {"efficientnet_lite": 32, "resnet": 8, "swin": 8}
    assert cells == -(-75 // strides[config.model_type])
