"""COCO files in and out: masks are pycocotools' own, and every fault is named or counted."""

from __future__ import annotations

import io
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from typer.testing import CliRunner

from agevlm.cli import app
from agevlm.data.formats.coco import EMPTY, CocoOptions, convert_coco, read_coco
from agevlm.data.formats.coco_export import write_coco
from agevlm.data.formats.coco_masks import segmentation_to_rle
from agevlm.data.masks import decode_mask, encode_mask
from agevlm.data.parquet import read_parquet
from agevlm.data.schema import AnnotatedImage, ImageSource, Instance

HEIGHT, WIDTH = 30, 40
SQUARE = [10.0, 5.0, 20.0, 5.0, 20.0, 15.0, 10.0, 15.0]


def png(seed: int, size: tuple[int, int] = (HEIGHT, WIDTH)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def annotation(number: int, image: int, category: int, segmentation: Any, **fields: Any) -> dict[str, Any]:
    entry = {"id": number, "image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": 0}
    return {**entry, "bbox": [10.0, 5.0, 10.0, 10.0], "area": 100.0, **fields}


def content() -> dict[str, Any]:
    """Three pictures: a dog and a crowd of people, two cats (one in two parts), nothing."""
    crowd = np.zeros((HEIGHT, WIDTH), dtype=bool)
    crowd[20:, 5:30] = True
    runs = [int(run) for run in np.diff(np.flatnonzero(np.diff(crowd.T.ravel(), prepend=False)), prepend=0)]
    runs.append(HEIGHT * WIDTH - sum(runs))
    images = [{"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH} for i in (7, 8, 9)]
    names = {1: "person", 17: "cat", 18: "dog", 50: "spoon"}
    return {
        "images": images,
        "categories": [{"id": i, "name": name} for i, name in names.items()],
        "annotations": [
            annotation(101, 7, 18, [SQUARE]),
            annotation(102, 7, 1, {"size": [HEIGHT, WIDTH], "counts": runs}, iscrowd=1, bbox=[5, 20, 25, 10]),
            annotation(103, 8, 17, [SQUARE, [30.0, 20.0, 38.0, 20.0, 34.0, 28.0]]),
            annotation(104, 8, 17, [[0.0, 0.0, 6.0, 0.0, 6.0, 6.0, 0.0, 6.0]], bbox=[0, 0, 6, 6]),
        ],
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    for number in (7, 8, 9):
        (tmp_path / "images" / f"{number}.png").write_bytes(png(number))
    return tmp_path


def put(folder: Path, data: Any) -> tuple[Path, Path]:
    path = folder / "instances_test.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return path, folder / "images"


def test_reads_polygons_parts_and_crowds_as_pycocotools_does(folder: Path) -> None:
    path, images = put(folder, content())
    annotated, report = read_coco(path, images)
    reference = COCO(str(path))
    assert [picture.image.id for picture in annotated] == ["7", "8", "9"]
    assert [picture.categories for picture in annotated] == [("dog", "person"), ("cat",), ()]
    for picture in annotated:
        expected = reference.loadAnns(reference.getAnnIds(int(picture.image.id)))
        for instance, entry in zip(picture.instances, expected, strict=True):
            mask = reference.annToMask(entry).astype(bool)
            assert np.array_equal(decode_mask(instance.mask), mask)
            assert instance.area == mask.sum() > 0
            assert instance.box == tuple(entry["bbox"])
    crowd = annotated[0].instances[1]
    assert crowd.crowd
    assert decode_mask(crowd.mask)[20:, 5:30].all()
    assert crowd.area == 250
    assert report.vocabulary == ("person", "cat", "dog", "spoon")
    assert report.rows() == [("kept", "pictures", 3), ("kept", "instances", 4), ("kept", "crowds", 1)]


def test_a_polygon_partly_outside_is_clipped_and_counted(folder: Path) -> None:
    data = content()
    data["annotations"][0]["segmentation"] = [[-10.0, 5.0, 20.0, 5.0, 20.0, 15.0, -10.0, 15.0]]
    data["annotations"][0]["bbox"] = [-10, 5, 30, 10]
    data["annotations"][3]["segmentation"] = [[30.0, 10.0, 1e9, 10.0, 1e9, 1e9, 30.0, 1e9]]
    annotated, report = read_coco(*put(folder, data))
    expected = np.zeros((HEIGHT, WIDTH), dtype=bool)
    expected[5:15, :20] = True
    assert np.array_equal(decode_mask(annotated[0].instances[0].mask), expected)
    assert annotated[0].instances[0].box == (0.0, 5.0, 20.0, 10.0)
    assert decode_mask(annotated[1].instances[1].mask)[10:, 30:].all()
    assert annotated[1].instances[1].area == 200
    assert report.mended["polygons clipped to their picture"] == 2


def test_small_faults_are_mended_and_counted(folder: Path) -> None:
    data = content()
    data["annotations"][0]["segmentation"] = [SQUARE, [1.0, 1.0, 2.0, 2.0]]
    data["annotations"][3]["segmentation"] = [[3.1, 3.1, 3.2, 3.1, 3.2, 3.2]]
    annotated, report = read_coco(*put(folder, data))
    assert annotated[0].instances[0].area == 100
    assert np.argwhere(decode_mask(annotated[1].instances[1].mask)).tolist() == [[3, 3]]
    assert report.mended["polygon parts of fewer than 3 points left out"] == 1
    assert report.mended["polygons thinner than a pixel, given the pixels of their box"] == 1


BAD_ANNOTATIONS = {
    "annotations of no picture": ({"image_id": 77}, "annotation 101 of image 77: the file does not list this image"),
    "annotations: unknown category": ({"category_id": 3}, "annotation 101 of image 7: category 3 is none of the 4"),
    "annotations: malformed polygon ": ({"segmentation": ["abc"]}, "no list of numbers"),
    "annotations: polygon outside its picture": ({"segmentation": [[50, 5, 60, 5, 60, 9]]}, "30 × 40 pixels"),
    "annotations: degenerate polygon": ({"segmentation": [[1, 1, 5, 5]]}, "none of its polygons has three points"),
    "annotations: malformed polygon": ({"segmentation": [[1, 1, 5, 5, 7]]}, "no flat list"),
    "annotations: mask of another size": ({"segmentation": {"size": [40, 30], "counts": [1200]}}, r"\[40, 30\]"),
    "annotations: malformed mask": ({"segmentation": {"size": [30, 40], "counts": [1, 2]}}, "do not add up"),
    "annotations: empty mask": ({"segmentation": {"size": [30, 40], "counts": [1200]}}, "covers no pixel"),
    "annotations: no mask": ({"segmentation": []}, "it has no segmentation"),
    "annotations of an id used before": ({"id": 102}, "annotation 102 of image 7 shares its id"),
}


@pytest.mark.parametrize("reason", BAD_ANNOTATIONS)
def test_broken_annotations_are_errors_or_counted(folder: Path, reason: str) -> None:
    change, message = BAD_ANNOTATIONS[reason]
    data = content()
    data["annotations"][0].update(change)
    arguments = put(folder, data)
    with pytest.raises(ValueError, match=message) as error:
        read_coco(*arguments)
    assert "--skip-broken" in str(error.value)
    annotated, report = read_coco(*arguments, skip_broken=True)
    assert report.left_out[reason.strip()] == 1
    # what a picture with a broken annotation shows is not known: it must not say "no dog" later
    expected = ["7", "8", "9"] if reason == "annotations of no picture" else ["8", "9"]
    assert [picture.image.id for picture in annotated] == expected


def test_compressed_rle_is_checked(folder: Path) -> None:
    rng = np.random.default_rng(0)
    data = content()
    for ratio in (0.001, 0.1, 0.5, 0.999):
        mask = rng.random((HEIGHT, WIDTH)) < ratio
        mask[0, 0] = True
        whole = encode_mask(mask)
        data["annotations"][0]["segmentation"] = whole
        annotated, _ = read_coco(*put(folder, data))
        assert annotated[0].instances[0].mask == whole
        for counts in (whole["counts"][:-1], whole["counts"] + "5", "~" + whole["counts"], "ü", None, 5):
            data["annotations"][0]["segmentation"] = {"size": whole["size"], "counts": counts}
            with pytest.raises(ValueError, match=r"annotation 101 .*RLE"):
                read_coco(*put(folder, data))


def test_missing_and_broken_pictures(folder: Path) -> None:
    arguments = put(folder, content())
    (folder / "images" / "7.png").unlink()
    with pytest.raises(ValueError, match=r"7\.png: no such file, .* as image 7.*--skip-missing"):
        read_coco(*arguments)
    annotated, report = read_coco(*arguments, skip_missing=True)
    assert [picture.image.id for picture in annotated] == ["8", "9"]
    assert report.left_out == {"pictures missing on disk": 1, "annotations of pictures left out": 2}
    for data, reason, message in (
        (b"", "pictures that cannot be read", "empty"),
        (b"text", "pictures that cannot be read", "not an image"),
        (png(7, (40, 30)), "pictures of another size than stated", r"7.png: the picture is 40 × 30 .* say 30 × 40"),
    ):
        (folder / "images" / "7.png").write_bytes(data)
        with pytest.raises(ValueError, match=message):
            read_coco(*arguments)
        assert read_coco(*arguments, skip_broken=True)[1].left_out[reason] == 1


def test_files_that_are_no_coco(folder: Path) -> None:
    good = content()
    for data, message in (
        ("{", "not valid JSON"),
        ([], 'no list "images"'),
        ({"images": good["images"]}, 'no list "annotations"'),
        ({**good, "images": []}, r'"images" is empty; an empty dataset'),
        ({**good, "annotations": []}, r'"annotations" is empty'),
        ({**good, "images": [good["images"][0]] * 2}, "two images have the id 7"),
        ({**good, "categories": [good["categories"][0]] * 2}, "share the id 1: 'person' and 'person'"),
        ({**good, "images": [{"id": 7, "height": 3, "width": 4}]}, 'image 7 has no "file_name"'),
        ({**good, "images": [{**good["images"][0], "height": "30"}]}, "image 7 has the value '30' as \"height\""),
        ({**good, "annotations": [{"id": 5, "image_id": [7]}]}, r'has the value \[7\] as "image_id"'),
        ({**good, "annotations": [{"id": 5}]}, 'annotation has no "image_id"'),
    ):
        with pytest.raises(ValueError, match=message) as error:
            read_coco(*put(folder, data))
        assert "instances_test.json" in str(error.value)
    with pytest.raises(ValueError, match="no such annotation file"):
        read_coco(folder / "nowhere.json", folder / "images")
    with pytest.raises(ValueError, match="no such directory of pictures"):
        read_coco(put(folder, good)[0], folder / "nowhere")
    with pytest.raises(ValueError, match=r"pictures missing on disk: 3, .*; the first is .*7\.png: give --images"):
        read_coco(put(folder, good)[0], folder, skip_missing=True)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        read_coco(*put(folder, good), limit=0)


def test_names_of_categories_are_as_questions_say_them_and_ids_of_one_name_are_one(folder: Path) -> None:
    data = content()
    data["categories"] += [{"id": 200, "name": " Person "}, {"id": 201, "name": "Dining  Table"}]
    data["annotations"].append(annotation(105, 9, 200, [SQUARE]))
    annotated, report = read_coco(*put(folder, data))
    assert report.vocabulary == ("person", "cat", "dog", "spoon", "dining table")
    assert annotated[2].categories == ("person",)
    assert report.mended == {
        "names of categories put in small letters with single spaces": 2,
        "categories of a name that another has, taken as one": 1,
    }
    convert_coco(*put(folder, data), folder / "out")
    assert read_parquet(folder / "out").vocabulary == report.vocabulary


def test_an_id_may_be_text_here_and_a_number_there(folder: Path) -> None:
    data = content()
    expected = read_coco(*put(folder, data))[0]
    for image in data["images"]:
        image["id"] = str(image["id"])
    for entry in data["annotations"]:
        entry["category_id"] = str(entry["category_id"])
    assert read_coco(*put(folder, data))[0] == expected
    data["annotations"][0]["segmentation"] = None  # what is broken is still found in its picture
    data["annotations"][0]["image_id"] = "7"
    assert len(read_coco(*put(folder, data), skip_broken=True)[0]) == 2


def test_boxes_stand_for_masks_where_that_is_asked_for(folder: Path) -> None:
    data = content()
    for entry in data["annotations"]:
        entry["segmentation"] = []
    data["annotations"][0]["bbox"] = [30.0, 20.0, 15.0, 5.0]  # leaves the picture
    data["images"].pop()
    with pytest.raises(ValueError, match=r"no mask: 4.* where there is no mask, draw one, or .* by --boxes"):
        read_coco(*put(folder, data), skip_broken=True)
    annotated, report = read_coco(*put(folder, data), boxes=True)
    dog, crowd = annotated[0].instances
    assert decode_mask(dog.mask)[20:25, 30:].all() and dog.area == 50 and dog.box == (30, 20, 10, 5)
    assert crowd.crowd and crowd.area == 250
    assert report.mended["boxes taken as masks"] == 4
    path, images = put(folder, data)
    command = ["data", "coco", "--instances", str(path), "--images", str(images), "--boxes"]
    done = CliRunner().invoke(app, [*command, "--out", str(folder / "out")])
    assert "boxes taken as masks" in done.output, done.output
    assert len(read_parquet(folder / "out")) == 2


def scenes(num: int) -> list[tuple[AnnotatedImage, bytes]]:
    pictures = []
    for number in range(num):
        rng = np.random.default_rng(number)
        instances = []
        for category, colour in (("fish", "red"), ("boat", None), ("fish", "blue"))[: number % 4]:
            mask = rng.random((HEIGHT, WIDTH)) < 0.2
            box = tuple(float(side) for side in coco_mask.toBbox(coco_mask.encode(np.asfortranarray(mask, np.uint8))))
            instances.append(Instance(category, encode_mask(mask), box, float(mask.sum()), colour, crowd=number == 3))
        pictures.append((AnnotatedImage(ImageSource(f"scene/{number}", HEIGHT, WIDTH), tuple(instances)), png(number)))
    return pictures


def test_write_then_read_is_the_same(tmp_path: Path) -> None:
    pictures = scenes(7)
    path = write_coco(tmp_path / "export", iter(pictures), vocabulary=("key", "fish", "boat"))
    annotated, report = read_coco(path, tmp_path / "export" / "images")
    assert report.vocabulary == ("key", "fish", "boat")
    assert not report.mended
    assert not report.left_out
    for got, (expected, data) in zip(annotated, pictures, strict=True):
        assert got.instances == expected.instances
        assert got.image.id == expected.image.id
        assert got.image.path is not None
        assert got.image.path.read_bytes() == data
    reference = COCO(str(path))
    for got, number in zip(annotated, reference.getImgIds(), strict=True):
        entries = reference.loadAnns(reference.getAnnIds(number))
        for instance, entry in zip(got.instances, entries, strict=True):
            assert np.array_equal(reference.annToMask(entry).astype(bool), decode_mask(instance.mask))
            assert entry["iscrowd"] == instance.crowd


def test_write_refuses_and_keeps_what_was_there(tmp_path: Path) -> None:
    path = write_coco(tmp_path / "export", scenes(4))
    before = path.read_text()
    for pictures, vocabulary, message in (
        ([], None, "no pictures"),
        ([scenes(1)[0]] * 2, None, "two pictures have the id 'scene/0'"),
        (scenes(4), ("fish",), "'boat' of the instances is not in the vocabulary"),
    ):
        with pytest.raises(ValueError, match=message):
            write_coco(tmp_path / "export", pictures, vocabulary)
    assert path.read_text() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["export"]


def test_pictures_without_instances_may_be_kept_as_such_that_show_nothing(folder: Path) -> None:
    report, _ = convert_coco(*put(folder, content()), folder / "out", CocoOptions(keep_empty=True))
    dataset = read_parquet(folder / "out")
    assert not report.left_out and len(dataset) == 3
    (empty,) = (record for record in dataset if not record.annotated.instances)
    asked = [c for c in empty.sample.conversations if c.kind == "presence"]
    assert asked and all(c.messages[-1].content == "no" for c in asked)
    assert all(not g.present for c in empty.sample.conversations for g in c.groundings)
    assert not [c for c in empty.sample.conversations if c.kind.startswith(("pope", "caption"))]


def test_convert(folder: Path) -> None:
    arguments = put(folder, content())
    options = CocoOptions(num_per_image=4, pope_per_image=2)
    report, summary = convert_coco(*arguments, folder / "out", options)
    dataset = read_parquet(folder / "out")
    assert dataset.vocabulary == ("person", "cat", "dog", "spoon")
    assert [record.sample.id for record in dataset] == ["7", "8"]
    assert report.left_out == {EMPTY: 1}
    assert report.kept["POPE questions"] == 3 * (2 * 2 + 1 * 2)
    assert report.kept["conversations"] + report.kept["POPE questions"] == summary.num_conversations
    annotated, _ = read_coco(*arguments)
    for record, picture in zip(dataset, annotated, strict=False):
        assert record.annotated.instances == picture.instances
        assert record.sample.images[0].data == png(int(record.sample.id))
        ids = [conversation.id for conversation in record.sample.conversations]
        assert len(set(ids)) == len(ids)
    assert convert_coco(*arguments, folder / "again", options)[1].num_conversations == summary.num_conversations
    assert list(read_parquet(folder / "again")) == list(dataset)
    other = CocoOptions(num_per_image=4, pope_per_image=2, seed=1)
    convert_coco(*arguments, folder / "again", other)
    assert list(read_parquet(folder / "again")) != list(dataset)


def test_convert_options(folder: Path) -> None:
    arguments = put(folder, content())
    report, summary = convert_coco(
        *arguments, folder / "out", CocoOptions(kinds={"presence": 1.0}, pope_per_image=0, limit=1, embed_images=False)
    )
    assert set(summary.kinds) == {"presence"}
    assert summary.num_samples == 1
    assert report.left_out["pictures after the limit"] == 2
    source = read_parquet(folder / "out", allow_outside=True)[0].sample.images[0]
    assert source.data is None
    assert source.path == (folder / "images" / "7.png").resolve()
    with pytest.raises(ValueError, match="unknown kind"):
        convert_coco(*arguments, folder / "out", CocoOptions(kinds={"poetry": 1.0}))
    with pytest.raises(ValueError, match="from 0 to"):
        convert_coco(*arguments, folder / "out", CocoOptions(pope_per_image=-1))
    with pytest.raises(ValueError, match="from 0 to 10000, got 1000000000000"):
        convert_coco(*arguments, folder / "out", CocoOptions(num_per_image=10**12))


def test_a_truncated_picture_stops_the_conversion_or_is_counted(folder: Path) -> None:
    data = content()
    data["images"][0]["file_name"] = "7.jpg"
    arguments = put(folder, data)
    stream = io.BytesIO()
    Image.open(io.BytesIO(png(7))).save(stream, "JPEG")
    (folder / "images" / "7.jpg").write_bytes(stream.getvalue()[:-400])
    assert len(read_coco(*arguments)[0]) == 3  # its head is whole
    with pytest.raises(ValueError, match=r"7.jpg.*: .*truncated.*--skip-broken"):
        convert_coco(*arguments, folder / "out")
    assert not (folder / "out").exists()
    report, summary = convert_coco(*arguments, folder / "out", CocoOptions(skip_broken=True))
    assert summary.num_samples == 1
    assert report.left_out["pictures that cannot be read"] == 1
    (folder / "images" / "8.png").write_bytes(png(8)[:-1200])
    with pytest.raises(ValueError, match=r"8.png: .*truncated.*--skip-broken"):
        read_coco(*arguments)


def test_a_picture_outside_its_directory_is_read_only_where_that_is_allowed(folder: Path) -> None:
    told = content()
    (folder / "images" / "7.png").rename(folder / "7.png")
    told["images"][0]["file_name"] = "../7.png"
    (folder / "outside.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=r"image 7: ../7.png: leads out of .*--allow-outside"):
        read_coco(folder / "outside.json", folder / "images")
    pictures, report = read_coco(folder / "outside.json", folder / "images", skip_broken=True)
    assert report.left_out["pictures outside their directory"] == 1 and len(pictures) == 2
    assert len(read_coco(folder / "outside.json", folder / "images", allow_outside=True)[0]) == 3


def test_a_name_that_no_file_system_takes_is_a_missing_picture(folder: Path) -> None:
    told = content()
    told["images"][0]["file_name"] = "a/" * 3000 + "7.png"
    (folder / "long.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match="image 7"):
        read_coco(folder / "long.json", folder / "images")
    pictures, _ = read_coco(folder / "long.json", folder / "images", skip_missing=True, skip_broken=True)
    assert [picture.image.id for picture in pictures] == ["8", "9"]


def test_polygons_of_a_million_points_are_clipped_at_once() -> None:
    angles = np.linspace(0, 6.28, 1_000_000)
    around, outside = (np.stack([np.cos(angles), np.sin(angles)], axis=1) * 25 + 15 + shift for shift in (0, -500))
    notes: Counter[str] = Counter()
    start = time.process_time()
    mask = segmentation_to_rle([around.ravel(), outside.ravel()], (HEIGHT, WIDTH), notes)
    assert time.process_time() - start < 5
    assert notes["polygons clipped to their picture"] == 1 and decode_mask(mask).sum() > 1100


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda c: c["annotations"][0].update(segmentation=[[10**400] * 6]), "polygon"),
        (lambda c: c["annotations"][0].update(segmentation=[[1e308, 0, 5, 5, -1e308, 9]]), "finite numbers"),
        (lambda c: c["annotations"][0].update(category_id=[18]), "category"),
        (lambda c: c["annotations"][0].update(agevlm_colour=["red"]), "a word was expected"),
        (lambda c: c["categories"][0].update(name=" "), "empty name"),
        (lambda c: c["categories"][0].update(name="\ud83d"), "halves of letters"),
        (lambda c: c["categories"][0].update(name="\U0010fe00"), "private characters"),
        (lambda c: c["annotations"][0].update(iscrowd="0"), "iscrowd is '0'"),
        (lambda c: c["annotations"][0].update(iscrowd=[1]), r"iscrowd is \[1\]"),
        (lambda c: c["annotations"][0].update(iscrowd=float("nan")), "iscrowd is nan"),
        (lambda c: c["annotations"][0].update(segmentation=[[0, 0, 40, 30] * 300_000]), "outline of its polygons has"),
        (lambda c: c["images"][0].update(id=[7]), '"id"'),
    ],
)
def test_values_beyond_what_can_be_are_named(change: Any, fault: str, folder: Path) -> None:
    told = content()
    change(told)
    (folder / "odd.json").write_text(json.dumps(told))
    with pytest.raises(ValueError, match=fault) as caught:
        read_coco(folder / "odd.json", folder / "images")
    assert "odd.json" in str(caught.value)


def test_a_box_beyond_floats_is_that_of_the_mask(folder: Path) -> None:
    told = content()
    told["annotations"][0]["bbox"] = [10**400, 0, 1, 1]
    (folder / "odd.json").write_text(json.dumps(told))
    assert read_coco(folder / "odd.json", folder / "images")[0][0].instances[0].box == (10, 5, 10, 10)
