"""A checkpoint is whole or refused: whatever is missing or damaged is named before a word is answered."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from damages import change_json, change_weight, cut, lose, reshape, spoil
from safetensors.torch import load_file

from agevlm.checkpoints import load_vlm, resolve_model
from agevlm.modeling.vision import load_backbone

DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights that are missing": (change_weight("projector.weight", lose), "lacks the weights projector"),
    "a weight that is no number": (
        change_weight("projector.weight", spoil),
        "weights projector.weight in .* are not finite",
    ),
    "a weight of another shape": (change_weight("projector.weight", reshape), "weights in .* cannot be read"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "weights in .* cannot be read"),
    "half the weights": (cut("model.safetensors"), "weights in .* cannot be read"),
    "no chat template": (lambda d: (d / "chat_template.jinja").unlink(), "has no chat template"),
    "a chat template that drops what is said": (
        lambda d: (d / "chat_template.jinja").write_text("{% for message in messages %}x{% endfor %}"),
        "chat template in .* cannot be read .*contents \\[\\] for the messages",
    ),
    "a chat template that drops the picture": (
        lambda d: (d / "chat_template.jinja").write_text(
            "{% for message in messages %}{{ message.content | replace('<image>', '') }}{% endfor %}"
        ),
        "chat template in .* cannot be read .*it shows one picture as 'x'",
    ),
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
    change_weight(name, lose)(directory)
    with pytest.raises(ValueError, match=f"lacks the weights {name}"):
        load_backbone(directory)
