"""The whole way on real photographs, where they are at hand: convert, train, evaluate, look."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tiny_teachers import save_owlv2, save_sam

from agevlm.cli import main
from agevlm.data.masks import decode_mask
from agevlm.data.parquet import read_parquet

ROOT = Path(__file__).parents[1]
COCO_MINI = ROOT.parent / "shared" / "coco_mini"

pytestmark = pytest.mark.skipif(not COCO_MINI.is_dir(), reason="no photographs at ../shared/coco_mini")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["agevlm", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0)


def convert(monkeypatch: pytest.MonkeyPatch, split: str, out: Path) -> Path:
    instances = COCO_MINI / "annotations" / f"instances_{split}.json"
    images = COCO_MINI / split
    assert run(monkeypatch, "data", "coco", "--instances", instances, "--images", images, "--out", out) == 0
    return out


def test_teachers_ground_photographs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, exact, found = (tmp_path / name for name in ("data", "exact", "found"))
    instances, images = COCO_MINI / "annotations" / "instances_val2017.json", COCO_MINI / "val2017"
    limit = ("--instances", instances, "--images", images, "--limit", 6)
    assert run(monkeypatch, "data", "coco", *limit, "--out", data) == 0
    assert run(monkeypatch, "ground", data, "--teacher", "annotations", "--out", exact) == 0
    networks = ("--detector", "owlv2", "--detector-weights", save_owlv2(tmp_path / "owlv2"))
    networks += ("--segmenter-weights", save_sam(tmp_path / "sam"), "--present", 0, "--absent", 0)
    assert run(monkeypatch, "ground", data, *networks, "--out", found) == 0
    assert "picture too thin" not in capsys.readouterr().out
    for before, told, seen in zip(*map(read_parquet, (data, exact, found)), strict=True):
        assert told.sample == before.sample  # what was annotated, word for word
        (picture,) = seen.sample.images
        for conversation, known in zip(seen.sample.conversations, before.sample.conversations, strict=True):
            assert [(g.start, g.phrase) for g in conversation.groundings] == [
                (g.start, g.phrase) for g in known.groundings
            ]
            sizes = {decode_mask(mask).shape for g in conversation.groundings for mask in g.masks}
            assert sizes <= {(picture.height, picture.width)}
    assert run(monkeypatch, "data", "inspect", found) == 0


def sources_of_others(root: Path, images: list[dict[str, Any]], said: str) -> dict[str, Path]:
    """The same photographs with one sentence each, as each of the formats has it, their pictures in place."""
    folder = root / "folder"
    folder.mkdir()
    for image in images:
        (folder / image["file_name"]).write_bytes((COCO_MINI / "val2017" / image["file_name"]).read_bytes())
        (folder / image["file_name"]).with_suffix(".txt").write_text(said)
    names = [image["file_name"] for image in images]
    question = "<image>\nwhat is it?"
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": said}]
    parts = [{"type": "image"}, {"type": "text", "text": "what is it?"}]
    chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": said}]
    captions = [{"id": image["id"], "image_id": image["id"], "caption": said} for image in images]
    contents = {
        "llava": json.dumps([{"id": name, "image": name, "conversations": turns} for name in names]),
        "messages": "\n".join(json.dumps({"messages": chat, "images": [name]}) for name in names),
        "captions": json.dumps({"images": images, "annotations": captions}),
    }
    files = {"folder": folder}
    for kind, content in contents.items():
        files[kind] = root / (kind + (".jsonl" if kind == "messages" else ".json"))
        files[kind].write_text(content)
    return files


def test_every_reader_takes_photographs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    instances, images = COCO_MINI / "annotations" / "instances_val2017.json", COCO_MINI / "val2017"
    annotations = json.loads(instances.read_text())
    photographs, said = annotations["images"][:3], "Two dogs beside a dining table."
    for kind, file in sources_of_others(tmp_path, photographs, said).items():
        out, grounded = tmp_path / f"{kind}.data", tmp_path / f"{kind}.grounded"
        there = () if kind == "folder" else ("--images", images)
        assert run(monkeypatch, "data", "convert", file, "--from", kind, *there, "--out", out) == 0
        assert run(monkeypatch, "ground", out, "--teacher", "annotations", "--out", grounded) == 0
        assert json.loads((grounded / "grounding.json").read_text())["counts"]["verdicts"] == {"not annotated": 6}
        for photograph, record in zip(photographs, read_parquet(grounded), strict=True):
            (image,), (conversation,) = record.sample.images, record.sample.conversations
            assert (image.height, image.width) == (photograph["height"], photograph["width"])
            assert [g.phrase for g in conversation.groundings] == ["dogs", "dining table"]
            assert all(g.present is None for g in conversation.groundings)  # nobody has annotated these datasets
    thing = next(one for one in annotations["annotations"] if not one["iscrowd"])
    sentence = {"sent": "the thing on the left", "sent_id": 1, "raw": "", "tokens": []}
    ref = {"ref_id": 1, "ann_id": thing["id"], "image_id": thing["image_id"], "category_id": thing["category_id"]}
    (tmp_path / "refs.json").write_text(json.dumps([{**ref, "split": "val", "sentences": [sentence]}]))
    told = ("--instances", instances, "--images", images, "--out", tmp_path / "refer")
    assert run(monkeypatch, "data", "refer", tmp_path / "refs.json", *told) == 0
    (record,) = read_parquet(tmp_path / "refer")
    (phrase,) = record.sample.conversations[0].groundings
    assert decode_mask(phrase.masks[0]).sum() == pytest.approx(thing["area"], rel=0.05)
    assert run(monkeypatch, "data", "export", tmp_path / "refer", "--out", tmp_path / "back") == 0
    (exported,) = json.loads((tmp_path / "back" / "instances.json").read_text())["annotations"]
    assert exported["area"] == pytest.approx(thing["area"], rel=0.05)


def small_recipe(directory: Path, train: Path, val: Path) -> Path:
    """`recipes/coco-tiny.yaml` with two steps a stage, on the converted photographs."""
    recipe = yaml.safe_load((ROOT / "recipes" / "coco-tiny.yaml").read_text())
    recipe["data"]["coco"]["parquet"] = str(train)
    recipe["evaluation"] = {"benchmark": str(val), "num_images": 6}
    recipe["model"]["image_size"] = 96
    for stage in recipe["stages"]:
        stage |= {"steps": 2, "images_per_batch": 4}
    path = directory / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_from_annotations_to_a_picture_of_attention(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, val = (convert(monkeypatch, split, tmp_path / split) for split in ("train2017", "val2017"))
    out = tmp_path / "run"
    assert run(monkeypatch, "train", small_recipe(tmp_path, train, val), "--out", out) == 0
    stages = json.loads((out / "stages.json").read_text())
    assert [stage["batches_without_masks"] for stage in stages] == [0, 0, 0, 0]
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(record["loss"]) for record in records)
    assert all(record["guidance_loss"] > 0 for record in records if record["stage"] in ("ground", "instruct"))
    metrics = json.loads((out / "metrics.json").read_text())
    for split in ("random", "popular", "adversarial"):
        assert metrics["pope"][split]["reference_yes_ratio"] == 0.5
    assert "<img" in (out / "report.html").read_text(encoding="utf-8")

    photograph = read_parquet(val)[0].sample.images[0]
    picture = COCO_MINI / "val2017" / f"{int(photograph.id):012d}.jpg"
    capsys.readouterr()
    drawn, maps = tmp_path / "look.png", tmp_path / "look.npz"
    question = "is there a person in the picture?"
    assert run(monkeypatch, "look", out / "model", picture, question, "--out", drawn, "--maps", maps) == 0
    assert capsys.readouterr().out.strip()
    assert drawn.read_bytes().startswith(b"\x89PNG")
    assert maps.exists()


def test_views_balance_and_labels_on_photographs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objects = ROOT.parent / "shared" / "photos" / "objects" / "train"
    if not objects.is_dir():
        pytest.skip("no labelled photographs at ../shared/photos/objects")
    for name in ("cup", "Faces", "stop_sign"):
        (tmp_path / "objects" / name).mkdir(parents=True)
        for photograph in sorted((objects / name).iterdir())[:3]:
            shutil.copy(photograph, tmp_path / "objects" / name)
    instances, images = COCO_MINI / "annotations" / "instances_val2017.json", COCO_MINI / "val2017"
    data = tmp_path / "data"
    limit = ("--instances", instances, "--images", images, "--limit", 12)
    assert run(monkeypatch, "data", "coco", *limit, "--out", data) == 0
    probed = ("--vision-model", "tiny-convnext", "--image-size", 96, "--out", tmp_path / "probe.json")
    assert run(monkeypatch, "probe", data, *probed) == 0
    assert set(json.loads((tmp_path / "probe.json").read_text())["pope"]) == {"random", "popular", "adversarial"}

    recipe = yaml.safe_load((ROOT / "recipes" / "photos.yaml").read_text())
    recipe["model"] |= {"vision_model": "tiny-convnext", "image_size": 96}
    recipe["data"]["photographs"]["parquet"] = str(data)
    recipe["data"]["objects"] = {
        "labels": str(tmp_path / "objects"),
        "names": {"Faces": "face"},
        "augment": {"views": 2},
    }
    for stage in recipe["stages"]:
        stage |= {"steps": 2, "images_per_batch": 6, "data": {"photographs": 0.5, "objects": 0.5}}
    recipe["evaluation"] = None
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    capsys.readouterr()
    assert run(monkeypatch, "train", tmp_path / "recipe.yaml", "--out", tmp_path / "run") == 0
    assert "data photographs: never asked: " in capsys.readouterr().err
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert all(np.isfinite(record["loss"]) and record["guidance_loss"] > 0 for record in records)
    (stage, _) = json.loads((tmp_path / "run" / "stages.json").read_text())
    assert stage["left_out"]["phrases that may be there or not"] > 0
