"""A folder for each class: what is read, what it is called, and what is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from agevlm.data.formats.labels import read_labels
from agevlm.data.images import image_size


def save(path: Path, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (20, 10)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("stop_sign/1.jpg", "stop_sign/2.png", "Faces/1.jpg", "Faces_easy/1.jpg", "clutter/1.jpg"):
        save(tmp_path / name)
    save(tmp_path / "cup" / "grey.png", "L")
    return tmp_path


def test_folders_are_classes(folder: Path) -> None:
    pictures, report = read_labels(folder, {"Faces": "face", "Faces_easy": "face", "clutter": None})
    assert [(p.image.id, p.labels, p.instances) for p in pictures] == [
        ("Faces/1", ("face",), ()),
        ("Faces_easy/1", ("face",), ()),
        ("cup/grey", ("cup",), ()),
        ("stop_sign/1", ("stop sign",), ()),
        ("stop_sign/2", ("stop sign",), ()),
    ]
    assert report.vocabulary == ("face", "cup", "stop sign")
    assert (pictures[0].image.height, pictures[0].image.width) == (10, 20)
    assert report.rows() == [
        ("kept", "pictures", 5),
        ("kept", "classes", 3),
        ("left out", "classes left out by name", 1),
    ]


def test_what_is_no_picture_is_counted(folder: Path) -> None:
    (folder / "readme.txt").write_text("hello")
    (folder / "cup" / "notes.txt").write_text("hello")
    (folder / "cup" / "broken.jpg").write_bytes(b"no picture")
    (folder / "empty").mkdir()
    pictures, report = read_labels(folder)
    assert len(pictures) == 6
    assert dict(report.left_out) == {
        "files beside the class folders": 1,
        "files that are no pictures": 1,
        "pictures that cannot be read": 1,
        "class folders without a picture": 1,
    }
    assert "empty" not in report.vocabulary


def test_a_picture_that_is_cut_off_and_a_folder_in_a_class_are_left_out(folder: Path) -> None:
    Image.effect_noise((80, 80), 90).convert("RGB").save(folder / "cup" / "cut.jpg")
    whole = (folder / "cup" / "cut.jpg").read_bytes()
    (folder / "cup" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    assert image_size(folder / "cup" / "cut.jpg") == (80, 80)  # its head is whole
    save(folder / "cup" / "more" / "1.jpg")
    pictures, report = read_labels(folder)
    assert len(pictures) == 6
    assert [row for row in report.rows() if row[0] == "left out"] == [
        ("left out", "pictures that cannot be read", 1),
        ("left out", "folders inside of class folders, which are not read", 1),
    ]
    assert "cut.jpg: the image is truncated or damaged" in report.first["pictures that cannot be read"]


def test_classes_that_differ_only_in_case_are_refused(folder: Path) -> None:
    message = "the folders 'Faces' and 'cup' are the classes 'Cup' and 'cup', which differ only in case; give both"
    with pytest.raises(ValueError, match=message):
        read_labels(folder, {"Faces": "Cup"})
    assert "Cup" in read_labels(folder, {"Faces": "Cup", "cup": "Cup"})[1].vocabulary
    assert "Cup" in read_labels(folder, {"Faces": "Cup", "cup": None})[1].vocabulary


def test_one_class_none_and_a_name_of_no_folder_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds the class 'cup' alone, so nothing is ever absent"):
        read_labels(folder, dict.fromkeys(("Faces", "Faces_easy", "clutter", "stop_sign")))
    with pytest.raises(ValueError, match="holds no class with pictures"):
        read_labels(folder / "cup")
    with pytest.raises(ValueError, match="no such directory"):
        read_labels(folder / "cups")
    with pytest.raises(ValueError, match=r"has no folder 'cups' to give a name to; did you mean 'cup'\?"):
        read_labels(folder, {"cups": "cup"})
