"""A folder for each class, pictures in it: what is in a picture is known, where it is not. Read, not converted.

A picture's own class is there; the others of the folder are taken to be absent.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from agevlm.data.formats.report import Report
from agevlm.data.images import open_image
from agevlm.data.schema import AnnotatedImage, ImageSource

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read_labels(
    directory: str | Path, names: Mapping[str, str | None] | None = None
) -> tuple[list[AnnotatedImage], Report]:
    """The pictures of a directory of class folders, in alphabetical order, each with its label, and what became of all.

    A class goes by the name of its folder, with spaces for underscores, or by what `names` says: folder → word, None to
    leave it out; folders of one word are one class. Every picture is decoded once, to find the damaged ones. Pictures
    that cannot be read, files that are none, folders inside of class folders and folders without any picture are left
    out and counted. ValueErrors: no such directory, a name of no folder, two classes whose words differ only in case,
    fewer than two classes.
    """
    directory = Path(directory)
    folders = _class_folders(directory, names or {})
    report = Report(str(directory))
    report.left_out["files beside the class folders"] = sum(path.is_file() for path in directory.iterdir())
    pictures: list[AnnotatedImage] = []
    kept: list[tuple[str, str]] = []  # a folder with pictures, and the word of its class
    for folder, word in folders:
        if word is None:
            report.left_out["classes left out by name"] += 1
            continue
        found = _pictures(folder, word, report)
        if not found:
            report.left_out["class folders without a picture"] += 1
            continue
        kept.append((folder.name, word))
        pictures += found
    classes = _classes(directory, kept)
    report.kept.update({"pictures": len(pictures), "classes": len(classes)})
    return pictures, Report(report.source, classes, report.kept, report.mended, report.left_out, report.first)


def check_labels(directory: str | Path, names: Mapping[str, str | None] | None = None) -> None:
    """Raise the ValueErrors of `read_labels` that show without opening a picture."""
    directory = Path(directory)
    kept = [
        (folder.name, word)
        for folder, word in _class_folders(directory, names or {})
        if word is not None and any(map(_may_be_picture, folder.iterdir()))
    ]
    _classes(directory, kept)


def _class_folders(directory: Path, names: Mapping[str, str | None]) -> list[tuple[Path, str | None]]:
    """The folders of a directory in alphabetical order, each with what its class is called; None: left out."""
    if not directory.is_dir():
        raise ValueError(f"{directory}: no such directory; give one that has a folder of pictures for each class")
    folders = sorted(path for path in directory.iterdir() if path.is_dir())
    _check_names(directory, [folder.name for folder in folders], names)
    return [(folder, names.get(folder.name, folder.name.replace("_", " "))) for folder in folders]


def _classes(directory: Path, kept: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """The classes of folders with their words. ValueErrors: words that differ only in case, fewer than two."""
    known: dict[str, tuple[str, str]] = {}  # a word without case → the folder and the word that have it
    for folder, word in kept:
        _check_case(directory, *known.setdefault(word.casefold(), (folder, word)), folder, word)
    classes = tuple(word for _, word in known.values())
    if len(classes) < 2:
        held = f"the class {classes[0]!r} alone" if classes else "no class with pictures"
        raise ValueError(f"{directory}: holds {held}, so nothing is ever absent; give folders of two classes at least")
    return classes


def _may_be_picture(path: Path) -> bool:
    return path.is_file() and path.suffix.lower() in ENDINGS


def _check_names(directory: Path, folders: list[str], names: Mapping[str, str | None]) -> None:
    for name in names:
        if name not in folders:
            near = difflib.get_close_matches(name, folders, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{directory}: has no folder {name!r} to give a name to{hint}")


def _check_case(directory: Path, first: str, first_word: str, second: str, second_word: str) -> None:
    if first_word != second_word:
        raise ValueError(
            f"{directory}: the folders {first!r} and {second!r} are the classes {first_word!r} and {second_word!r}, "
            "which differ only in case; give both folders one word in `names` to join them, or none to one of them to "
            "leave it out"
        )


def _pictures(folder: Path, word: str, report: Report) -> list[AnnotatedImage]:
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            report.left_out["folders inside of class folders, which are not read"] += 1
            continue
        if not _may_be_picture(path):
            report.left_out["files that are no pictures"] += 1
            continue
        try:
            width, height = open_image(path).size
        except ValueError as error:
            report.leave_out("pictures that cannot be read", str(error))
            continue
        image = ImageSource(f"{folder.name}/{path.stem}", height, width, path=path)
        found.append(AnnotatedImage(image, (), (word,)))
    return found
