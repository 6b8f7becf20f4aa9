"""What is written comes back equal, other tools open it, and damage is named."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from agevlm.data.language import make_conversations
from agevlm.data.masks import encode_mask
from agevlm.data.parquet import Record, read_parquet, write_parquet
from agevlm.data.schema import (
    AnnotatedImage,
    Conversation,
    Grounding,
    ImageSource,
    Instance,
    Message,
    Sample,
)

VOCABULARY = ("boat", "cup", "fish")


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (16, 24, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def record(number: int) -> Record:
    rng = np.random.default_rng(number)
    instances = []
    for category in rng.choice(VOCABULARY[:2], size=1 + number % 2, replace=False):
        mask = rng.random((16, 24)) < 0.3
        colour = "red" if number % 3 else None
        instances.append(
            Instance(str(category), encode_mask(mask), (0.5, 1.25, 20.0, 13.0), float(mask.sum()), colour, number == 3)
        )
    annotated = AnnotatedImage(ImageSource(f"image {number}", 16, 24, data=png(number)), tuple(instances))
    conversations = make_conversations(annotated, rng, VOCABULARY, None, 3)
    return Record(Sample(f"sample {number}", (annotated.image,), conversations), annotated)


def other_records() -> list[Record]:
    """A text without pictures, two pictures with an unknown and an absent phrase, a picture known to be empty."""
    text = Conversation("t-0", "text", (Message("user", "hello"), Message("assistant", "hello ü")))
    two = (ImageSource("left", 16, 24, data=png(100)), ImageSource("right", 16, 24, data=png(101)))
    groundings = (Grounding(0, 11, 15, "fish", None), Grounding(0, 11, 15, "fish", False, image=1))
    pair = Conversation("p-0", "pair", (Message("user", "where is a fish?", 2), Message("assistant", "?")), groundings)
    empty = ImageSource("empty", 16, 24, data=png(102))
    return [
        Record(Sample("text", (), (text,))),
        Record(Sample("pair", two, (pair,))),
        Record(Sample("empty", (empty,)), AnnotatedImage(empty, ())),
    ]


def test_round_trip(tmp_path: Path) -> None:
    records = [record(number) for number in range(10)] + other_records()
    summary = write_parquet(tmp_path / "made", iter(records), vocabulary=VOCABULARY)
    dataset = read_parquet(tmp_path / "made")
    assert list(dataset) == records
    assert [dataset[i] for i in range(len(dataset))] == records
    assert dataset[-1] == records[-1]
    assert dataset[2:5] == records[2:5]
    assert dataset.vocabulary == VOCABULARY
    assert dataset.name == "made"
    assert summary == dataset.summary
    assert summary.num_samples == len(dataset) == 13
    assert summary.num_images == 13
    assert sum(summary.kinds.values()) == summary.num_conversations == 32
    with pytest.raises(IndexError, match="no record 13"):
        dataset[13]


def test_shards_and_row_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agevlm.data.parquet._GROUP_ROWS", 3)
    records = [record(number) for number in range(40)]
    summary = write_parquet(tmp_path / "made", records, shard_bytes=20_000)
    names = sorted(path.name for path in (tmp_path / "made").glob("*.parquet"))
    assert len(names) > 2
    assert names == [f"data-{i:05d}-of-{len(names):05d}.parquet" for i in range(len(names))] == list(summary.shards)
    dataset = read_parquet(tmp_path / "made")
    order = np.random.default_rng(0).permutation(40)
    assert [dataset[int(i)] for i in order] == [records[i] for i in order]
    assert list(dataset) == records
    assert len(dataset._cache) <= 8
    copy = pickle.loads(pickle.dumps(dataset))
    assert len(pickle.dumps(dataset)) < 1000
    assert copy[17] == records[17]


def test_pyarrow_opens_it(tmp_path: Path) -> None:
    records = [record(number) for number in range(4)] + other_records()
    write_parquet(tmp_path / "made", records)
    table = pq.read_table(next((tmp_path / "made").glob("*.parquet")))
    assert table.column("id").to_pylist() == [r.sample.id for r in records]
    features = json.loads(table.schema.metadata[b"huggingface"])["info"]["features"]
    assert list(features) == table.column_names
    assert features["images"]["feature"] == {"_type": "Image"}
    assert (tmp_path / "made" / "README.md").read_text().startswith("---\nconfigs:")


def test_hugging_face_datasets_opens_it(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not a requirement")
    records = [record(number) for number in range(4)] + other_records()
    write_parquet(tmp_path / "made", records)
    files = str(tmp_path / "made" / "*.parquet")
    for arguments in ({"path": "parquet", "data_files": files}, {"path": str(tmp_path / "made")}):
        rows = datasets.load_dataset(**arguments, split="train", cache_dir=str(tmp_path / "cache"))
        assert len(rows) == len(records)
        picture = rows[1]["images"][0]
        assert np.array_equal(np.asarray(picture), np.asarray(Image.open(io.BytesIO(png(1)))))
        assert rows[1]["conversations"][0]["messages"][0]["role"] == "user"
        assert rows[1]["instances"][0]["mask"]["counts"] == records[1].annotated.instances[0].mask["counts"]
        assert rows[5]["conversations"][0]["groundings"][0]["present"] is None
    streamed = datasets.load_dataset(str(tmp_path / "made"), split="train", streaming=True)
    assert [row["id"] for row in streamed] == [record.sample.id for record in records]


def test_paths_may_be_kept(tmp_path: Path) -> None:
    path = tmp_path / "one.png"
    path.write_bytes(png(1))
    source = ImageSource("one", 16, 24, path=path)
    one = Record(Sample("s", (source,)))
    write_parquet(tmp_path / "paths", [one], embed_images=False)
    assert read_parquet(tmp_path / "paths", allow_outside=True)[0] == one
    with pytest.raises(ValueError, match=rf"{path}: leads out of .*--allow-outside"):
        read_parquet(tmp_path / "paths")[0]
    assert pickle.loads(pickle.dumps(read_parquet(tmp_path / "paths", allow_outside=True)))[0] == one
    write_parquet(tmp_path / "bytes", [one])
    assert read_parquet(tmp_path / "bytes")[0].sample.images[0] == ImageSource("one", 16, 24, data=png(1))
    path.unlink()
    with pytest.raises(ValueError, match=r"image one .*no such file"):
        write_parquet(tmp_path / "gone", [one])
    assert not (tmp_path / "gone").exists()


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    write_parquet(tmp_path / "made", [record(1)])

    def breaks() -> Iterator[Record]:
        yield record(2)
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_parquet(tmp_path / "made", breaks())
    for bad, message in (
        ([], "no samples to write"),
        ([record(1), record(1)], "two samples have the id 'sample 1'"),
    ):
        with pytest.raises(ValueError, match=message):
            write_parquet(tmp_path / "made", bad)
    with pytest.raises(ValueError, match="not in the vocabulary"):
        write_parquet(tmp_path / "made", [record(1)], vocabulary=("fish",))
    assert list(read_parquet(tmp_path / "made")) == [record(1)]
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_record_refuses_instances_of_another_picture() -> None:
    annotated = record(1).annotated
    with pytest.raises(ValueError, match="sample s: instances are known of image image 1"):
        Record(Sample("s", ()), annotated)
    assert annotated is not None
    with pytest.raises(ValueError, match="the label 'cup' has no mask, and a dataset stores instances with masks"):
        Record(Sample("s", (annotated.image,)), replace(annotated, labels=("cup",)))


def test_categories_are_read_alone(tmp_path: Path) -> None:
    records = [record(number) for number in range(5)] + other_records()
    write_parquet(tmp_path / "made", records, vocabulary=VOCABULARY, shard_bytes=2000)
    expected = [r.annotated.categories if r.annotated else None for r in records]
    assert None in expected and () in expected
    assert read_parquet(tmp_path / "made").categories() == expected


def test_a_share_is_a_dataset_of_some_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agevlm.data.parquet._GROUP_ROWS", 3)
    write_parquet(tmp_path / "made", [record(number) for number in range(20)], shard_bytes=2000)
    whole = read_parquet(tmp_path / "made")
    half, quarter, other = (
        read_parquet(tmp_path / "made", share=share, seed=seed) for share, seed in ((0.5, 1), (0.25, 1), (0.5, 2))
    )
    assert (len(half), len(quarter), len(read_parquet(tmp_path / "made", share=0.001))) == (10, 5, 1)
    places = [whole.ids().index(name) for name in half.ids()]
    assert places == sorted(places) and len(set(places)) == 10
    assert set(quarter.ids()) < set(half.ids()) != set(other.ids())
    assert list(half) == [half[number] for number in range(10)] == [whole[place] for place in places]
    assert half[-1] == whole[places[-1]]
    assert half.categories() == [whole.categories()[place] for place in places]
    things = [thing for place in places for thing in whole[place].annotated.instances]
    assert half.words() == sorted({word for thing in things for word in (thing.category, thing.colour) if word})
    assert sum(half.group_sizes()) == 10 and 0 not in half.group_sizes()
    assert pickle.loads(pickle.dumps(half)).ids() == half.ids()
    with pytest.raises(IndexError, match="no record 10, the dataset has 10"):
        half[10]
    for wrong in (0.0, 1.5):
        with pytest.raises(ValueError, match="share must lie in"):
            read_parquet(tmp_path / "made", share=wrong)


def test_a_shard_with_fewer_rows_than_were_counted_is_named(tmp_path: Path) -> None:
    write_parquet(tmp_path / "made", [record(number) for number in range(4)])
    counted = tmp_path / "made" / "dataset.json"
    told = (
        counted.read_text(encoding="utf-8").replace('parquet": 4', 'parquet": 5').replace('samples": 4', 'samples": 5')
    )
    counted.write_text(told, encoding="utf-8")
    dataset = read_parquet(tmp_path / "made")
    for read in (dataset.ids, dataset.categories, dataset.words, dataset.group_sizes):
        with pytest.raises(ValueError, match=r"has 4 rows, dataset\.json says 5"):
            read()


def test_damage_is_named(tmp_path: Path) -> None:
    good = tmp_path / "good"
    write_parquet(good, [record(number) for number in range(3)])
    content = json.loads((good / "dataset.json").read_text())
    shard = next(iter(content["shards"]))

    def broken(name: str, change: dict[str, object] | str | None = None) -> Path:
        shutil.copytree(good, tmp_path / name)
        if change is not None:
            text = change if isinstance(change, str) else json.dumps({**content, **change})
            (tmp_path / name / "dataset.json").write_text(text)
        return tmp_path / name

    with pytest.raises(ValueError, match="nowhere: no such dataset directory"):
        read_parquet(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no agevlm dataset"):
        read_parquet(tmp_path)
    for name, change, message in (
        ("json", "{", "not valid JSON"),
        ("list", "[]", "not one of our datasets"),
        ("theirs", {"format": "other"}, "not one of our datasets"),
        ("later", {"schema_version": 99}, r"schema version 99, this agevlm reads version 1; write"),
        ("true", {"schema_version": True}, "schema version True"),
        ("twice", {"vocabulary": ["fish", "fish"]}, "the category 'fish' twice"),
        ("nameless", {"vocabulary": ["fish", ""]}, "a category without a name"),
        ("private", {"vocabulary": ["\U0010fe00"]}, "private characters"),
        ("empty", {"num_samples": 0, "shards": {}}, "0 samples"),
        ("fields", {"pages": 3}, "fields are not those"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            read_parquet(broken(name, change))
        assert name in str(error.value)
    (broken("lost") / shard).unlink()
    with pytest.raises(ValueError, match="no such shard"):
        read_parquet(tmp_path / "lost")[0]
    whole = (good / shard).read_bytes()
    (broken("cut") / shard).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cut.*cannot be read"):
        read_parquet(tmp_path / "cut")[0]
    (broken("holes") / shard).write_bytes(whole[:4] + bytes(2000) + whole[2004:])
    with pytest.raises(ValueError, match=r"holes.*cannot be read"):
        read_parquet(tmp_path / "holes")[0]
    with pytest.raises(ValueError, match=r"has 3 rows, dataset.json says 4"):
        read_parquet(broken("rows", {"num_samples": 4, "shards": {shard: 4}}))[0]
