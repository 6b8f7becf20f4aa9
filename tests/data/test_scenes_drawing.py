"""Pictures of the embedded world: the same everywhere, with masks that say where things are."""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict

import numpy as np
import pytest
from PIL import Image

from agevlm.data.masks import decode_mask
from agevlm.data.scenes import CATEGORIES, COLOURS, Scene, WorldSpec, draw_scene, scene_png
from agevlm.data.scenes.drawing import MIN_PIXELS, _arrange, _paste, _tile
from agevlm.data.scenes.shapes import SHAPES
from agevlm.data.scenes.world import Placement

PLAIN = WorldSpec(num_strokes=0)
# Of (seed, index): the picture and the annotation. They change only with the world, and then its foundation is void.
GOLDEN: dict[tuple[int, int], tuple[str, str]] = {
    (0, 0): ("6f9d5774080f281d", "ded87ebeb464a3de"),
    (7, 41): ("df8495f554c98947", "55126a7bd4496698"),
    (2147483648, 5): ("c349a681b7676d77", "7c9af837521a84db"),
}


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _fingerprint(scene: Scene) -> tuple[str, str]:
    known = asdict(scene.annotation)
    annotation = json.dumps({name: known[name] for name in ("image", "instances")}, sort_keys=True)
    return _hash(scene.image.tobytes()), _hash(annotation.encode())


@pytest.mark.parametrize(("seed", "index"), [(0, 0), (7, 41), (2**31, 5)])
def test_a_scene_is_the_same_on_any_machine(seed: int, index: int) -> None:
    assert _fingerprint(draw_scene(WorldSpec(), seed, index)) == GOLDEN[seed, index]


def test_scenes_do_not_depend_on_those_drawn_before() -> None:
    late = [draw_scene(WorldSpec(), 1, index) for index in (3, 2, 1)][-1]
    assert _fingerprint(late) == _fingerprint(draw_scene(WorldSpec(), 1, 1))
    assert len({_fingerprint(draw_scene(WorldSpec(), seed, i)) for seed in (1, 2) for i in range(4)}) == 8


def test_masks_boxes_and_areas_agree_and_do_not_overlap() -> None:
    for index in range(60):
        scene = draw_scene(WorldSpec(), 2, index)
        claimed = np.zeros(scene.image.shape[:2], dtype=int)
        for instance in scene.annotation.instances:
            mask = decode_mask(instance.mask)
            rows, columns = np.nonzero(mask)
            x, y, width, height = instance.box
            assert mask.shape == scene.image.shape[:2]
            assert mask.sum() == instance.area >= MIN_PIXELS
            assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == (y, y + height, x, x + width)
            assert instance.category in CATEGORIES and instance.colour in COLOURS
            claimed += mask
        assert claimed.max(initial=0) <= 1
        assert scene.annotation.image.id == f"scene-2-{index}"


def test_the_picture_shows_each_thing_where_its_mask_says() -> None:
    """Without strokes, a solid pixel inside a mask is painted over, and no pixel far from all masks is touched."""
    for index in range(20):
        rng = np.random.default_rng(index)
        tiles = _arrange(PLAIN, rng)
        before = np.full((96, 96, 3), 128, dtype=np.uint8)
        after = before.copy()
        for tile in tiles:
            _paste(after, tile, rng)
        touched = (after != before).any(axis=-1)
        masks = np.any([tile.mask for tile in tiles], axis=0)
        assert (touched & masks).sum() > 0.99 * masks.sum()
        assert touched.sum() < masks.sum() + 0.9 * sum(tile.outline for tile in tiles)


@pytest.mark.parametrize("ratio", [0.45, 0.9])
def test_every_thing_shows_its_share_in_the_final_picture(ratio: float) -> None:
    spec = WorldSpec(min_visible_ratio=ratio, min_objects=5)
    for index in range(25):
        tiles = _arrange(spec, np.random.default_rng(index))
        for place, tile in enumerate(tiles):
            visible = tile.mask.copy()
            for front in tiles[place + 1 :]:
                visible &= ~front.mask
            assert visible.sum() >= ratio * tile.outline


def test_things_do_overlap() -> None:
    hidden = 0
    for index in range(40):
        tiles = _arrange(WorldSpec(), np.random.default_rng(index))
        hidden += int(sum(tile.mask.sum() for tile in tiles) > np.any([tile.mask for tile in tiles], axis=0).sum())
    assert hidden >= 8


@pytest.mark.parametrize("category", CATEGORIES)
def test_a_shape_fills_its_circle_and_survives_the_least_size(category: str) -> None:
    reach = max(max(abs(u), abs(v)) for part in SHAPES[category] for u, v in part.points)
    tile = _tile(96, Placement(category, "red", (48.0, 48.0), 7.0, 0.0, False))
    assert 0.8 < reach < 1.2
    assert tile.outline > 40
    assert tile.mask.sum() == tile.outline


def test_shapes_differ_from_each_other_even_when_small() -> None:
    masks = [_tile(96, Placement(name, "red", (48.0, 48.0), 9.0, 0.0, False)).mask for name in CATEGORIES]
    for first in range(16):
        for second in range(first):
            both = (masks[first] & masks[second]).sum() / (masks[first] | masks[second]).sum()
            assert both < 0.85, (CATEGORIES[first], CATEGORIES[second])


@pytest.mark.parametrize(("category", "hole"), [("cup", (0.5, 0.05)), ("key", (-0.58, 0.0)), ("anchor", (0.0, -0.75))])
def test_holes_are_no_part_of_the_mask(category: str, hole: tuple[float, float]) -> None:
    mask = _tile(120, Placement(category, "blue", (60.0, 60.0), 40.0, 0.0, False)).mask
    u, v = hole if category != "cup" else (0.6, 0.05)
    assert not mask[round(60 + 40 * v), round(60 + 40 * u)]
    assert mask[48:72].any()


def test_a_mirror_turns_the_mask_round() -> None:
    plain, mirrored = (_tile(97, Placement("key", "red", (48.5, 48.5), 20.0, 0.0, flip)).mask for flip in (False, True))
    both = (plain[:, ::-1] & mirrored).sum() / (plain[:, ::-1] | mirrored).sum()
    assert both > 0.9


def test_colours_can_be_told_from_the_picture() -> None:
    """The middle colour inside a mask is nearest to its own name for nearly all things."""
    names, palette = list(COLOURS), np.array(list(COLOURS.values()))
    right = total = 0
    for index in range(120):
        scene = draw_scene(WorldSpec(), 4, index)
        for instance in scene.annotation.instances:
            middle = np.median(scene.image[decode_mask(instance.mask)], axis=0)
            right += names[int(((palette - middle) ** 2).sum(axis=1).argmin())] == instance.colour
            total += 1
    assert total > 300
    assert right / total > 0.95


def test_pictures_are_of_the_size_asked() -> None:
    for side in (96, 131):
        scene = draw_scene(WorldSpec(image_size=side), 0, 0)
        assert scene.image.shape == (side, side, 3) and scene.image.dtype == np.uint8
        assert (scene.annotation.image.height, scene.annotation.image.width) == (side, side)


def test_a_png_gives_the_picture_back() -> None:
    scene = draw_scene(WorldSpec(), 0, 3)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(scene_png(scene)))), scene.image)
