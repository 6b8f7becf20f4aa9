"""Scenes as a world: all things in all colours, partners together in what is drawn, and exports that keep it all."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from agevlm.data.formats.coco import read_coco
from agevlm.data.images import open_image
from agevlm.data.masks import decode_mask
from agevlm.data.parquet import read_parquet
from agevlm.data.scenes import CATEGORIES, COLOURS, PARTNERS, WorldSpec, draw_scene
from agevlm.data.scenes.export import export_coco, export_parquet


def partner_ratio(co_occurrence: float, num: int = 150) -> float:
    """Share of the categories seen in drawn scenes whose partner is seen too."""
    spec = WorldSpec(co_occurrence=co_occurrence)
    seen = [draw_scene(spec, 9, index).annotation.categories for index in range(num)]
    return float(np.mean([PARTNERS[category] in categories for categories in seen for category in categories]))


def test_partners_are_seen_together_as_often_as_the_world_says() -> None:
    chance, test, training = (partner_ratio(value) for value in (0.0, 0.4, 0.8))
    assert chance < 0.38
    assert chance + 0.12 < test < training - 0.08
    assert training > 0.65


def test_everything_comes_in_every_colour() -> None:
    drawn = [i for index in range(250) for i in draw_scene(WorldSpec(), 10, index).annotation.instances]
    pairs = Counter((instance.category, instance.colour) for instance in drawn)
    assert {category for category, _ in pairs} == set(CATEGORIES)
    assert {colour for _, colour in pairs} == set(COLOURS)
    assert len(pairs) > 0.95 * len(CATEGORIES) * len(COLOURS)


def test_larger_pictures_hold_the_same_world() -> None:
    for index in range(10):
        annotation = draw_scene(WorldSpec(image_size=192), 3, index).annotation
        assert annotation.instances
        assert all(instance.area > 80 for instance in annotation.instances)
        assert sum(decode_mask(i.mask).sum() for i in annotation.instances) < 192 * 192


def test_coco_files_give_the_scenes_back(tmp_path: Path) -> None:
    path = export_coco(tmp_path / "coco", WorldSpec(), 5, 4)
    pictures, _ = read_coco(path, tmp_path / "coco" / "images")
    assert len(pictures) == 4
    for index, picture in enumerate(pictures):
        scene = draw_scene(WorldSpec(), 5, index)
        assert np.array_equal(np.asarray(open_image(picture.image)), scene.image)
        for found, drawn in zip(picture.instances, scene.annotation.instances, strict=True):
            assert (found.category, found.box, found.area) == (drawn.category, drawn.box, drawn.area)
            assert found.mask == drawn.mask
    content = json.loads(path.read_text(encoding="utf-8"))
    assert [category["name"] for category in content["categories"]] == list(CATEGORIES)


def test_the_grounded_dataset_gives_the_scenes_back(tmp_path: Path) -> None:
    summary = export_parquet(tmp_path / "parquet", WorldSpec(), 5, 4, num_per_image=3)
    dataset = read_parquet(tmp_path / "parquet")
    assert summary.num_samples == len(dataset) == 4
    assert tuple(dataset.vocabulary) == CATEGORIES
    for index in range(4):
        scene, record = draw_scene(WorldSpec(), 5, index), dataset[index]
        assert record.annotated is not None
        assert record.annotated.instances == scene.annotation.instances
        assert np.array_equal(np.asarray(open_image(record.sample.images[0])), scene.image)
        kinds = Counter(c.kind.split(".")[0] == "pope" for c in record.sample.conversations)
        assert kinds[False] == 3
        assert kinds[True] == 3 * 2 * min(3, len(scene.annotation.categories))
        assert len({c.id for c in record.sample.conversations}) == len(record.sample.conversations)


@pytest.mark.parametrize("export", [export_coco, export_parquet])
def test_exports_are_the_same_for_a_seed(export: object, tmp_path: Path) -> None:
    for name in "ab":
        export(tmp_path / name / "world", WorldSpec(), 5, 2)  # type: ignore[operator]
    first, second = ({path.name: path.read_bytes() for path in files(tmp_path / name)} for name in "ab")
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


def files(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]
