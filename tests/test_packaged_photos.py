"""The packaged model for photographs: small, of known words, honest about all others, and a vision model for others."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import agevlm
from agevlm.checkpoints import load_model, resolve_model
from agevlm.cli import main
from agevlm.modeling.vision import load_backbone


@pytest.fixture(scope="module")
def directory() -> Path:
    return Path(resolve_model("photos"))


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "my.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_it_is_small_and_in_bfloat16(directory: Path) -> None:
    assert sum(path.stat().st_size for path in directory.iterdir()) <= 16_000_000
    with safe_open(directory / "model.safetensors", "pt") as weights:
        kinds = {name: weights.get_slice(name).get_dtype() for name in weights.keys()}  # noqa: SIM118
    counts = {name for name in kinds if name.endswith("num_batches_tracked")}  # integers
    assert {kind for name, kind in kinds.items() if name not in counts} == {"BF16"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_it_answers_in_both_arithmetics(picture: Path, dtype: str) -> None:
    seen = agevlm.look(load_model("photos", "cpu", dtype), picture, "is there a dog in the picture?")
    assert seen.answer in ("yes", "no")
    assert seen.unlearned == ()
    assert [word.learned for word in seen.words] == [True]
    assert seen.words[0].map.shape == (12, 12)


def test_it_says_what_kind_of_question_it_was_never_asked(
    picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["agevlm", "look", "photos", str(picture), "How many dogs are there?"])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr()
    assert "photos learned to answer “is there a …?” and was hardly ever asked this" in said.out
    assert "may be wrong" not in said.err


@pytest.mark.parametrize("name", ["photos", "tiny"])
def test_capitals_make_no_other_question(name: str) -> None:
    tokenizer = load_model(name)[1].tokenizer
    small, capitals = (tokenizer(text)["input_ids"] for text in ("is there a dog?<image>", "Is there a DOG?<image>"))
    assert small == capitals
    assert tokenizer.convert_ids_to_tokens(small)[-1] == "<image>"


def test_it_says_which_words_it_never_learned(
    picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["agevlm", "look", "photos", str(picture), "is there a xylophone in the picture?"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    assert "xylophone: not among the " in capsys.readouterr().out


def test_chat_says_the_same(picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["agevlm", "chat", "photos", str(picture)])
    monkeypatch.setattr(sys, "stdin", io.StringIO("is there a unicorn?\nis there a background?\n"))
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    said = capsys.readouterr().out
    assert "unicorn: not among the 168 words that photos learned (" in said
    assert "background: not among the 168 words that photos learned (" in said
    assert "attention" not in said


def test_its_card_names_every_word_and_that_it_may_be_wrong(directory: Path) -> None:
    card = (directory / "README.md").read_text(encoding="utf-8")
    known = load_model("photos")[0].config.known_words
    assert len(known) >= 80
    assert [word for word in known if word not in card] == []
    assert "may be wrong" in card
    assert "Apache-2.0" in card
    assert "{" not in card  # nothing was left to fill in
    assert "… pictures" not in card


def test_its_vision_model_serves_others(directory: Path) -> None:
    backbone = load_backbone(directory, ["stage5", "head"])
    assert backbone.config.model_type == "efficientnet_lite"
    assert sum(parameter.numel() for parameter in backbone.parameters()) > 3_000_000
    assert all(torch.isfinite(parameter).all() for parameter in backbone.parameters())
