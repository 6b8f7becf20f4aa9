"""Splits of one instances file: by picture and its contents, with everything that was wrong named and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from agevlm.data.formats.coco import CocoOptions
from agevlm.data.formats.coco_splits import split_coco
from agevlm.data.masks import decode_mask
from agevlm.data.parquet import read_parquet

CATEGORIES = ("dog", "cat", "sky", "yeti")
ROTATED = 6  # the EXIF orientation of a camera held upright


def square(identity: int, image: int, category: str, left: int, side: int = 8) -> dict[str, Any]:
    right, bottom = left + side, 2 + side
    polygon = [left, 2, right, 2, right, bottom, left, bottom]
    number = CATEGORIES.index(category)
    return {"id": identity, "image_id": image, "category_id": number, "segmentation": [polygon], "iscrowd": 0}


def write(directory: Path, pictures: dict[str, Any], size: tuple[int, int] = (48, 32)) -> Path:
    """An instances file of pictures by file name: a PIL picture, or bytes. Each shows a sky, every other one a dog."""
    directory.mkdir(parents=True)
    images, annotations = [], []
    for number, (name, picture) in enumerate(pictures.items(), start=1):
        if isinstance(picture, bytes):
            (directory / name).write_bytes(picture)
        else:
            picture.save(directory / name, **({"exif": picture.getexif()} if picture.getexif() else {}))
        width, height = size
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        annotations.append(square(3 * number, number, "sky", 2))
        if number % 2:
            annotations.append(square(3 * number + 1, number, "dog", 20))
    categories = [{"id": number, "name": name} for number, name in enumerate(CATEGORIES)]
    path = directory / "instances.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return path


def noise(seed: int, size: tuple[int, int] = (48, 32), mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def ids(out: Path) -> dict[str, list[str]]:
    return {name: read_parquet(out / name).ids() for name in ("train", "val", "test")}


def test_each_picture_is_in_one_split_and_the_same_again(tmp_path: Path) -> None:
    path = write(tmp_path / "coco", {f"{n}.png": noise(n) for n in range(20)})
    split = split_coco(path, path.parent, tmp_path / "a")
    assert dict(split.num_pictures) == {"train": 14, "val": 3, "test": 3}
    first = ids(tmp_path / "a")
    assert sorted(name for names in first.values() for name in names) == sorted(str(n) for n in range(1, 21))
    split_coco(path, path.parent, tmp_path / "b")
    assert ids(tmp_path / "b") == first
    split_coco(path, path.parent, tmp_path / "c", CocoOptions(seed=1))
    assert ids(tmp_path / "c") != first
    assert read_parquet(tmp_path / "a" / "train").vocabulary == ("dog", "sky")


def test_a_picture_that_is_there_twice_stays_in_one_split(tmp_path: Path) -> None:
    twins = {f"{name}{n}.png": noise(n) for n in range(12) for name in "ab"}
    path = write(tmp_path / "coco", twins)
    split_coco(path, path.parent, tmp_path / "out")
    for names in ids(tmp_path / "out").values():
        assert {(int(name) - 1) // 2 for name in names} == {(int(n) - 1) // 2 for n in names if int(n) % 2}
        assert len(names) == 2 * len({(int(name) - 1) // 2 for name in names})


def test_categories_that_cannot_be_learned_are_named_and_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "coco", {f"{n}.png": noise(n) for n in range(20)})
    lines = list(split_coco(path, path.parent, tmp_path / "out").notes())
    assert lines[0] == ("20 pictures with 2 categories: 14 to train on, 3 to choose settings on (val), 3 for the test")
    assert "in no picture, so that nothing is learned of it: 2 categories (cat, yeti)" in lines
    assert "in every picture, so that nothing is learned of it: 1 categories (sky)" in lines
    (few,) = [line for line in lines if line.startswith("hardly learned")]
    assert "1 of 2 categories (dog (" in few


def turned(seed: int) -> Image.Image:
    """A picture that EXIF turns upright: 32 × 48 on disk, 48 × 32 to the eye."""
    picture = noise(seed, (32, 48))
    picture.getexif()[0x0112] = ROTATED
    return picture


def odd_pictures() -> dict[str, Any]:
    deep = Image.fromarray(np.random.default_rng(8).integers(0, 65536, (32, 48), dtype=np.uint16))
    odd = {"grey.jpg": noise(1, mode="L"), "cmyk.jpg": noise(2, mode="CMYK"), "deep.png": deep}
    odd |= {"turned.jpg": turned(3), "clear.png": noise(4, mode="RGBA"), "palette.gif": noise(5, mode="P")}
    return odd | {f"{n}.png": noise(n) for n in range(10, 18)}


def test_pictures_of_every_make_are_taken(tmp_path: Path) -> None:
    path = write(tmp_path / "coco", odd_pictures())
    split = split_coco(path, path.parent, tmp_path / "out")
    assert sum(split.num_pictures.values()) == 14
    assert not [line for line in split.notes() if line.startswith("left out")]


def test_what_cannot_be_used_is_counted_and_its_first_is_named(tmp_path: Path) -> None:
    pictures = {f"{n}.png": noise(n) for n in range(12)}
    pictures |= {"broken.jpg": b"not a picture", "other.png": noise(30, (20, 20)), "gone.png": noise(31)}
    pictures["cut.png"] = (noise(32)).tobytes()  # no head
    path = write(tmp_path / "coco", pictures)
    (path.parent / "gone.png").unlink()
    content = json.loads(path.read_text())
    content["annotations"][0]["segmentation"] = {"size": [9, 9], "counts": [81]}  # a mask of another size
    content["annotations"][3]["segmentation"] = []
    path.write_text(json.dumps(content))
    split = split_coco(path, path.parent, tmp_path / "out")
    lines = "\n".join(line for line in split.notes() if line.startswith("left out"))
    assert sum(split.num_pictures.values()) == 10
    for told in (
        "1 pictures missing on disk; the first: ",
        "2 pictures that cannot be read; the first: ",
        "1 pictures of another size than stated; the first: ",
        "1 annotations: mask of another size; the first: ",
        "1 annotations: no mask; the first: ",
        "2 pictures with a broken annotation",
    ):
        assert told in lines, told
    assert "broken.jpg" in lines
    assert "gone.png" in lines


def test_a_picture_that_exif_turns_and_its_annotations_do_not_is_said_to_be_so(tmp_path: Path) -> None:
    path = write(tmp_path / "coco", {"turned.jpg": turned(3), **{f"{n}.png": noise(n) for n in range(4)}})
    content = json.loads(path.read_text())
    content["images"][0] |= {"width": 32, "height": 48}
    path.write_text(json.dumps(content))
    lines = list(split_coco(path, path.parent, tmp_path / "out").notes())
    assert any("1 pictures of another size than stated" in line and "EXIF turns it" in line for line in lines)


def test_large_pictures_are_held_smaller_with_their_masks(tmp_path: Path) -> None:
    path = write(tmp_path / "coco", {f"{n}.jpg": noise(n) for n in range(6)})
    split = split_coco(path, path.parent, tmp_path / "out", CocoOptions(max_side=24))
    assert "mended: 6 pictures scaled down to 24 pixels" in list(split.notes())
    for record in read_parquet(tmp_path / "out" / "train"):
        assert record.annotated is not None
        image = record.annotated.image
        assert (image.height, image.width) == (16, 24)
        for instance in record.annotated.instances:
            mask = decode_mask(instance.mask)
            assert mask.shape == (16, 24)
            assert instance.area == mask.sum() == pytest.approx(16, abs=4)
            assert instance.box[0] == pytest.approx(1 if instance.category == "sky" else 10, abs=1)


def test_too_few_pictures_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "coco", {"a.png": noise(0), "b.png": noise(1), "c.png": noise(1)})
    with pytest.raises(ValueError, match="2 different pictures with something annotated are too few"):
        split_coco(path, path.parent, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_one_category_is_learned_from_pictures_without_it_where_they_are_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "own", {f"{number}.png": noise(number) for number in range(12)})
    content = json.loads(path.read_text())
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] == CATEGORIES.index("dog")]
    path.write_text(json.dumps(content))
    without = split_coco(path, path.parent, tmp_path / "without")
    assert sum(without.num_pictures.values()) == 6 and without.always == ("dog",)
    assert any("6 pictures without any instance (--keep-empty" in line for line in without.notes())
    kept = split_coco(path, path.parent, tmp_path / "kept", CocoOptions(keep_empty=True))
    assert sum(kept.num_pictures.values()) == 12 and kept.always == ()


def test_pictures_of_which_none_shows_anything_are_refused_however_they_are_taken(tmp_path: Path) -> None:
    path = write(tmp_path / "own", {f"{number}.png": noise(number) for number in range(5)})
    content = json.loads(path.read_text())
    first = [annotation for annotation in content["annotations"] if annotation["image_id"] == 1]
    path.write_text(json.dumps({**content, "annotations": first}))
    (path.parent / "0.png").unlink()
    for keep_empty, number in ((False, 0), (True, 4)):
        left_out = "that can be used; left out: pictures missing on disk: 1"
        with pytest.raises(ValueError, match=f"nothing is annotated in its {number} pictures {left_out}"):
            split_coco(path, path.parent, tmp_path / "out", CocoOptions(keep_empty=keep_empty))
