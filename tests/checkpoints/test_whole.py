"""A checkpoint is whole or refused: whatever is missing or damaged is named before a word is answered."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from damages import Damage, change_json, change_weight, cut, damaged_weights, lose, pipe, reshape, spoil, write

from agevlm.checkpoints import choose_device, load_vlm, resolve_model
from agevlm.modeling.modeling_agevlm import AgeVlmForConditionalGeneration
from agevlm.modeling.processing_agevlm import AgeVlmProcessor

NAN = float("nan")


def without_template(name: str, **values: object) -> Damage:
    """No chat template, and other values in a file."""

    def apply(directory: Path) -> None:
        (directory / "chat_template.jinja").unlink()
        change_json(name, **values)(directory)

    return apply


def pixels(**values: object) -> Damage:
    """Other settings of the image processor."""
    return change_json("processor_config.json", "image_processor", **values)


MAKES = "image processor in .* makes .* look at image_mean, image_std and rescale_factor in processor_config.json"
CODE = {"AutoConfig": "code.Config", "AutoTokenizer": ["code.Tokenizer", None], "AutoProcessor": "code.Processor"}
BROUGHT = "read by code that it brings along, which is never run"

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
    "an empty chat template": (write("chat_template.jinja", ""), "has no chat template"),
    "a chat template of null": (without_template("tokenizer_config.json", chat_template=None), "has no chat template"),
    "a chat template of no text": (without_template("tokenizer_config.json", chat_template=""), "has no chat template"),
    "the word alone": (without_template("processor_config.json", note="chat_template"), "has no chat template"),
    "a chat template beyond any model's": (write("chat_template.jinja", "x" * 100_001), "jinja has 100001 bytes"),
    "weights of a null token": (
        change_json("config.json", null_token=False),
        r"weights cross_attention\.0\.cross_attn\.null_key, .* are none that its config.json asks for",
    ),
    "weights of one layer more": (
        change_json("config.json", cross_attention_layers=[1]),
        r"weights cross_attention\.1\.attn_gate, .* are none that its config.json asks for",
    ),
    "a weight of booleans": (change_weight("attn_gate", torch.Tensor.bool), "attn_gate in .* are stored as integers"),
    "no deviation": (pixels(image_std=[0, 0, 0]), MAKES),
    "a mean far from any picture": (pixels(image_mean=[50, 50, 50]), MAKES),
    "numbers beyond any picture": (pixels(rescale_factor=1e9), MAKES),
    "pictures as they are": (pixels(do_rescale=False), MAKES),
    "four means": (pixels(image_mean=[0.5] * 4), "image processor in .* cannot be read .*3 elements"),
    "an unknown filter": (pixels(resample=99), "image processor in .* cannot be read .*filter"),
    "pictures of any size": (pixels(do_resize=False), r"makes \(3, 64, 64\) of a picture, not \(3, 96, 96\)"),
    "pictures beyond any memory": (pixels(size={"height": 8192, "width": 8192}), "8 to 2048 were expected"),
    "a deviation that is no number": (pixels(image_std=[NAN] * 3), "image_std in processor_config.json is nan"),
    "an eps that is no number": (
        change_json("config.json", "text_config", rms_norm_eps=NAN),
        "rms_norm_eps in config.json is nan",
    ),
    "a theta that is no number": (
        change_json("config.json", "text_config", "rope_parameters", rope_theta={"__float__": "NaN"}),
        "rope_theta in config.json is nan",
    ),
    "layers beyond any memory": (
        change_json("config.json", "text_config", num_hidden_layers=1_000_000_000),
        "num_hidden_layers in config.json is 1000000000, and the most are 512",
    ),
    "depths beyond any memory": (
        change_json("config.json", "vision_config", depths=[1_000_000_000, 6]),
        "depths in config.json is 1000000000, and the most are 512",
    ),
    "a tokenizer of code": (change_json("tokenizer_config.json", tokenizer_class="Own", auto_map=CODE), BROUGHT),
    "a processor of code": (change_json("processor_config.json", processor_class="Own", auto_map=CODE), BROUGHT),
    "an end of text that is no token": (
        change_json("generation_config.json", eos_token_id="x"),
        "eos_token_id in generation_config.json is 'x'",
    ),
    "a penalty that is no number": (
        change_json("generation_config.json", repetition_penalty=NAN),
        "repetition_penalty in generation_config.json is nan",
    ),
    "a temperature in words": (
        change_json("generation_config.json", temperature="hot"),
        "temperature in generation_config.json is 'hot'",
    ),
    "known words that are numbers": (change_json("config.json", known_words=[1, 2]), "must be a list of texts"),
    "known questions in one": (change_json("config.json", known_questions="presence"), "must be a list of texts"),
    "known words in one": (change_json("config.json", known_words="fish"), "must be a list of texts"),
    "a pipe for weights": (pipe("model.safetensors"), "model.safetensors is no regular file"),
    "a pipe for a configuration": (pipe("config.json"), "holds no config.json"),
    "a pipe for a processor": (pipe("processor_config.json"), "processor_config.json is no regular file"),
    "weights that lie elsewhere": (
        write("model.safetensors.index.json", '{"weight_map": {"projector.weight": "../out.safetensors"}}'),
        "names the weights ../out.safetensors, which lie outside",
    ),
    "weights at a place of their own": (
        write("model.safetensors.index.json", '{"weight_map": {"projector.weight": "/tmp/out.safetensors"}}'),
        "names the weights /tmp/out.safetensors, which lie outside",
    ),
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
    assert "\n" not in str(caught.value)


def test_what_is_no_part_of_a_checkpoint_may_lie_beside_it(tmp_path: Path) -> None:
    shutil.copytree(resolve_model("tiny"), tmp_path / "tiny")
    write("my_config.json", "{no JSON")(tmp_path / "tiny")
    load_vlm(tmp_path / "tiny")


def test_a_model_of_code_is_refused_without_a_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(resolve_model("tiny"), tmp_path / "tiny")
    change_json("config.json", model_type="own", auto_map=CODE)(tmp_path / "tiny")
    monkeypatch.setattr("builtins.input", lambda _: pytest.fail("asked on the terminal"))
    with pytest.raises(ValueError, match=BROUGHT):
        load_vlm(tmp_path / "tiny")


def test_a_patch_of_no_pixels_is_refused_without_a_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    shutil.copytree(resolve_model("tiny"), tmp_path / "tiny")
    change_json("config.json", "vision_config", patch_size=0)(tmp_path / "tiny")
    with pytest.raises(ValueError, match=r"its config.json says \(64, 3, 0, 0\)"):
        load_vlm(tmp_path / "tiny")
    assert not [str(warning.message) for warning in recwarn]


@pytest.mark.parametrize("name", ["meta", "mkldnn", "hpu", "nothing"])
def test_a_device_that_keeps_no_numbers_is_refused(name: str, recwarn: pytest.WarningsRecorder) -> None:
    with pytest.raises(ValueError, match=f"device '{name}' is not to be had here"):
        choose_device(name)
    assert not recwarn.list


def test_a_model_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="the name of the model is empty"):
        resolve_model("")


def test_a_folder_of_pictures_does_not_hide_the_packaged_model_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = resolve_model("photos")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "holiday.jpg").write_bytes(b"")
    assert resolve_model("photos") == packaged
    (tmp_path / "photos" / "config.json").write_text("{}", encoding="utf-8")
    assert resolve_model("photos") == "photos"


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


@pytest.mark.parametrize(
    ("name", "values"), [("tiny-llama", {"num_hidden_layers": 3}), ("tiny-convnext", {"depths": [2, 5]})]
)
def test_a_part_with_more_weights_than_it_asks_for_is_refused(
    name: str, values: dict[str, object], tmp_path: Path
) -> None:
    shutil.copytree(resolve_model(name), tmp_path / name)
    change_json("config.json", **values)(tmp_path / name)
    parts = {part: resolve_model(part) for part in ("tiny-llama", "tiny-convnext")} | {name: tmp_path / name}
    with pytest.raises(ValueError, match=r"the weights .* are none that its config.json asks for"):
        AgeVlmForConditionalGeneration.from_backbones(parts["tiny-llama"], parts["tiny-convnext"])


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
