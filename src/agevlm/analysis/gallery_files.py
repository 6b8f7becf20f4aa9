"""A gallery as a directory (pictures, arrays, one JSON file): so a report can be written again without the model."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from agevlm.analysis.attention import Look, WordMap
from agevlm.analysis.gallery import GalleryItem
from agevlm.documents import read_bytes
from agevlm.files import write_beside

DIRECTORY = "gallery"


def save_gallery(run_dir: str | Path, items: Sequence[GalleryItem]) -> Path:
    """Write `items` to `run_dir`/gallery, replacing what was there: items.json, pictures, and arrays as .npz."""
    target = Path(run_dir) / DIRECTORY
    with write_beside(target) as beside:
        beside.mkdir()
        records = [_save(beside, f"{number:03d}", item) for number, item in enumerate(items)]
        (beside / "items.json").write_text(json.dumps(records, indent=1, ensure_ascii=False), encoding="utf-8")
    return target


def load_gallery(run_dir: str | Path) -> list[GalleryItem]:
    """The items that `save_gallery` wrote into `run_dir`; none where it never did."""
    source = Path(run_dir) / DIRECTORY
    if not (source / "items.json").is_file():
        return []
    return [_load(source, record) for record in json.loads((source / "items.json").read_text(encoding="utf-8"))]


def _save(directory: Path, name: str, item: GalleryItem) -> dict[str, Any]:
    image = Image.open(io.BytesIO(item.image)) if isinstance(item.image, bytes) else item.image
    image.convert("RGB").save(directory / f"{name}.png")
    look, masks = item.look, item.masks or {}
    arrays: dict[str, Any] = {f"map_{i}": word.map for i, word in enumerate(look.words)} if look else {}
    arrays |= {f"mask_{i}": mask for i, mask in enumerate(masks.values())}
    if arrays:
        np.savez_compressed(directory / f"{name}.npz", **arrays)
    return {
        **{key: getattr(item, key) for key in ("id", "question", "answer", "truth", "kind", "correct")},
        "name": name,
        "masks": list(masks),
        "look": look and {"question": look.question, "answer": look.answer, "grid": look.grid, "words": _words(look)},
    }


def _words(look: Look) -> list[dict[str, Any]]:
    return [{key: value for key, value in vars(word).items() if key != "map"} for word in look.words]


def _load(directory: Path, record: Mapping[str, Any]) -> GalleryItem:
    name, stored = record["name"], record["look"]
    path = directory / f"{name}.npz"
    arrays = dict(np.load(path, allow_pickle=False)) if path.is_file() else {}
    look = None
    if stored:
        words = tuple(WordMap(**word, map=arrays[f"map_{i}"]) for i, word in enumerate(stored["words"]))
        look = Look(stored["question"], stored["answer"], words, (stored["grid"][0], stored["grid"][1]))
    return GalleryItem(
        image=read_bytes(directory / f"{name}.png"),
        masks={word: arrays[f"mask_{i}"] for i, word in enumerate(record["masks"])} or None,
        look=look,
        **{key: record[key] for key in ("id", "question", "answer", "truth", "kind", "correct")},
    )
