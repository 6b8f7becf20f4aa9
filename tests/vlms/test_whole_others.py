"""Checkpoints of others are whole or refused, as ours are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from damages import Damage, cut, damaged_weights

from agevlm.checkpoints import load_vlm

from . import tiny_families

NAMES = ("llava", "idefics3", "paligemma")
DAMAGES: dict[str, tuple[Damage, str]] = {
    **damaged_weights("layers.0.mlp.up_proj.weight"),
    "half a tokenizer": (cut("tokenizer.json"), "tokenizer and processor in .* cannot be read"),
    "half a processor": (cut("processor_config.json"), "tokenizer and processor in .* cannot be read"),
    "half a configuration": (cut("config.json"), "configuration in .* cannot be read"),
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("others")
    for name in NAMES:
        for part in tiny_families.made(name):
            part.save_pretrained(root / name)
        load_vlm(root / name)
    return {name: root / name for name in NAMES}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_model_of_others_is_refused_and_the_damage_named(
    name: str, damage: str, saved: dict[str, Path], tmp_path: Path
) -> None:
    directory = tmp_path / name
    shutil.copytree(saved[name], directory)
    apply, message = DAMAGES[damage]
    apply(directory)
    with pytest.raises(ValueError, match=message) as caught:
        load_vlm(directory)
    assert str(directory) in str(caught.value)
    assert "\n" not in str(caught.value)
