"""A checkpoint is whole or refused: whatever is missing or damaged is named before a word is answered."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from damages import Damage, change_json, change_weight, cut, damaged_weights, lose, reshape, spoil

from agevlm.checkpoints import load_vlm, resolve_model
from agevlm.modeling.modeling_agevlm import AgeVlmForConditionalGeneration
from agevlm.modeling.processing_agevlm import AgeVlmProcessor

DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights that are missing": (change_weight("projector.weight", lose), "lacks the weights projector"),
    "a weight that is no number": (
        change_weight("projector.weight", spoil),
        "weights projector.weight in .* are not finite",
    ),
    "a weight of another shape": (
        change_weight("projector.weight", reshape),
        r"the weight projector.weight in .* has the shape \(128, 129\), its config.json says \(128, 128\)",
    ),
    "a configuration of a model beyond any memory": (
        change_json("config.json", cross_attention_head_dim=2_000_000),
        r"config.json says \(2000000,\)",
    ),
    "a generation config that asks for nonsense": (
        change_json("generation_config.json", output_hidden_states={"a": 1}),
        "output_hidden_states in a configuration in .* is neither true nor false",
    ),
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


PARTS: dict[str, tuple[Damage, str]] = {
    **damaged_weights(""),
    "half a config": (cut("config.json"), "cannot be read"),
}


@pytest.mark.parametrize("damage", PARTS)
@pytest.mark.parametrize("name", ["tiny-convnext", "tiny-llama"])
def test_a_damaged_part_is_not_joined_to_a_model(name: str, damage: str, tmp_path: Path) -> None:
    directory = tmp_path / name
    shutil.copytree(resolve_model(name), directory)
    apply, message = PARTS[damage]
    apply(directory)
    parts = {part: directory if part == name else resolve_model(part) for part in ("tiny-llama", "tiny-convnext")}
    with pytest.raises(ValueError, match=message) as caught:
        AgeVlmForConditionalGeneration.from_backbones(parts["tiny-llama"], parts["tiny-convnext"])
    assert str(directory) in str(caught.value)


@pytest.mark.parametrize(("part", "name"), [("tokenizer", "tiny-llama"), ("image processor", "tiny-convnext")])
def test_a_processor_is_not_made_of_half_a_file(part: str, name: str, tmp_path: Path) -> None:
    directory = tmp_path / name
    shutil.copytree(resolve_model(name), directory)
    cut("tokenizer.json" if part == "tokenizer" else "preprocessor_config.json")(directory)
    parts = {"tiny-llama": resolve_model("tiny-llama"), "tiny-convnext": resolve_model("tiny-convnext")} | {
        name: directory
    }
    with pytest.raises(ValueError, match=f"the {part} in {directory} cannot be read"):
        AgeVlmProcessor.from_backbones(parts["tiny-llama"], parts["tiny-convnext"])


def test_statistics_beside_the_weights_are_numbers_too(tmp_path: Path) -> None:
    directory = tmp_path / "photos"
    shutil.copytree(resolve_model("photos"), directory)
    change_weight("head.norm.running_var", spoil)(directory)
    with pytest.raises(ValueError, match=r"vision_model\.head\.norm\.running_var in .* are not finite"):
        load_vlm(directory)
