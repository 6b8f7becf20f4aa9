"""Faults of a written dataset are found and named, whoever wrote them."""

from __future__ import annotations

import copy
import io
import json
import time
from collections.abc import Callable
from functools import partial
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
from agevlm.data.formats.coco_export import export_coco
from agevlm.data.images import open_image
from agevlm.data.masks import MaskError, decode_mask, encode_mask, union_mask
from agevlm.data.parquet import Record, read_parquet, write_parquet
from agevlm.data.row_check import HARMLESS, REFUSED
from agevlm.data.rows import COLUMNS, arrow_schema
from agevlm.data.schema import AnnotatedImage, Conversation, Grounding, ImageSource, Instance, Message, Sample
from agevlm.training.sources import ParquetSource


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


def cut(mask: dict[str, Any]) -> None:
    mask["counts"] = mask["counts"][:-1]


def huge(row: dict[str, Any]) -> None:
    row["image_info"][0].update(height=2**31 - 1, width=2**31 - 1)
    row["instances"][0]["mask"]["size"] = [2**31 - 1, 2**31 - 1]


def strip(row: dict[str, Any]) -> None:
    row.update(images=[], image_info=[])
    row["conversations"][0].update(groundings=[])
    row["conversations"][0]["messages"][0].update(num_images=0)


def put_null(place: str, rows: list[dict[str, Any]]) -> None:
    *path, last = place.split(".")
    value: Any = rows[1]
    for part in path:
        value = value[part][0] if isinstance(value[part], list) else value[part]
    value[last] = None


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
    "mask that cannot be decoded": (lambda rows: cut(grounding(rows)["masks"][0]), "phrase 'dog'"),
    "mask without a size": (lambda rows: grounding(rows)["masks"][0].update(size=[8]), "[8]"),
    "picture of an impossible size": (lambda rows: huge(rows[1]), "2147483647"),
    "box or area that is none": (lambda rows: rows[1]["instances"][0].update(box=[1.0, 2.0]), "'dog'"),
    "text that is none": (
        lambda rows: rows[1]["conversations"][0]["messages"][1].update(content="yes \U0010fdf0"),
        r"'yes \U0010fdf0' has halves",
    ),
    "message of an unknown role": (
        lambda rows: rows[1]["conversations"][0]["messages"][0].update(role="robot"),
        "'robot'",
    ),
    "instances in no picture, or in one of several": (lambda rows: strip(rows[1]), "sample 1"),
    **{
        f"no value for {place}": (partial(put_null, place), "sample 1")
        for place in (
            "conversations.groundings.masks.counts",
            "conversations.groundings.masks.size",
            "conversations.messages",
            "conversations.messages.content",
            "instances.box",
            "instances.area",
            "instances.crowd",
            "images",
            "image_info.width",
        )
    },
}


@pytest.mark.parametrize("kind", FAULTS)
def test_every_fault_is_counted_and_its_place_named(kind: str, tmp_path: Path) -> None:
    change, place = FAULTS[kind]
    directory = write(tmp_path / "data", change)
    faults = check_dataset(directory)
    assert faults.counts == {kind: 1}
    assert place in faults.first[kind]
    if kind == "id used before":  # whichever record is read
        with pytest.raises(ValueError, match="sample 0: id used before"):
            read_parquet(directory)[0]
        with pytest.raises(ValueError, match="sample 0: id used before"):
            export_coco(tmp_path / "out", read_parquet(directory))
    elif kind in (*HARMLESS, "picture's id used before", "file that is no picture"):
        assert read_parquet(directory)[1]
    else:  # whoever reads it says the same
        with pytest.raises(ValueError, match="sample 1") as caught:
            read_parquet(directory)[1]
        assert kind in str(caught.value) and str(directory) in str(caught.value)


@pytest.mark.parametrize(
    "odd",
    [
        {"area": -5.0},
        {"area": 1e300},
        {"area": float("nan")},
        {"box": [500.0, 0.0, 3.0, 2.0]},
        {"box": [0.0, 0.0, 3.0, -2.0]},
        {"box": [0.0, 0.0, 3.0, float("nan")]},
    ],
    ids=str,
)
def test_boxes_and_areas_are_those_of_the_picture(odd: dict[str, Any], tmp_path: Path) -> None:
    directory = write(tmp_path / "data", lambda rows: rows[1]["instances"][0].update(odd))
    assert check_dataset(directory).counts == {"box or area that is none": 1}


@pytest.mark.parametrize("odd", [{"num_images": 7}, {"num_conversations": 0}, {"kinds": {"caption": 2}}], ids=str)
def test_counts_that_contradict_the_rows_are_named(odd: dict[str, Any], tmp_path: Path) -> None:
    directory = write(tmp_path / "data", lambda rows: None)
    content = json.loads((directory / "dataset.json").read_text())
    (directory / "dataset.json").write_text(json.dumps(content | odd))
    faults = check_dataset(directory)
    assert faults.counts == {"count that is not that of the rows": 1}
    (name,) = odd
    assert f"{name}: {odd[name]}, the rows have" in faults.first["count that is not that of the rows"]


def test_an_empty_phrase_has_no_span(tmp_path: Path) -> None:
    directory = write(tmp_path / "data", lambda rows: grounding(rows).update(start=3, end=3, phrase=""))
    assert "phrase ''" in check_dataset(directory).first["span that is not its phrase"]


@pytest.mark.parametrize("name", ["/etc/hostname", "../secret.png", "a/../../secret.png"])
def test_pictures_outside_of_a_dataset_are_not_opened_unless_that_is_allowed(name: str, tmp_path: Path) -> None:
    Image.new("RGB", (10, 8)).save(tmp_path / "secret.png")
    directory = write(tmp_path / "data", lambda rows: rows[1]["images"][0].update(bytes=None, path=name))
    (directory / "a").mkdir()
    faults = check_dataset(directory)
    assert faults.counts == {REFUSED: 1}
    assert faults.first[REFUSED].startswith(f"sample 1, {name}: leads out of {directory}; ")
    for use in (lambda: read_parquet(directory)[1], lambda: export_coco(tmp_path / "out", read_parquet(directory))):
        with pytest.raises(ValueError, match=r"sample 1, .*: leads out of .* --allow-outside"):
            use()
    with pytest.raises(ValueError, match="--allow-outside"):
        ParquetSource(read_parquet(directory)).sample(1, np.random.default_rng(0), None, 1)
    ran = CliRunner().invoke(app, ["data", "inspect", str(directory)])
    assert ran.exit_code == 1 and REFUSED in ran.output
    assert read_parquet(directory, allow_outside=True)[1].sample.images[0].path == directory / name
    ran = CliRunner().invoke(app, ["data", "inspect", str(directory), "--allow-outside"])
    assert ("nothing is wrong" in ran.output) == name.endswith(".png")


def test_paths_of_pictures_are_those_of_files_of_the_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = write(tmp_path / "data", lambda rows: rows[1]["images"][0].update(bytes=None, path="one.png"))
    Image.new("RGB", (10, 8), "red").save(directory / "one.png")
    monkeypatch.chdir(tmp_path)  # wherever one stands
    assert not check_dataset(directory).counts
    assert open_image(read_parquet(directory)[1].sample.images[0]).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("field", ["area", "colour", "crowd"])
def test_a_column_that_lacks_a_field_is_refused_by_all(field: str, tmp_path: Path) -> None:
    directory = write(tmp_path / "data", lambda rows: None)
    rows = [
        {**row, "instances": [{k: v for k, v in one.items() if k != field} for one in row["instances"]]}
        for row in read_parquet(directory).rows()
    ]
    kinds = {
        **dict(COLUMNS),
        "instances": pa.list_(pa.struct([f for f in dict(COLUMNS)["instances"].value_type if f.name != field])),
    }
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(kinds)), directory / "data-00000-of-00001.parquet")
    for use in (
        check_dataset,
        lambda path: list(read_parquet(path)),
        lambda path: export_coco(tmp_path / "out", read_parquet(path)),
    ):
        with pytest.raises(ValueError, match=f"has instances without the field '{field}'"):
            use(directory)


def test_a_cut_mask_never_decodes_to_memory_that_nobody_wrote() -> None:
    mask = encode_mask(np.eye(40, dtype=bool))
    for end in range(len(mask["counts"])):
        for decode in (decode_mask, lambda rle: union_mask([rle])):
            with pytest.raises(MaskError):
                decode({**mask, "counts": mask["counts"][:end]})


def test_a_mask_of_a_million_characters_is_refused_at_once() -> None:
    start = time.monotonic()
    for character in "1o0P~":
        with pytest.raises(MaskError):
            decode_mask({"size": [1000, 1000], "counts": character * 1_000_000})
    assert time.monotonic() - start < 10


def test_shards_lie_in_their_directory(tmp_path: Path) -> None:
    directory = write(tmp_path / "data", lambda rows: None)
    content = json.loads((directory / "dataset.json").read_text())
    content["shards"] = {"../data/data-00000-of-00001.parquet": 2}
    (directory / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="shards lie beside it"):
        read_parquet(directory)


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
