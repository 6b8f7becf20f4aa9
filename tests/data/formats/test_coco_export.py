"""Datasets back to COCO: annotated instances, masks of phrases, pictures that EXIF turns."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from typer.testing import CliRunner

from agevlm.cli import app
from agevlm.data.formats.coco import read_coco
from agevlm.data.formats.coco_export import export_coco
from agevlm.data.masks import decode_mask, encode_mask
from agevlm.data.parquet import Record, write_parquet
from agevlm.data.schema import RLE, Conversation, Grounding, ImageSource, Message, Sample


def make_mask(top: int) -> RLE:
    mask = np.zeros((20, 10), dtype=bool)
    mask[top : top + 4, 2:5] = True
    return encode_mask(mask)


def make_jpeg(turned: bool) -> bytes:
    """A picture 20 high and 10 wide, red at the top; as a file it may lie on its side."""
    pixels = np.zeros((20, 10, 3), dtype=np.uint8)
    pixels[:10, :, 0] = 255
    image, exif, data = Image.fromarray(pixels), Image.Exif(), io.BytesIO()
    if turned:
        image, exif[0x0112] = image.transpose(Image.Transpose.ROTATE_90), 6
    image.save(data, "JPEG", exif=exif)
    return data.getvalue()


def make_record(number: int, turned: bool) -> Record:
    said = (Message("user", "is there a Dog or a cat?", 1), Message("assistant", "a dog"))
    known = (
        Grounding(0, 11, 14, "Dog", True, (make_mask(2), make_mask(10))),
        Grounding(0, 20, 23, "cat", False),
        Grounding(1, 2, 5, "dog", True, (make_mask(2),)),
    )
    image = ImageSource(f"p{number}", 20, 10, data=make_jpeg(turned))
    return Record(Sample(str(number), (image,), (Conversation("c", "presence", said, known),)))


def test_masks_of_phrases_become_instances_of_upright_pictures(tmp_path: Path) -> None:
    write_parquet(tmp_path / "data", [make_record(0, turned=False), make_record(1, turned=True)])
    done = CliRunner().invoke(app, ["data", "export", str(tmp_path / "data"), "--out", str(tmp_path / "coco")])
    assert done.exit_code == 0, done.output
    annotated, _ = read_coco(tmp_path / "coco" / "instances.json", tmp_path / "coco" / "images")
    assert [picture.image.id for picture in annotated] == ["p0", "p1"]
    for picture in annotated:
        assert [thing.category for thing in picture.instances] == ["dog", "dog"]  # each mask once
        assert [thing.box for thing in picture.instances] == [(2, 2, 3, 4), (2, 10, 3, 4)]
        pixels = np.asarray(Image.open(picture.image.path or ""))  # as readers see it that know nothing of EXIF
        assert pixels.shape == (20, 10, 3)
        assert pixels[4, :, 0].min() > 200 and pixels[15, :, 0].max() < 60
    coco = COCO(str(tmp_path / "coco" / "instances.json"))
    assert coco.annToMask(coco.anns[1]).tolist() == decode_mask(make_mask(2)).tolist()


def test_a_picture_that_cannot_be_read_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    whole = make_record(0, turned=False)
    image = replace(whole.sample.images[0], id="broken", data=b"nothing")
    records = [whole, Record(replace(whole.sample, id="1", images=(image,)))]
    with pytest.raises(ValueError, match=r"image broken: not an image .*; nothing is written to .*coco"):
        export_coco(tmp_path / "coco", records)
    assert not list(tmp_path.iterdir())
