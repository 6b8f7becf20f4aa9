"""The model card of a run: what it tells, what it leaves out, and that nobody's names break it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from agevlm.training.card import card_of, escaped, write_card
from agevlm.training.recipe import dump_recipe, parse_recipe

STAGE = {"name": "ground", "trainable": ["projector"], "steps": 3, "guidance": {"weight": 0.5}}
ASKED = {"accuracy": 0.75, "accuracy_interval": [0.7, 0.8], "num_questions": 40, "yes_ratio": 0.5}
METRICS = {
    "pope": {"random": {**ASKED, "by_category": {"fish": {}}}},
    "counting": ASKED,
    "pointing": {"accuracy": 0.9, "num_words": 7},
    "null_token": {"auroc": 0.8125},
    "provenance": {"accuracy": 1.0, "num_questions": 1, "num_images": 12, "not_trained": ["counting"]},
}


def make_run(directory: Path, metrics: Any = None, **settings: Any) -> Path:
    """The files of a run that its card is written from."""
    recipe = parse_recipe({"name": "mine", "stages": [STAGE], **settings}, "r.yaml")
    (directory / "model").mkdir(parents=True)
    (directory / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    (directory / "environment.json").write_text('{"agevlm": "0.1.0"}', encoding="utf-8")
    stages = [{"name": "ground", "seconds": 90.0, "total_parameters": 4_785_668}]
    (directory / "stages.json").write_text(json.dumps(stages), encoding="utf-8")
    if metrics is not None:
        (directory / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return directory


def test_the_front_matter_is_what_the_hub_reads(tmp_path: Path) -> None:
    models = {"language_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "vision_model": "tiny-convnext"}
    card = {"license": "apache-2.0", "languages": ["en"], "datasets": ["a/b"], "base_models": ["c/d"]}
    data = ModelCard.load(write_card(make_run(tmp_path, model=models, card=card))).data
    assert data.base_model == ["HuggingFaceTB/SmolLM2-135M-Instruct", "c/d"]
    assert (data.license, data.language, data.datasets) == ("apache-2.0", ["en"], ["a/b"])
    assert data.pipeline_tag == "image-text-to-text"
    assert data.library_name == "agevlm"


def test_what_is_not_known_is_not_told(tmp_path: Path) -> None:
    data = ModelCard.load(write_card(make_run(tmp_path))).data.to_dict()
    assert not data.keys() & {"license", "language", "datasets", "base_model"}
    text = card_of(tmp_path)
    assert "It has not been measured." in text
    assert "tiny-llama of the package" in text


def test_figures_and_stages_are_those_of_the_run(tmp_path: Path) -> None:
    text = card_of(make_run(tmp_path, METRICS))
    assert "| pope.random | 40 | 0.750 (0.700 to 0.800) | 0.500 |" in text
    assert "provenance" not in text and "by\\_category" not in text
    assert "| ground | 3 | 32 | 0.002 | projector | language modelling + 0.5 × guidance (kl) | 1.5 |" in text
    assert "| parameters | 4.79 million |" in text
    assert "Measured on scenes, 12 pictures" in text
    assert "| counting |" not in text and "Never asked in training, and left out here: counting." in text
    assert "highest on the thing that a word names for 0.900 of 7 words" in text
    assert "AUROC of 0.812" in text


def test_a_part_of_files_is_named_without_the_path_to_them(tmp_path: Path) -> None:
    (tmp_path / "home" / "backbone").mkdir(parents=True)
    run = make_run(tmp_path / "run", model={"vision_model": str(tmp_path / "home" / "backbone"), "image_size": 64})
    text = card_of(run)
    assert "| vision model | backbone, files of whoever trained it |" in text
    assert "| side of a picture | 64 pixels |" in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a | b\n# c", r"a \| b \# c"),
        ("<script>x</script>", "&lt;script&gt;x&lt;/script&gt;"),
        ("[x](javascript:y)", r"\[x\]\(javascript:y\)"),
        ("`a`*b*_c_", r"\`a\`\*b\*\_c\_"),
    ],
)
def test_names_are_text_and_nothing_else(text: str, shown: str) -> None:
    assert escaped(text) == shown


def test_a_name_cannot_end_the_front_matter(tmp_path: Path) -> None:
    name = "---\nlicense: mit\n---\n<b>"
    path = write_card(make_run(tmp_path, name=name, model={"vision_model": "a|b/c: d"}))
    card = ModelCard.load(path)
    assert card.data.license is None
    assert card.data.base_model == ["a|b/c: d"]
    assert "<b>" not in card.text and "&lt;b&gt;" in card.text


def test_the_repository_of_a_gguf_file_is_what_it_was_made_from(tmp_path: Path) -> None:
    models = {"language_model": "organisation/name/small/file.gguf", "vision_model": "tiny-convnext"}
    assert ModelCard.load(write_card(make_run(tmp_path / "hub", model=models))).data.base_model == ["organisation/name"]
    models["language_model"] = "models/file.gguf"  # of one's own, and gone by now
    assert ModelCard.load(write_card(make_run(tmp_path / "own", model=models))).data.base_model is None
