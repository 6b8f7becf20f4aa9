"""The front door: four functions of `agevlm` do a user's work, and are the rooms' own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launching import run_code
from tiny_models import make_model, make_picture, make_processor

import agevlm


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint")
    make_model(null_token=True).save_pretrained(directory)
    make_processor().save_pretrained(directory)
    return directory


def test_the_functions_load_when_they_are_used() -> None:
    loaded = "'agevlm.api' in sys.modules, 'matplotlib' in sys.modules"
    assert run_code(f"import sys, agevlm; print({loaded}); agevlm.look; print({loaded})").split() == [
        "False",
        "False",
        "True",
        "False",
    ]
    assert {"load_model", "look", "evaluate", "train"} <= set(dir(agevlm))


def test_look_takes_a_name_or_a_loaded_model_and_draws(checkpoint: Path, tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    make_picture().save(picture)
    named = agevlm.look(checkpoint, picture, "is there a boat ?", out=tmp_path / "look.png", device="cpu")
    assert (tmp_path / "look.png").read_bytes().startswith(b"\x89PNG")
    loaded = agevlm.load_model(checkpoint, device="cpu")
    again = agevlm.look(
        loaded, make_picture(), "is there a boat ?", layers=[loaded[0].config.cross_attention_layers[0]]
    )
    assert named.answer == again.answer
    assert named.words[0].word == again.words[0].word == "boat"
    whole = named.words[0].mass + (named.words[0].null_mass or 0)
    assert whole == pytest.approx(1, abs=1e-5)
    assert (named.words[0].map != again.words[0].map).any()  # one layer's map is not the mean of all


def test_look_names_what_is_wrong_with_the_picture_before_it_loads_a_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.png: no such file"):
        agevlm.look("no-such-model", tmp_path / "nothing.png", "is there a boat?")


def test_evaluate_writes_and_returns_the_same_metrics(checkpoint: Path, tmp_path: Path) -> None:
    metrics = agevlm.evaluate(checkpoint, out=tmp_path / "out", num_images=2, device="cpu")
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["pope"]["random"]["accuracy"] == metrics["pope"]["random"]["accuracy"]
    with pytest.raises(ValueError, match=r"no setting 'images': there are seed, num_images"):
        agevlm.evaluate(checkpoint, out=tmp_path / "wrong", images=2)
    assert not (tmp_path / "wrong").exists()


def test_train_takes_the_name_of_a_recipe_and_refuses_another(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Did you mean 'quickstart'"):
        agevlm.train("quikstart", tmp_path)
    with pytest.raises(ValueError, match="stepz"):
        agevlm.train("quickstart", tmp_path, overrides=["stages.0.stepz=1"])
    assert list(tmp_path.iterdir()) == []
