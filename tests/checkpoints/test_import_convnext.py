"""ConvNeXts with the names of timm or open_clip as backbones of transformers: the same values, the right pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoImageProcessor

from agevlm.checkpoints.convnext import NORMALISATIONS
from agevlm.checkpoints.importing import import_backbone
from agevlm.modeling.vision import load_backbone

CLIP, IMAGENET = NORMALISATIONS["clip"], NORMALISATIONS["imagenet"]


def make_weights(
    depths: tuple[int, ...] = (1, 2), widths: tuple[int, ...] = (8, 16), patch: int = 4
) -> dict[str, Tensor]:
    """Random weights with timm's names."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) / max(1, shape[-1]) ** 0.5

    def pair(name: str, *shape: int) -> dict[str, Tensor]:
        return {f"{name}.weight": random(*shape), f"{name}.bias": random(shape[0])}

    weights = pair("stem.0", widths[0], 3, patch, patch) | pair("stem.1", widths[0])
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        if stage:
            weights |= pair(f"stages.{stage}.downsample.0", widths[stage - 1])
            weights |= pair(f"stages.{stage}.downsample.1", width, widths[stage - 1], 2, 2)
        for block in range(depth):
            place = f"stages.{stage}.blocks.{block}"
            weights |= pair(f"{place}.conv_dw", width, 1, 7, 7) | pair(f"{place}.norm", width)
            weights |= pair(f"{place}.mlp.fc1", 4 * width, width) | pair(f"{place}.mlp.fc2", width, 4 * width)
            weights[f"{place}.gamma"] = random(width)
    return weights | pair("head.norm", widths[-1]) | pair("head.fc", 10, widths[-1])


def as_open_clip(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same network inside a CLIP of open_clip's, beside a projection and a text model."""
    trunk = {f"visual.trunk.{name}": value for name, value in weights.items() if not name.startswith("head.fc")}
    return trunk | {"visual.head.proj.weight": torch.zeros(4, 16), "logit_scale": torch.zeros(())}


@torch.no_grad()
def feature_maps(weights: dict[str, Tensor], pixels: Tensor, eps: float) -> list[Tensor]:
    """What the network of these weights computes, written down once more: the map of each stage."""

    def norm(x: Tensor, name: str) -> Tensor:
        last = F.layer_norm(x.movedim(1, -1), x.shape[1:2], weights[f"{name}.weight"], weights[f"{name}.bias"], eps)
        return last.movedim(-1, 1)

    def conv(x: Tensor, name: str, **options: Any) -> Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **options)

    x = norm(conv(pixels, "stem.0", stride=weights["stem.0.weight"].shape[-1]), "stem.1")
    maps, stage = [], 0
    while f"stages.{stage}.blocks.0.gamma" in weights:
        if stage:
            x = conv(norm(x, f"stages.{stage}.downsample.0"), f"stages.{stage}.downsample.1", stride=2)
        block = 0
        while f"{(place := f'stages.{stage}.blocks.{block}')}.gamma" in weights:
            inside = norm(conv(x, f"{place}.conv_dw", padding=3, groups=x.shape[1]), f"{place}.norm").movedim(1, -1)
            for layer in ("fc1", "fc2"):
                inside = F.linear(inside, weights[f"{place}.mlp.{layer}.weight"], weights[f"{place}.mlp.{layer}.bias"])
                inside = F.gelu(inside) if layer == "fc1" else inside
            x = x + (inside * weights[f"{place}.gamma"]).movedim(-1, 1)
            block += 1
        maps.append(x)
        stage += 1
    return maps


@torch.no_grad()
def assert_equal_maps(directory: Path, expected: list[Tensor], pixels: Tensor, eps: float) -> None:
    """The backbone's maps are those given behind a norm without weights, at every stage and at the last one alone."""
    names = [f"stage{number + 1}" for number in range(len(expected))]
    for found, raw in zip(load_backbone(directory, names)(pixels).feature_maps, expected, strict=True):
        wanted = F.layer_norm(raw.movedim(1, -1), raw.shape[1:2], eps=eps).movedim(-1, 1)
        assert wanted.std() > 0.1
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    (last,) = load_backbone(directory)(pixels).feature_maps
    torch.testing.assert_close(last, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["timm.safetensors", "timm.pth", "open_clip.safetensors"])
def test_it_computes_the_same(form: str, tmp_path: Path) -> None:
    weights, path = make_weights(), tmp_path / form
    given = as_open_clip(weights) if form.startswith("open_clip") else weights
    torch.save(given, path) if form.endswith(".pth") else save_file(given, path)
    assert import_backbone(path, tmp_path / "out", normalisation="clip") == "convnext"
    pixels = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    assert_equal_maps(tmp_path / "out", feature_maps(weights, pixels, 1e-6), pixels, 1e-6)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "README.md",
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }


def test_norms_of_another_eps_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest ConvNeXt of CLIP adds 1e-5 to variances, transformers 1e-6 to all: it shows where they are small."""
    monkeypatch.setattr("agevlm.checkpoints.convnext._OTHER_EPS", {"convnext": 1e-2})
    weights = make_weights()
    save_file(weights, tmp_path / "weights.safetensors")
    import_backbone(tmp_path / "weights.safetensors", tmp_path / "out", normalisation="clip")
    pixels = 0.05 * torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    expected = feature_maps(weights, pixels, 1e-2)
    assert (expected[-1] - feature_maps(weights, pixels, 1e-6)[-1]).abs().max() > 0.01
    assert_equal_maps(tmp_path / "out", expected, pixels, 1e-2)


def test_the_largest_one_is_known_by_its_shape() -> None:
    from agevlm.checkpoints.convnext import _NAMES, _OTHER_EPS

    assert _OTHER_EPS[_NAMES[(3, 4, 30, 3), 384]] == 1e-5


def test_weights_without_layer_scale(tmp_path: Path) -> None:
    weights = make_weights()
    ones = {name: torch.ones_like(value) for name, value in weights.items() if name.endswith("gamma")}
    save_file({name: value for name, value in weights.items() if name not in ones}, tmp_path / "weights.safetensors")
    import_backbone(tmp_path / "weights.safetensors", tmp_path / "out", normalisation="imagenet")
    pixels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert_equal_maps(tmp_path / "out", feature_maps(weights | ones, pixels, 1e-6), pixels, 1e-6)


TIMM = {"architecture": "x", "pretrained_cfg": {"mean": [0.1] * 3, "std": [0.2] * 3, "input_size": [3, 288, 288]}}
OPEN_CLIP = {
    "model_cfg": {"vision_cfg": {"timm_model_name": "convnext_large_mlp", "image_size": 320}},
    "preprocess_cfg": {"mean": list(CLIP[0]), "std": list(CLIP[1])},
}


@pytest.mark.parametrize(
    ("config", "options", "expected"),
    [
        (None, {"normalisation": "clip"}, CLIP),
        (None, {"normalisation": "imagenet"}, IMAGENET),
        (None, {"normalisation": "imagenet", "image_size": 384}, (*IMAGENET[:2], 384)),
        (("config.json", TIMM), {}, ([0.1] * 3, [0.2] * 3, 288)),
        (("config.json", TIMM), {"image_size": 96}, ([0.1] * 3, [0.2] * 3, 96)),
        (("config.json", TIMM), {"normalisation": "clip"}, (*CLIP[:2], 288)),
        (("open_clip_config.json", OPEN_CLIP), {}, (*CLIP[:2], 320)),
    ],
)
def test_pictures_are_as_the_options_or_the_configuration_say(
    config: tuple[str, Any] | None, options: dict[str, Any], expected: tuple[Any, Any, int], tmp_path: Path
) -> None:
    source = tmp_path / "hub"  # a directory as it was downloaded
    source.mkdir()
    save_file(make_weights(), source / "model.safetensors")
    if config is not None:
        (source / config[0]).write_text(json.dumps(config[1]))
    import_backbone(source, tmp_path / "out", **options)
    processor = AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert processor.size == {"height": expected[2], "width": expected[2]}
    assert (list(processor.image_mean), list(processor.image_std)) == (list(expected[0]), list(expected[1]))


def test_open_clips_names_alone_mean_clips_pictures(tmp_path: Path) -> None:
    save_file(as_open_clip(make_weights()), tmp_path / "weights.safetensors")
    import_backbone(tmp_path / "weights.safetensors", tmp_path / "out")
    assert list(AutoImageProcessor.from_pretrained(tmp_path / "out").image_mean) == list(CLIP[0])


def drop(weights: dict[str, Tensor]) -> None:
    del weights["stages.1.blocks.1.norm.weight"]


def add_v2(weights: dict[str, Tensor]) -> None:
    weights["stages.0.blocks.0.mlp.grn.weight"] = torch.zeros(32)


def reshape(weights: dict[str, Tensor]) -> None:
    weights["stages.0.blocks.0.conv_dw.weight"] = torch.zeros(8, 1, 5, 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop, r"encoder.stages.1.layers.1.layernorm.weight is missing, and \(16,\) was expected"),
        (add_v2, r"mlp.grn.weight is \(32,\), and nothing of that name was expected; ConvNeXt V2"),
        (reshape, r"dwconv.weight is \(8, 1, 5, 5\), and \(8, 1, 7, 7\) was expected"),
    ],
)
def test_other_networks_are_named(change: Any, message: str, tmp_path: Path) -> None:
    weights = make_weights()
    change(weights)
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=message):
        import_backbone(tmp_path / "weights.safetensors", tmp_path / "out", normalisation="clip")
    assert not (tmp_path / "out").exists()


def test_pictures_that_nothing_tells_about_are_asked_for(tmp_path: Path) -> None:
    save_file(make_weights(), tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="say --normalisation clip or imagenet"):
        import_backbone(tmp_path / "weights.safetensors", tmp_path / "out")


def test_damaged_files_and_empty_directories_are_named(tmp_path: Path) -> None:
    save_file(make_weights(), tmp_path / "weights.safetensors")
    data = (tmp_path / "weights.safetensors").read_bytes()
    (tmp_path / "weights.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"weights.safetensors: cannot be read"):
        import_backbone(tmp_path / "weights.safetensors", tmp_path / "out")
    with pytest.raises(ValueError, match="holds no file of weights"):
        import_backbone(tmp_path, tmp_path / "out")
    with pytest.raises(ValueError, match="no such file"):
        import_backbone(tmp_path / "nothing.safetensors", tmp_path / "out")
