"""The examples do what they say, offline."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import make_model, make_picture, make_processor

from agevlm.data.collate import Collator
from agevlm.data.masks import decode_mask
from agevlm.data.parquet import read_parquet

EXAMPLES = Path(__file__).parents[2] / "examples"


def load(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_example_is_tested() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {"ask", "own_data", "from_backbones"}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    directory = tmp_path / "checkpoint"
    make_model(null_token=True).save_pretrained(directory)
    make_processor().save_pretrained(directory)
    return directory


@pytest.mark.parametrize("with_picture", [False, True])
def test_ask_prints_the_answer_and_draws(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], with_picture: bool
) -> None:
    picture = tmp_path / "picture.png"
    make_picture().save(picture)
    out = tmp_path / "look.png"
    answer = load("ask").main(str(checkpoint), str(picture) if with_picture else "", "is there a boat ?", str(out))
    printed = capsys.readouterr().out
    assert printed.startswith(f"{answer}\nboat: ")
    assert "(4, 4)" in printed
    assert out.read_bytes().startswith(b"\x89PNG")


def test_own_data_can_be_trained_on(tmp_path: Path) -> None:
    summary = load("own_data").main(tmp_path / "own")
    assert (summary.num_samples, summary.num_conversations, summary.num_groundings) == (2, 4, 5)
    samples = [record.sample for record in read_parquet(tmp_path / "own")]
    counted = next(c for c in samples[0].conversations if c.kind == "counting")
    assert np.sum([decode_mask(mask).sum() for mask in counted.groundings[0].masks]) == 40 * 30 + 50 * 40
    batch = Collator(make_processor(), grid=(4, 4), guided=True)([(sample, None) for sample in samples])
    assert batch["pixel_values"].shape[0] == 2
    present = batch["guidance_present"]
    assert (present == 1).any()
    assert (present == 0).any()
    assert "left_out" not in batch or batch["left_out"] == {}


def test_a_joined_model_answers_as_its_decoder_and_loads_again(tmp_path: Path) -> None:
    from agevlm.checkpoints import load_model

    joined = load("from_backbones").main(str(tmp_path / "joined"))
    model, processor = load_model(tmp_path / "joined", device="cpu")
    inputs = processor(text="<image> is there a fish?", images=make_picture(), return_tensors="pt")
    del inputs["image_index"]
    with torch.no_grad():
        logits = model(**inputs).logits
        alone = model.language_model(inputs_embeds=model.embed_text(inputs["input_ids"])).logits
        torch.testing.assert_close(logits, joined(**inputs).logits)
    assert torch.equal(logits, alone)
