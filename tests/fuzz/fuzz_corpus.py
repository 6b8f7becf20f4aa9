"""Valid inputs of every kind that the package reads, small ones, made anew: what plans change."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from agevlm.checkpoints import resolve_model
from agevlm.data.formats.coco_export import write_coco
from agevlm.data.language import make_conversations
from agevlm.data.masks import encode_mask
from agevlm.data.parquet import Record, read_parquet, write_parquet
from agevlm.data.scenes import CATEGORIES, WorldSpec, draw_scene
from agevlm.data.schema import AnnotatedImage, ImageSource, Instance, Sample
from agevlm.training.recipe_files import packaged_recipes

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
SIZES = ((1, 3000), (3000, 1), (1, 1), (2, 2), (64, 48), (4000, 3000), (1, 20_000), (700, 3))


def make_corpus(root: Path) -> None:
    """Write the corpus: a directory for each kind of input."""
    records = make_records(3)
    _pictures(root / "pictures")
    write_parquet(root / "parquet" / "data", records, vocabulary=CATEGORIES, name="fuzz")
    pairs = [(r.annotated, r.annotated.image.data) for r in records if r.annotated and r.annotated.image.data]
    write_coco(root / "coco", pairs, CATEGORIES)
    _add_polygons(root / "coco" / "instances.json")
    _dialogues(root / "convert", root / "coco" / "images")
    _expressions(root / "refer", root / "coco")
    _recipes(root / "recipes")
    shutil.copytree(resolve_model("tiny"), root / "checkpoint")
    _run(root / "run")


def make_records(number: int) -> list[Record]:
    """Drawn scenes with conversations."""
    rng, made = np.random.default_rng(0), []
    for index in range(number):
        scene = draw_scene(WorldSpec(max_objects=3), 1, index)
        buffer = io.BytesIO()
        Image.fromarray(scene.image).save(buffer, "PNG")
        height, width = scene.image.shape[:2]
        image = ImageSource(f"scene-{index}", height, width, data=buffer.getvalue())
        annotated = AnnotatedImage(image, scene.annotation.instances)
        made.append(
            Record(Sample(image.id, (image,), make_conversations(annotated, rng, CATEGORIES, num=3)), annotated)
        )
    return made


def _pictures(directory: Path) -> None:
    directory.mkdir(parents=True)
    picture = Image.fromarray(draw_scene(WorldSpec(), 2, 0).image)
    for kind in FORMATS:
        picture.resize((40, 30)).save(directory / f"picture.{kind.lower()}", kind)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.resize((40, 30)).save(directory / "turned.jpeg", "JPEG", exif=exif)
    picture.convert("P").save(directory / "palette.png", "PNG")


def _add_polygons(path: Path) -> None:
    content = json.loads(path.read_text())
    first = content["annotations"][0]
    x, y, width, height = first["bbox"]
    first["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
    runs = [int(run) for run in np.diff([0, 200, 400, 96 * 96])]
    content["annotations"][1].update(segmentation={"size": [96, 96], "counts": runs}, iscrowd=1)
    path.write_text(json.dumps(content))


def _dialogues(directory: Path, images: Path) -> None:
    names = sorted(path.name for path in images.iterdir())
    directory.mkdir(parents=True)
    for name in names:
        shutil.copy(images / name, directory / name)
        (directory / name).with_suffix(".txt").write_text("a red fish.")
    turns = [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "gpt", "value": "a fish."}]
    llava = [{"id": str(i), "image": name, "conversations": turns} for i, name in enumerate(names)]
    said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what is it?"}]},
            {"role": "assistant", "content": "a fish."}]  # fmt: skip
    messages = [{"messages": said, "images": [name]} for name in names]
    captions = {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [{"image_id": i, "caption": "a fish."} for i in range(len(names))],
    }
    (directory / "llava.json").write_text(json.dumps(llava))
    (directory / "messages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in messages))
    (directory / "messages.json").write_text(json.dumps(messages))
    (directory / "captions.json").write_text(json.dumps(captions))
    rows = [{"file_name": name, "text": "a fish."} for name in names]
    (directory / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _expressions(directory: Path, coco: Path) -> None:
    annotations = json.loads((coco / "instances.json").read_text())["annotations"]
    refs = [
        {
            "ref_id": i,
            "ann_id": a["id"],
            "image_id": a["image_id"],
            "split": "val",
            "sentences": [{"sent": "the red one"}],
        }
        for i, a in enumerate(annotations)
    ]
    directory.mkdir(parents=True)
    (directory / "refs.json").write_text(json.dumps(refs))
    (directory / "refs.p").write_bytes(pickle.dumps(refs))


def _recipes(directory: Path) -> None:
    directory.mkdir(parents=True)
    for name, path in packaged_recipes().items():
        shutil.copy(path, directory / f"{name}.yaml")
    (directory / "aliases.yaml").write_text("a: &a [1, 2]\nstages: [*a, *a]\n")


def _run(directory: Path) -> None:
    """What a small run leaves, figures and a gallery included."""
    from agevlm.analysis.attention import Look, WordMap
    from agevlm.analysis.gallery import GalleryItem
    from agevlm.analysis.gallery_files import save_gallery

    directory.mkdir(parents=True)
    lines = [
        {"stage": "align", "stage_index": 0, "step": step, "time_s": step * 0.1, "loss": 3 / step, "lm_loss": 2 / step,
         "guidance_loss": 1 / step, "learning_rate": 0.001}
        for step in range(1, 30)
    ]  # fmt: skip
    scores = {"accuracy": 0.9, "accuracy_interval": [0.85, 0.95], "precision": 0.9, "recall": 0.9, "f1": 0.9,
              "yes_ratio": 0.5, "unparsed_ratio": 0.0, "num_questions": 60}  # fmt: skip
    splits = dict.fromkeys(("random", "popular", "adversarial", "mean"), scores)
    metrics = {
        "pope": splits, "biased": {"pope": splits}, "counting": {"accuracy": 0.7, "num_questions": 10},
        "pointing": {"accuracy": 0.8, "num_words": 20}, "text_perplexity": {"before": 3.0, "after": 3.1},
        "provenance": {"model": "tiny", "time": "2026-01-01T00:00:00", "seed": 0},
    }  # fmt: skip
    stages = [{"name": "align", "steps": 29, "seconds": 2.9, "trainable_parameters": 10, "total_parameters": 100,
               "trainable_modules": {"projector": 10}}]  # fmt: skip
    predictions = [
        {"id": f"q{i}", "image": f"i{i}", "kind": "pope.adversarial", "question": "is there a fish?", "truth": "no",
         "answer": "yes", "correct": False, "p_yes": 0.7}
        for i in range(4)
    ]  # fmt: skip
    word = WordMap("fish", 11, 15, "question", np.full((3, 3), 0.1, dtype=np.float32), 0.1)
    look = Look("is there a fish?", "yes", (word,), (3, 3))
    picture = Image.fromarray(draw_scene(WorldSpec(), 2, 1).image)
    item = GalleryItem(picture, "is there a fish?", "yes", "no", "pope.adversarial", False, look, id="q0")
    files = {
        "recipe.yaml": "name: fuzz\n",
        "environment.json": json.dumps({"git": None, "seed": 0, "torch": "2"}),
        "log.jsonl": "".join(json.dumps(line) + "\n" for line in lines),
        "stages.json": json.dumps(stages),
        "metrics.json": json.dumps(metrics),
        "predictions.jsonl": "".join(json.dumps(line) + "\n" for line in predictions),
    }
    for name, text in files.items():
        (directory / name).write_text(text)
    save_gallery(directory, [item])


def rows_of(directory: Path) -> list[dict[str, Any]]:
    """The rows of a dataset as nested values."""
    return list(read_parquet(directory).rows())


def whole_mask(height: int, width: int) -> Instance:
    """An instance that covers its picture."""
    mask = np.ones((height, width), dtype=bool)
    return Instance("fish", encode_mask(mask), (0.0, 0.0, float(width), float(height)), float(mask.sum()))
