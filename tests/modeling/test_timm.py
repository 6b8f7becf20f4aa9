"""Backbones of timm: by name, by directory, in a network, and converted. `make test-torchvision` runs these tests.

Nothing is downloaded: the networks are timm's own, with random weights where a name would fetch trained ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import make_text_config
from tiny_runs import make_foundation, make_recipe, run
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from agevlm import AgeVlmForConditionalGeneration
from agevlm.checkpoints import load_model
from agevlm.checkpoints.importing import import_backbone
from agevlm.modeling.processing_agevlm import squeezing_processor
from agevlm.modeling.vision import fit_pictures, load_backbone

timm: Any = pytest.importorskip("timm", reason="the extra timm is not installed")

NAME = "test_convnext"  # of timm's own tests: 0.3 million parameters, pictures of 160 pixels
STAGES = ["stages.0", "stages.1", "stages.2", "stages.3"]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names give random weights, from a fixed seed, where they would be downloaded."""
    create = timm.create_model

    def random(name: str, pretrained: bool = False, **options: Any) -> Any:
        torch.manual_seed(0)
        return create(name, pretrained=pretrained and name.startswith("local-dir"), **options)

    monkeypatch.setattr(timm, "create_model", random)


@pytest.mark.usefixtures("offline")
@torch.no_grad()
def test_a_name_gives_timms_feature_maps() -> None:
    pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    backbone = load_backbone(f"timm/{NAME}", ["stages.3", "stages.2"])  # in any order
    theirs = timm.create_model(NAME, features_only=True).eval()(pixels)
    assert backbone.out_features == ["stages.2", "stages.3"]
    assert [tuple(features.shape) for features in theirs[-2:]] == [(2, 48, 4, 6), (2, 64, 2, 3)]
    for found, expected in zip(backbone(pixels).feature_maps, theirs[-2:], strict=True):
        assert torch.equal(found, expected)
    (last,) = load_backbone(f"timm/{NAME}")(pixels).feature_maps
    assert torch.equal(last, theirs[-1])


@pytest.mark.usefixtures("offline")
def test_its_pictures_are_what_timm_says() -> None:
    processor = squeezing_processor("timm/convnext_base.clip_laiona_320")
    assert processor.size == {"height": 320, "width": 320}
    assert processor.image_mean[0] == pytest.approx(0.48145466)
    processor = squeezing_processor("timm/convnext_tiny.fb_in1k", image_mean=[0.1] * 3)
    assert (processor.size["height"], processor.image_mean[0], processor.image_std[0]) == (224, 0.1, 0.229)


@pytest.mark.usefixtures("offline")
@torch.no_grad()
def test_joined_it_is_saved_and_read_again(tmp_path: Path) -> None:
    language = AutoModelForCausalLM.from_config(make_text_config())
    backbone = load_backbone(f"timm/{NAME}", STAGES[2:])
    model = AgeVlmForConditionalGeneration.from_backbones(language, backbone, vision_grid="fine")
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    features = model.vision_features(pixels)
    assert features.shape == (1, 48 + 64, 4, 4)
    model.save_pretrained(tmp_path)
    again = AgeVlmForConditionalGeneration.from_pretrained(tmp_path).eval()
    assert torch.equal(again.vision_features(pixels), features)
    alone = load_backbone(tmp_path, STAGES[2:])  # out of a network of ours
    assert torch.equal(alone(pixels).feature_maps[0], features[:, :48])


@pytest.mark.usefixtures("offline")
def test_a_recipe_trains_with_it(tmp_path: Path) -> None:
    foundation = make_foundation(tmp_path / "foundation")
    content = make_recipe(foundation, {"name": "ground", "trainable": ["projector", "cross_attention"], "steps": 2})
    content["model"] |= {"vision_model": f"timm/{NAME}", "vision_stages": STAGES[1:3], "image_size": 96}
    run(content, tmp_path / "run")
    model, processor = load_model(tmp_path / "run" / "model")
    assert model.vision_model.out_features == STAGES[1:3]
    assert processor.image_processor.size == {"height": 96, "width": 96}
    assert list(processor.image_processor.image_mean) == [0.5] * 3
    assert model.vision_features(torch.zeros(1, 3, 96, 96)).shape == (1, 32 + 48, 6, 6)


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A directory as the hub has it: timm's configuration beside safetensors."""
    torch.manual_seed(3)
    model = timm.create_model(NAME)
    known = {"mean": [0.1, 0.2, 0.3], "std": [0.4] * 3, "input_size": [3, 96, 96]}
    content = {"architecture": NAME, "num_classes": 1000, "pretrained_cfg": model.pretrained_cfg | known}
    directory = tmp_path / "hub"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(content))
    save_file(model.state_dict(), directory / "model.safetensors")
    return directory


@torch.no_grad()
def test_a_directory_of_the_hub_is_read_offline(hub: Path, tmp_path: Path) -> None:
    backbone = load_backbone(hub)
    theirs = timm.create_model(NAME).eval()
    theirs.load_state_dict(load_file(hub / "model.safetensors"))
    pixels = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    (found,) = backbone(pixels).feature_maps
    torch.testing.assert_close(found, theirs.forward_intermediates(pixels, intermediates_only=True)[-1])
    processor = squeezing_processor(hub)
    assert processor.size == {"height": 96, "width": 96}
    assert [*processor.image_mean, *processor.image_std] == [0.1, 0.2, 0.3, 0.4, 0.4, 0.4]
    backbone.save_pretrained(tmp_path / "saved")
    assert str(hub) not in (tmp_path / "saved" / "config.json").read_text()
    assert torch.equal(load_backbone(tmp_path / "saved")(pixels).feature_maps[0], found)


def test_a_directory_without_safetensors_is_refused(hub: Path) -> None:
    (hub / "model.safetensors").rename(hub / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"holds no model.safetensors"):
        load_backbone(hub)


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("convnext_base.clip_laion3b_augreg", r"timm/convnext_base.clip_laion2b_augreg\?"),
        ("nothing_of_the_kind", "did you mean timm/"),
    ],
)
def test_names_that_timm_does_not_know(name: str, near: str) -> None:
    for load in (load_backbone, squeezing_processor):
        with pytest.raises(ValueError, match=f"timm has no model '{name}': .*{near}"):
            load(f"timm/{name}")


@pytest.mark.usefixtures("offline")
def test_stages_that_it_has_not_are_named() -> None:
    with pytest.raises(ValueError, match=r"the feature maps stages.0, stages.1, stages.2, stages.3, and 'stage4' was"):
        load_backbone(f"timm/{NAME}", ["stage4"])


@pytest.mark.usefixtures("offline")
def test_a_network_of_one_size_takes_no_other() -> None:
    backbone, processor = load_backbone("timm/test_vit"), squeezing_processor("timm/test_vit")
    fit_pictures(backbone, processor, None)
    assert backbone(torch.zeros(1, 3, 160, 160)).feature_maps[0].shape == (1, 64, 10, 10)
    with pytest.raises(ValueError, match="takes pictures of 160 pixels alone, and image_size=192"):
        fit_pictures(backbone, processor, 192)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize(("stages", "near"), [(None, "64 or 96"), (STAGES[1:3], None)])
def test_pictures_whose_edge_a_convnext_of_timm_would_not_see_are_refused(
    stages: list[str] | None, near: str | None
) -> None:
    backbone, processor = load_backbone(f"timm/{NAME}", stages), squeezing_processor(f"timm/{NAME}")
    fit_pictures(backbone, processor, None)
    if near is None:
        fit_pictures(backbone, processor, 80)
        return
    with pytest.raises(ValueError, match=f"80 pixels are not cut whole into patches of 32: set image_size to {near}"):
        fit_pictures(backbone, processor, 80)


@pytest.mark.usefixtures("offline")
def test_networks_of_timm_that_pad_take_any_side() -> None:
    backbone, processor = load_backbone("timm/test_resnet"), squeezing_processor(32)
    fit_pictures(backbone, processor, 80)
    assert processor.size["height"] == 80


# ------------------------------------------------------------------------------------------- converted, without timm

SIZES = {
    "convnext_base": {"depths": [1, 1, 2, 1]},
    "convnext_large_mlp": {"depths": [1, 1, 1, 1]},
    "convnext_xxlarge": {"depths": [1, 1, 1, 1], "dims": [48, 96, 192, 384]},
    "convnext_nano": {},  # of convolutions where others have matrices
}


@pytest.mark.parametrize("name", SIZES)
@torch.no_grad()
def test_a_converted_convnext_computes_what_timm_computes(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, **SIZES[name]).eval()
    eps = model.stages[0].blocks[0].norm.eps
    monkeypatch.setattr("agevlm.checkpoints.convnext._OTHER_EPS", {"convnext": eps})  # by its shape it is none of them
    for tensor in model.state_dict().values():
        tensor.copy_(tensor + 0.3 * torch.randn(tensor.shape) / max(1, tensor.shape[-1]) ** 0.5)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    import_backbone(tmp_path / "weights.safetensors", tmp_path / "out", normalisation="clip")
    backbone = load_backbone(tmp_path / "out", ["stage1", "stage2", "stage3", "stage4"])
    pixels = 0.01 * torch.randn(1, 3, 64, 96)
    theirs = model.forward_intermediates(pixels, intermediates_only=True)
    for found, raw in zip(backbone(pixels).feature_maps, theirs, strict=True):
        expected = F.layer_norm(raw.movedim(1, -1), raw.shape[1:2], eps=eps).movedim(-1, 1)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_each_size_of_clip_is_known_by_its_shape_with_its_eps() -> None:
    from agevlm.checkpoints.convnext import _EPS, _NAMES, _OTHER_EPS

    for name, ours in {
        "convnext_base": "convnext-base",
        "convnext_large": "convnext-large",
        "convnext_large_mlp": "convnext-large",
        "convnext_xxlarge": "convnext-xxlarge",
    }.items():
        with torch.device("meta"):
            model = timm.create_model(name)
        depths = tuple(len(stage.blocks) for stage in model.stages)
        assert _NAMES[depths, model.stem[0].out_channels] == ours
        assert {norm.eps for norm in model.modules() if isinstance(norm, torch.nn.LayerNorm)} == {
            _OTHER_EPS.get(ours, _EPS)
        }
