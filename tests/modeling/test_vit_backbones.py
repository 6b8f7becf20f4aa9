"""Vision transformers as vision models: patch tokens in a grid, pictures of other sizes, their own pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import make_text_config
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    BitImageProcessorPil,
    CLIPImageProcessorPil,
    PreTrainedModel,
    ViTImageProcessorPil,
)

from agevlm import AgeVlmForConditionalGeneration
from agevlm.modeling.processing_agevlm import squeezing_processor
from agevlm.modeling.versions import checkpoint_activations
from agevlm.modeling.vision import fit_pictures, load_backbone

PATCH, SIDE, WIDTH = 8, 32, 16
SHAPE = {
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}
TEXT = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 20}
CONFIGS: dict[str, dict[str, Any]] = {
    "clip": {"vision_config": SHAPE, "text_config": TEXT},
    "clip_vision_model": SHAPE,
    "siglip": {"vision_config": SHAPE, "text_config": TEXT},
    "siglip_vision_model": SHAPE,
    "dinov2": SHAPE | {"mlp_ratio": 2},
    "dinov2_with_registers": SHAPE | {"mlp_ratio": 2, "num_register_tokens": 3},
    "dinov3_vit": SHAPE | {"num_register_tokens": 3},
}


def save(name: str, directory: Path) -> PreTrainedModel:
    """A tiny random model as the hub has it: the plain model, with its configuration."""
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(name, **CONFIGS[name]))
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.randn(tensor.shape) * 0.1)  # positions and registers start at 0
    model.save_pretrained(directory)
    return model.eval()


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_patch_tokens_are_the_cells_of_the_grid(name: str, tmp_path: Path) -> None:
    """At pretraining's size the last feature map is the model's own tokens behind its last norm, without the others."""
    model = save(name, tmp_path)
    backbone = load_backbone(tmp_path)
    pixels = torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    tower = getattr(model, "vision_model", model)
    tokens = tower(pixels).last_hidden_state
    if name.startswith("clip"):
        tokens = tower.post_layernorm(tokens)  # CLIP itself normalises its class token alone
    features = backbone(pixels).feature_maps[-1]
    assert features.shape == (2, WIDTH, 4, 4)
    assert backbone.channels == [WIDTH]
    expected = tokens[:, -16:].transpose(1, 2).unflatten(2, (4, 4))
    assert expected.std() > 0.1
    torch.testing.assert_close(features, expected)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_a_cell_is_where_its_pixels_are(name: str, tmp_path: Path) -> None:
    """Without attention between tokens a change of one patch changes one cell, also in a picture that is no square."""
    save(name, tmp_path)
    backbone = load_backbone(tmp_path, ["stem"])  # in front of the layers
    pixels = torch.randn(1, 3, 5 * PATCH, 7 * PATCH, generator=torch.Generator().manual_seed(1))
    changed = pixels.clone()
    changed[..., 3 * PATCH : 4 * PATCH, 6 * PATCH :] += 1
    before, after = backbone(pixels).feature_maps[0], backbone(changed).feature_maps[0]
    differs = (before != after).any(1)[0]
    assert differs.shape == (5, 7)
    assert differs.nonzero().tolist() == [[3, 6]]


@torch.no_grad()
@pytest.mark.parametrize("name", ["clip_vision_model", "siglip_vision_model"])
def test_positions_are_interpolated(name: str, tmp_path: Path) -> None:
    model = save(name, tmp_path)
    backbone = load_backbone(tmp_path, ["stem"])
    features = backbone(torch.zeros(1, 3, 48, 64)).feature_maps[0]  # so that positions are all there is
    weight = model.embeddings.position_embedding.weight
    square = weight[-16:].T.unflatten(1, (4, 4))[None]
    tokens = F.interpolate(square, size=(6, 8), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
    if model.embeddings.patch_embedding.bias is not None:
        tokens = tokens + model.embeddings.patch_embedding.bias
    if name.startswith("clip"):
        tokens = model.pre_layrnorm(tokens)
    expected = model.post_layernorm(tokens).transpose(1, 2).unflatten(2, (6, 8))
    torch.testing.assert_close(features, expected)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_joined_it_is_saved_and_read_again(name: str, tmp_path: Path) -> None:
    save(name, tmp_path / "vision")
    backbone = load_backbone(tmp_path / "vision", ["stage1", "stage3"])
    language = AutoModelForCausalLM.from_config(make_text_config())
    model = AgeVlmForConditionalGeneration.from_backbones(language, backbone)
    assert model.projector.in_features == 2 * WIDTH
    pixels = torch.randn(1, 3, 40, 48, generator=torch.Generator().manual_seed(1))
    features = model.vision_features(pixels)
    assert features.shape == (1, 2 * WIDTH, 5, 6)
    model.save_pretrained(tmp_path / "joined")
    again = AgeVlmForConditionalGeneration.from_pretrained(tmp_path / "joined").eval()
    assert torch.equal(again.vision_features(pixels), features)
    alone = load_backbone(tmp_path / "joined", ["stage3"])  # out of a network of ours
    torch.testing.assert_close(alone(pixels).feature_maps[0], features[:, WIDTH:])


def test_layers_behind_the_last_feature_map_are_not_computed(tmp_path: Path) -> None:
    save("clip_vision_model", tmp_path)
    backbone = load_backbone(tmp_path, ["stage2"])
    seen: list[int] = []
    for number, layer in enumerate(backbone.tower.encoder.layers):
        layer.register_forward_hook(lambda *_, number=number: seen.append(number))
    backbone(torch.zeros(1, 3, SIDE, SIDE))
    assert seen == [0, 1]


def test_the_vision_transformer_trains_with_checkpointing(tmp_path: Path) -> None:
    save("siglip", tmp_path)
    gradients = []
    for checkpointing in (False, True):
        backbone = load_backbone(tmp_path).train()
        if checkpointing:
            checkpoint_activations(backbone, True)
        backbone(torch.ones(1, 3, SIDE, SIDE)).feature_maps[0].square().sum().backward()
        gradients.append(backbone.tower.embeddings.patch_embedding.weight.grad)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


def test_stages_that_it_has_not_are_named(tmp_path: Path) -> None:
    save("clip", tmp_path)
    with pytest.raises(ValueError, match="the feature maps stem, stage1, stage2, stage3, and 'stage4' was asked for"):
        load_backbone(tmp_path, ["stage4"])


def test_a_text_model_is_no_vision_model(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(make_text_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="vision models of type 'llama' give no feature map"):
        load_backbone(tmp_path)


PROCESSORS = {
    "clip": (CLIPImageProcessorPil(size={"shortest_edge": 40}, crop_size=32), 32, "openai"),
    "dinov2": (BitImageProcessorPil(size={"shortest_edge": 256}, crop_size=224, image_mean=[0.4] * 3), 224, [0.4] * 3),
    "siglip": (ViTImageProcessorPil(size={"height": 48, "width": 48}, image_mean=[0.5] * 3), 48, [0.5] * 3),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_the_size_that_the_network_saw_and_its_mean_are_taken_over(name: str, tmp_path: Path) -> None:
    processor, side, mean = PROCESSORS[name]
    processor.save_pretrained(tmp_path)
    ours = squeezing_processor(tmp_path)
    assert (ours.size["height"], ours.size["width"]) == (side, side)
    assert list(ours.image_mean) == list(processor.image_mean if mean == "openai" else mean)
    assert list(ours.image_std) == list(processor.image_std)


def test_pictures_that_patches_do_not_fill_are_refused(tmp_path: Path) -> None:
    save("dinov2", tmp_path)
    backbone, processor = load_backbone(tmp_path), squeezing_processor(SIDE)
    fit_pictures(backbone, processor, 40)
    assert processor.size["height"] == 40
    with pytest.raises(ValueError, match=r"pictures of 36 pixels are not cut whole into patches of 8: .* 32 or 40"):
        fit_pictures(backbone, processor, 36)
    with pytest.raises(ValueError, match=r"pictures of 2056 pixels are too large: set image_size to 2048 or less"):
        fit_pictures(backbone, processor, 2056)
