"""A checkpoint is whole or refused: whatever is missing or damaged is named before a word is answered."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from agevlm.checkpoints import load_vlm, resolve_model
from agevlm.modeling.vision import load_backbone


def change_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        weights = load_file(directory / "model.safetensors")
        change(weights)
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})

    return apply


def change_json(name: str, **values: object) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        content = json.loads((directory / name).read_text())
        (directory / name).write_text(json.dumps({**content, **values}))

    return apply


def cut(name: str) -> Callable[[Path], None]:
    def apply(directory: Path) -> None:
        data = (directory / name).read_bytes()
        (directory / name).write_bytes(data[: len(data) // 2])

    return apply


def spoil(weights: dict[str, torch.Tensor]) -> None:
    weights["projector.weight"][0, 0] = float("nan")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights that are missing": (change_weights(lambda w: w.pop("projector.weight")), "lacks the weights projector"),
    "a weight that is no number": (change_weights(spoil), "weights projector.weight in .* are not finite"),
    "a weight of another shape": (
        change_weights(lambda w: w.update({"projector.weight": torch.zeros(3, 3)})),
        "weights in .* cannot be read",
    ),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "weights in .* cannot be read"),
    "half the weights": (cut("model.safetensors"), "weights in .* cannot be read"),
    "no chat template": (lambda d: (d / "chat_template.jinja").unlink(), "has no chat template"),
    "half a tokenizer": (cut("tokenizer.json"), "tokenizer and processor in .* cannot be read"),
    "half a processor": (cut("processor_config.json"), "processor"),
    "half a generation config": (cut("generation_config.json"), "generation_config.json: not valid JSON"),
    "half a config": (cut("config.json"), "configuration in .* cannot be read"),
    "another image token": (change_json("config.json", image_token_id=7), "has the image token 452, the model 7"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused_and_the_damage_named(damage: str, tmp_path: Path) -> None:
    directory = tmp_path / "checkpoint"
    shutil.copytree(resolve_model("tiny"), directory)
    apply, message = DAMAGES[damage]
    apply(directory)
    with pytest.raises(ValueError, match=message) as caught:
        load_vlm(directory)
    assert str(directory) in str(caught.value)


def test_a_backbone_is_whole_or_refused(tmp_path: Path) -> None:
    directory = tmp_path / "backbone"
    shutil.copytree(resolve_model("tiny-convnext"), directory)
    load_backbone(directory)
    name = sorted(load_file(directory / "model.safetensors"))[0]
    change_weights(lambda weights: weights.pop(name))(directory)
    with pytest.raises(ValueError, match=f"lacks the weights {name}"):
        load_backbone(directory)
