"""Faults of a written dataset are found and named, whoever wrote them."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from agevlm.cli import app
from agevlm.data.check import check_dataset
from agevlm.data.masks import encode_mask
from agevlm.data.parquet import Record, read_parquet, write_parquet
from agevlm.data.rows import arrow_schema
from agevlm.data.schema import AnnotatedImage, Conversation, Grounding, ImageSource, Instance, Message, Sample


def make_record(number: int) -> Record:
    data = io.BytesIO()
    Image.new("RGB", (10, 8), "red").save(data, "PNG")
    mask = np.zeros((8, 10), dtype=bool)
    mask[2:4, 3:6] = True
    image = ImageSource(f"picture {number}", 8, 10, data=data.getvalue())
    messages = (Message("user", "is there a dog?", 1), Message("assistant", "yes"))
    known = Grounding(0, 11, 14, "dog", True, (encode_mask(mask),))
    sample = Sample(str(number), (image,), (Conversation("c", "presence", messages, (known,)),))
    return Record(sample, AnnotatedImage(image, (Instance("dog", encode_mask(mask), (3, 2, 3, 2), 6.0),)))


def write(directory: Path, change: Callable[[list[dict[str, Any]]], None]) -> Path:
    """A dataset of two samples whose rows were changed by another tool."""
    write_parquet(directory, map(make_record, range(2)))
    rows = copy.deepcopy(list(read_parquet(directory).rows()))
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=arrow_schema()), directory / "data-00000-of-00001.parquet")
    return directory


def grounding(rows: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = rows[1]["conversations"][0]["groundings"][0]
    return found


FAULTS: dict[str, tuple[Callable[[list[dict[str, Any]]], Any], str]] = {
    "id used before": (lambda rows: rows[1].update(id="0"), "sample 0"),
    "picture's id used before": (lambda rows: rows[1]["image_info"][0].update(id="picture 0"), "picture 0"),
    "file that is no picture": (lambda rows: rows[1]["images"][0].update(bytes=b"nothing"), "not an image"),
    "pictures without a size": (lambda rows: rows[1]["images"].append(rows[1]["images"][0]), "sample 1"),
    "category outside the vocabulary": (lambda rows: rows[1]["instances"][0].update(category="cat"), "'cat'"),
    "sample without a conversation": (lambda rows: rows[1].update(conversations=[]), "sample 1"),
    "conversation without an answer": (
        lambda rows: rows[1]["conversations"][0]["messages"][1].update(content=" "),
        "conversation c",
    ),
    "more pictures shown than there are": (
        lambda rows: rows[1]["conversations"][0]["messages"][0].update(num_images=2),
        "conversation c",
    ),
    "grounding of no message": (lambda rows: grounding(rows).update(message=2), "phrase 'dog'"),
    "span that is not its phrase": (lambda rows: grounding(rows).update(end=99, start=12), "'is there a dog?'"),
    "masks that disagree with present": (lambda rows: grounding(rows).update(present=None), "phrase 'dog'"),
    "grounding in no picture": (lambda rows: grounding(rows).update(image=1), "phrase 'dog'"),
    "mask of another size than its picture": (
        lambda rows: grounding(rows)["masks"][0].update(size=[10, 8]),
        "[10, 8], the picture is [8, 10]",
    ),
    "mask without a pixel": (
        lambda rows: grounding(rows)["masks"][0].update(encode_mask(np.zeros((8, 10), dtype=bool))),
        "phrase 'dog'",
    ),
    "mask that cannot be decoded": (lambda rows: grounding(rows)["masks"][0].update(counts=None), "phrase 'dog'"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_every_fault_is_counted_and_its_place_named(kind: str, tmp_path: Path) -> None:
    change, place = FAULTS[kind]
    faults = check_dataset(write(tmp_path / "data", change))
    assert faults.counts == {kind: 1}
    assert place in faults.first[kind]


def test_a_dataset_of_the_package_has_none_and_is_shown(tmp_path: Path) -> None:
    directory, figure = write(tmp_path / "data", lambda rows: None), tmp_path / "samples.png"
    assert not check_dataset(directory).counts
    done = CliRunner().invoke(app, ["data", "inspect", str(directory), "--figure", str(figure), "--num", "9"])
    assert done.exit_code == 0, done.output
    assert "nothing is wrong" in done.output
    picture = Image.open(figure).convert("RGB")
    assert picture.width > 1000 and picture.height > 500
    colours = {colour for _, colour in picture.getcolors(1 << 24) or ()}
    assert (194, 54, 77) in colours  # the word and the outline of its mask


def test_the_command_ends_with_1_where_something_is_wrong(tmp_path: Path) -> None:
    directory = write(tmp_path / "data", FAULTS["file that is no picture"][0])
    done = CliRunner().invoke(app, ["data", "inspect", str(directory)])
    assert done.exit_code == 1 and "file that is no picture" in done.output
    assert CliRunner().invoke(app, ["data", "inspect", str(directory), "--no-decode"]).exit_code == 0
    summary = json.loads((directory / "dataset.json").read_text())
    assert summary["num_samples"] == 2
