"""`agevlm.look` takes any vision-language model: by name or loaded, by attention or, where that fails, by occlusion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_models import make_picture
from typer.testing import CliRunner

import agevlm
from agevlm.cli import app
from agevlm.vlms import Vlm, attention_maps

from . import tiny_families

QUESTION = "is there a boat left of the house ?"
WITHOUT_PIXELS = ("llava_onevision", "mllama")  # row ends and padding take a share of the attention, and have no place
NAMES = (
    "llava",
    "llava_onevision",
    "idefics3",
    "qwen2_vl",
    "paligemma",
    "gemma3",
    "internvl",
    "mllama",
    "agevlm_concat",
)


@pytest.mark.parametrize("name", NAMES)
def test_words_of_any_family_have_maps_of_all_that_lies_on_the_picture(name: str) -> None:
    model, processor = tiny_families.made(name)
    seen = agevlm.look((model, processor), make_picture(size=(60, 40)), QUESTION, max_new_tokens=3)
    assert seen.note is None
    asked = [word.word for word in seen.words if word.where == "question"]
    assert asked == ["boat", "house"]
    for word in seen.words:
        assert word.map.shape == seen.grid
        if name in WITHOUT_PIXELS:
            assert 0.3 < word.mass < 1
        else:
            assert word.mass == pytest.approx(1, abs=1e-4)


def test_a_word_has_the_map_that_the_room_gives() -> None:
    model, processor = tiny_families.made("llava")
    seen = agevlm.look((model, processor), make_picture(), QUESTION, vocabulary=["boat"], max_new_tokens=1)
    vlm = Vlm(model, processor)
    text = vlm.prompt(QUESTION)
    inputs = vlm.encode([text], [[make_picture()]])
    tokens = inputs.tokens_of(processor.tokenizer, 0, text.index("boat"), text.index("boat") + 4)
    reading = vlm.read(inputs, positions=[tokens])
    ((expected,),) = attention_maps(inputs, reading, [tokens], [[tokens]], of_pictures=True)
    assert expected is not None
    np.testing.assert_allclose(seen.words[0].map, expected.maps[0], rtol=1e-4, atol=1e-7)


def test_a_family_that_is_not_known_is_looked_at_by_occlusion_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny_families.made("llava")
    monkeypatch.setattr("agevlm.vlms.vlm.family_of", lambda model: None)
    seen = agevlm.look((model, processor), make_picture(), QUESTION, vocabulary=["boat"], max_new_tokens=2)
    assert seen.note is not None
    assert "'llava' are not known" in seen.note
    assert seen.words[0].map.min() >= 0
    assert seen.words[0].mass == pytest.approx(1, abs=1e-4)


def test_the_command_takes_the_directory_of_another_family(tmp_path: Path) -> None:
    model, processor = tiny_families.made("llava")
    model.save_pretrained(tmp_path / "llava")
    processor.save_pretrained(tmp_path / "llava")
    make_picture().save(tmp_path / "picture.png")
    out = tmp_path / "look.png"
    arguments = ["look", str(tmp_path / "llava"), str(tmp_path / "picture.png"), QUESTION, "--out", str(out)]
    result = CliRunner().invoke(app, [*arguments, "--max-new-tokens", "2"])
    assert result.exit_code == 0, result.output
    assert out.read_bytes().startswith(b"\x89PNG")


def test_a_language_model_is_refused_by_its_type(tmp_path: Path) -> None:
    from tiny_models import make_text_config
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_config(make_text_config()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"of the type 'llama', which takes no pictures"):
        agevlm.load_model(tmp_path)
