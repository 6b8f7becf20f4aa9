"""A whole dataset grounded: what becomes of its samples, bad pictures, and runs that are stopped at any point."""

from __future__ import annotations

import errno
import io
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from agevlm.data.images import open_image
from agevlm.data.masks import decode_mask, encode_mask
from agevlm.data.parquet import Record, read_parquet, write_parquet
from agevlm.data.phrases import Vocabulary
from agevlm.data.rows import arrow_schema
from agevlm.data.schema import Conversation, Grounding, ImageSource, Message, Sample
from agevlm.teachers import ground as module
from agevlm.teachers.base import Request, Verdict
from agevlm.teachers.ground import GroundingRun, GroundOptions
from agevlm.teachers.phrasing import phrases_of, with_verdicts
from agevlm.teachers.stopwatch import Stopwatch

FINDER = Vocabulary({"dog": ["puppy"], "cat": [], "hot dog": []})
OPTIONS = GroundOptions(batch_size=2, samples_per_shard=3)


class Corner:
    """A teacher that sees every dog in a corner, knows that there is no cat, and nothing else."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    def ground(self, requests: Sequence[Request]) -> list[list[Verdict]]:
        self.asked += [request.phrases for request in requests]
        return [[self._verdict(request.image, phrase) for phrase in request.phrases] for request in requests]

    def _verdict(self, image: Image.Image, phrase: str) -> Verdict:
        if phrase == "cat":
            return Verdict(False, "absent")
        if phrase != "dog":
            return Verdict(None, "uncertain")
        mask = np.zeros((image.height, image.width), dtype=bool)
        mask[0, 0] = True
        return Verdict(True, "found", (encode_mask(mask),), (0.9,))


def make_png(height: int = 8, width: int = 10) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(data, "PNG")
    return data.getvalue()


def make_sample(number: int, *messages: Message, data: bytes | None = None, num_images: int = 1) -> Sample:
    images = tuple(
        ImageSource(f"{number}.{place}", 8, 10, data=make_png() if data is None else data)
        for place in range(num_images)
    )
    said = messages or (Message("user", "is there a dog? and a cat?", 1), Message("assistant", "a hot dog, no puppies"))
    return Sample(str(number), images, (Conversation("c", "presence", said),))


def write(directory: Path, samples: Sequence[Sample]) -> Path:
    write_parquet(directory, map(Record, samples), vocabulary=("dog", "cat"))
    return directory


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write(tmp_path / "data", [make_sample(number) for number in range(8)])


def contents(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


# ----------------------------------------------------------------------------------------------------------- samples


def test_each_phrase_is_asked_once_and_grounded_wherever_it_stands() -> None:
    sample = make_sample(0)
    (names,) = phrases_of(sample, FINDER)
    assert names == ("dog", "cat", "hot dog")
    verdicts = dict(zip(names, Corner().ground([Request(Image.new("RGB", (10, 8)), names)])[0], strict=True))
    (conversation,) = with_verdicts(sample, FINDER, [verdicts]).conversations
    found = [(known.message, known.phrase, known.present, len(known.masks)) for known in conversation.groundings]
    assert found == [(0, "dog", True, 1), (0, "cat", False, 0), (1, "hot dog", None, 0), (1, "puppies", True, 1)]


def test_phrases_that_a_dataset_has_are_kept_and_others_are_not_looked_for() -> None:
    message = Message("user", "a Puppy beside a thing and a cat", 1)
    known = (Grounding(0, 2, 7, "Puppy", None), Grounding(0, 17, 22, "thing", None))
    sample = Sample("0", make_sample(0).images, (Conversation("c", "caption", (message,), known),))
    assert phrases_of(sample, FINDER) == [("dog", "thing")]
    assert phrases_of(sample, None) == [("puppy", "thing")]
    assert phrases_of(make_sample(0), None) == [()]


def test_a_phrase_is_about_the_picture_shown_last_before_it() -> None:
    messages = (
        Message("system", "dog"),
        Message("user", "a dog", 1),
        Message("assistant", "dog"),
        Message("user", "cat", 1),
    )
    sample = make_sample(0, *messages, num_images=2)
    assert phrases_of(sample, FINDER) == [("dog",), ("cat",)]
    assert phrases_of(make_sample(0, Message("user", "a dog")), FINDER) == [()]  # before any picture


# ---------------------------------------------------------------------------------------------------------- datasets


def test_a_dataset_comes_out_grounded_shard_by_shard(dataset: Path, tmp_path: Path) -> None:
    stopwatch, passed = Stopwatch(), []
    run = GroundingRun(dataset, tmp_path / "out", {"teacher": "corner"}, OPTIONS)
    assert run.todo == [0, 1, 2]
    run.run(Corner(), FINDER, stopwatch=stopwatch, advance=passed.append)
    finished = run.finish()
    assert finished is not None
    summary, counts = finished
    assert list(summary.shards.values()) == [3, 3, 2] and sum(passed) == 8
    assert (counts.images, counts.phrases) == (8, 24)
    assert counts.verdicts == {"found": 8, "absent": 8, "uncertain": 8}
    assert counts.areas == [0, 8, 0, 0, 0]  # one pixel of eighty
    assert stopwatch.handled["write"] == 8 and stopwatch.rows()
    records = list(read_parquet(tmp_path / "out"))
    assert [record.sample.id for record in records] == [str(number) for number in range(8)]
    (conversation,) = records[7].sample.conversations
    assert decode_mask(conversation.groundings[0].masks[0]).sum() == 1
    assert json.loads((tmp_path / "out" / "grounding.json").read_text())["counts"]["images"] == 8


def test_batches_and_workers_change_nothing(dataset: Path, tmp_path: Path) -> None:
    written = []
    for number, options in enumerate((OPTIONS, GroundOptions(batch_size=3, samples_per_shard=3, num_workers=1))):
        run = GroundingRun(dataset, tmp_path / str(number), {}, options)
        run.run(Corner(), FINDER)
        run.finish()
        written.append(contents(tmp_path / str(number)))
    assert written[0] == written[1]


class StoppedError(BaseException):
    """What ends a run that nobody catches: as SIGKILL, but for the process."""


@pytest.mark.parametrize("moment", range(8))
def test_a_run_stopped_at_any_write_goes_on_to_the_same_files(
    moment: int, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = GroundingRun(dataset, tmp_path / "whole", {}, OPTIONS)
    whole.run(Corner(), FINDER)
    whole.finish()
    writes = []
    original = module.write_beside

    def stopping(path: Any) -> Any:
        writes.append(path)
        if len(writes) == moment + 1:
            raise StoppedError
        return original(path)

    with monkeypatch.context() as patch:
        for place in ("agevlm.teachers.ground", "agevlm.data.parquet"):
            patch.setattr(f"{place}.write_beside", stopping)
        with pytest.raises(StoppedError):
            run = GroundingRun(dataset, tmp_path / "out", {}, OPTIONS)
            run.run(Corner(), FINDER)
            run.finish()
    teacher = Corner()
    run = GroundingRun(dataset, tmp_path / "out", {}, OPTIONS)
    done = 3 - len(run.todo)
    run.run(teacher, FINDER)
    run.finish()
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert len(teacher.asked) == 8 - min(8, 3 * done)  # finished shards are not asked again


def test_a_disk_that_fills_leaves_every_finished_shard(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = GroundingRun(dataset, tmp_path / "out", {}, OPTIONS)
    run.run(Corner(), FINDER, shards=[0])
    kept = contents(tmp_path / "out")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("agevlm.data.parquet.pq.ParquetWriter.write_table", full)
        with pytest.raises(OSError, match="No space left"):
            run.run(Corner(), FINDER)
    assert contents(tmp_path / "out") == kept
    assert run.finish() is None
    run.run(Corner(), FINDER)
    assert run.finish() is not None


def test_pictures_that_cannot_be_read_are_left_out_and_counted(tmp_path: Path) -> None:
    broken = {1: b"no picture", 2: make_png()[:-25], 4: make_png(9, 9)}
    samples = [make_sample(number, data=broken.get(number)) for number in range(5)]
    run = GroundingRun(write(tmp_path / "data", samples), tmp_path / "out", {}, GroundOptions(samples_per_shard=2))
    run.run(Corner(), FINDER)
    finished = run.finish()
    assert finished is not None
    kinds = ("file that is no picture", "damaged picture", "picture of another size than its record says")
    assert finished[1].left_out.counts == dict.fromkeys(kinds, 1)
    assert "sample 4" in finished[1].left_out.first[kinds[2]]
    assert [record.sample.id for record in read_parquet(tmp_path / "out")] == ["0", "3"]
    none = GroundingRun(write(tmp_path / "bad", [make_sample(0, data=b"x")]), tmp_path / "none", {})
    none.run(Corner(), FINDER)
    with pytest.raises(ValueError, match=r"no sample of the dataset could be read.*not an image"):
        none.finish()


def test_rows_that_other_tools_broke_are_left_out_and_counted(tmp_path: Path) -> None:
    source = write(tmp_path / "data", [make_sample(number) for number in range(6)])
    rows = list(read_parquet(source).rows())
    mask, wide = (encode_mask(np.ones(shape, dtype=bool)) for shape in ((8, 10), (10, 8)))
    known = {"message": 0, "start": 11, "end": 14, "phrase": "dog", "present": True, "masks": [wide], "image": 0}
    rows[1]["id"] = "0"
    rows[2]["conversations"][0]["groundings"] = [known]
    rows[3]["conversations"][0]["groundings"] = [{**known, "start": 12, "masks": [mask]}]
    rows[4]["instances"] = [
        {"category": "gnu", "mask": mask, "box": [0, 0, 10, 8], "area": 80.0, "colour": None, "crowd": False}
    ]
    rows[5]["conversations"] = []
    (shard,) = source.glob("data-*")
    pq.write_table(pa.Table.from_pylist(rows, schema=arrow_schema()), shard)
    run = GroundingRun(source, tmp_path / "out", {}, GroundOptions(samples_per_shard=4))
    run.run(Corner(), FINDER)
    finished = run.finish()
    assert finished is not None and finished[0].num_samples == 2
    assert finished[1].left_out.counts == {
        "id used before": 1,
        "mask of another size than its picture": 1,
        "span that is not its phrase": 1,
        "category outside the vocabulary": 1,
    }
    assert "sample 4, instance 'gnu'" in finished[1].left_out.first["category outside the vocabulary"]


class White:
    """A teacher that finds what is white."""

    def ground(self, requests: Sequence[Request]) -> list[list[Verdict]]:
        masks = [np.asarray(request.image).min(axis=2) > 200 for request in requests]
        return [
            [Verdict(True, "found", (encode_mask(mask),), (1.0,)) for _ in request.phrases]
            for request, mask in zip(requests, masks, strict=True)
        ]


def odd_pictures() -> dict[str, bytes]:
    """Pictures of 24 × 16 pixels, as they are seen, whose left upper quarter is white, and a line of one pixel."""
    seen = np.zeros((24, 16), np.uint8)
    seen[:12, :8] = 255
    rgb = Image.fromarray(seen).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: seen after a quarter turn clockwise
    saved: dict[str, tuple[Image.Image, dict[str, Any]]] = {
        "turned": (rgb.transpose(Image.Transpose.ROTATE_90), {"format": "JPEG", "quality": 95, "exif": exif}),
        "cmyk": (rgb.convert("CMYK"), {"format": "JPEG", "quality": 95}),
        "deep": (Image.fromarray(seen.astype(np.uint16) * 257), {"format": "PNG"}),
        "moving": (rgb, {"format": "GIF", "save_all": True, "append_images": [Image.new("RGB", (16, 24), "red")]}),
        "line": (Image.new("RGB", (1, 24), "white"), {"format": "PNG"}),
    }
    encoded = {}
    for name, (picture, options) in saved.items():
        data = io.BytesIO()
        picture.save(data, **options)
        encoded[name] = data.getvalue()
    return encoded


@pytest.mark.parametrize("embed", [True, False])
def test_masks_lie_on_the_picture_that_a_model_sees(embed: bool, tmp_path: Path) -> None:
    pictures, samples = odd_pictures(), []
    for name, data in pictures.items():
        (tmp_path / name).write_bytes(data)
        width = 1 if name == "line" else 16
        samples.append(replace(make_sample(0), id=name, images=(ImageSource(name, 24, width, tmp_path / name),)))
    source = tmp_path / "data"
    write_parquet(source, map(Record, samples), embed_images=embed)
    run = GroundingRun(source, tmp_path / "out", {}, GroundOptions(embed_images=embed, allow_outside=not embed))
    run.run(White(), FINDER)
    assert run.finish() is not None
    found = {record.sample.id: record.sample for record in read_parquet(tmp_path / "out", allow_outside=not embed)}
    assert list(found) == list(pictures)
    for name, sample in found.items():
        (mask,) = sample.conversations[0].groundings[0].masks
        seen = np.asarray(open_image(sample.images[0])).min(axis=2) > 200
        np.testing.assert_array_equal(decode_mask(mask), seen)
        assert seen.all() if name == "line" else seen[:11, :7].all() and not seen[13:].any() and not seen[:, 9:].any()


def test_directories_of_something_else_are_refused(dataset: Path, tmp_path: Path) -> None:
    GroundingRun(dataset, tmp_path / "out", {"teacher": "sam3"}, OPTIONS)
    with pytest.raises(ValueError, match=r"begun with other settings \(teacher: sam3 then, sam2 now\)"):
        GroundingRun(dataset, tmp_path / "out", {"teacher": "sam2"}, OPTIONS)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").touch()
    with pytest.raises(ValueError, match="is not empty"):
        GroundingRun(dataset, tmp_path / "mine", {}, OPTIONS)
    with pytest.raises(ValueError, match="is the dataset that is read"):
        GroundingRun(dataset, dataset, {}, OPTIONS)
    with pytest.raises(ValueError, match="at least 1"):
        GroundingRun(dataset, tmp_path / "new", {}, GroundOptions(batch_size=0))
