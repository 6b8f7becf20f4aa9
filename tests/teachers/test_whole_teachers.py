"""A teacher's checkpoint is whole or refused, as a model's is: what is wrong stands in one line that names it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from damages import Damage, cut, damaged_weights
from tiny_teachers import save_grounding_dino, save_owlv2, save_sam, save_sam2, save_sam3

from agevlm.teachers.detectors import GroundingDino, Owlv2
from agevlm.teachers.sam3 import Sam3
from agevlm.teachers.segmenters import Sam, Sam2

TEACHERS: dict[str, tuple[Any, Any]] = {
    "grounding-dino": (save_grounding_dino, GroundingDino),
    "owlv2": (save_owlv2, Owlv2),
    "sam": (save_sam, Sam),
    "sam2": (save_sam2, Sam2),
    "sam3": (save_sam3, Sam3),
}
DAMAGES: dict[str, tuple[Damage, str]] = {
    **damaged_weights(".weight"),
    "half a configuration": (cut("config.json"), "configuration in .* cannot be read"),
    "half a tokenizer": (cut("tokenizer.json"), "(processor|tokenizer) in .* cannot be read"),
    "half a processor": (cut("processor_config.json"), "processor in .* cannot be read"),
}
NO_SUCH_FILE = {
    "sam": ["half a tokenizer"],
    "sam2": ["half a tokenizer", "half a processor"],
    "sam3": ["half a processor"],
}
CASES = [(teacher, damage) for teacher in TEACHERS for damage in DAMAGES if damage not in NO_SUCH_FILE.get(teacher, ())]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("whole")
    return {name: save(root / name) for name, (save, _) in TEACHERS.items()}


@pytest.mark.parametrize(("teacher", "damage"), CASES)
def test_a_damaged_teacher_is_refused_and_the_damage_named(
    teacher: str, damage: str, saved: dict[str, Path], tmp_path: Path
) -> None:
    directory = tmp_path / teacher
    shutil.copytree(saved[teacher], directory)
    apply, message = DAMAGES[damage]
    apply(directory)
    with pytest.raises(ValueError, match=message) as caught:
        TEACHERS[teacher][1](directory)
    assert str(directory) in str(caught.value)
    assert "\n" not in str(caught.value)
