"""Pictures with text from LLaVA's JSON, chat messages, captions and folders; what is broken, missing or of no use."""

from __future__ import annotations

import io
import json
import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner

from agevlm.cli import app
from agevlm.data.formats.dialogues import DialogueOptions, convert_dialogues
from agevlm.data.parquet import Record, read_parquet
from agevlm.data.schema import Message

LENIENT = DialogueOptions(skip_missing=True, skip_broken=True)


def make_png(width: int = 10) -> bytes:
    data = io.BytesIO()
    Image.new("RGB", (width, 8), "red").save(data, "PNG")
    return data.getvalue()


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    root = tmp_path / "pictures"
    (root / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        (root / name).write_bytes(make_png())
    (root / "broken.png").write_bytes(b"nothing")
    return root


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def convert(
    format: Any, source: Path, images: Path | None, options: DialogueOptions | None = None
) -> tuple[Any, list[Record]]:
    out = source.parent / "out"
    report, _ = convert_dialogues(format, source, images, out, options)
    return report, list(read_parquet(out))


def messages_of(record: Record) -> tuple[Message, ...]:
    (conversation,) = record.sample.conversations
    return conversation.messages


def llava(identity: str, *values: str, image: Any = "a.png") -> dict[str, Any]:
    turns = [{"from": ("human", "gpt")[number % 2], "value": value} for number, value in enumerate(values)]
    return {"id": identity, "image": image, "conversations": turns}


# ----------------------------------------------------------------------------------------------------------- formats


def test_llava_s_placeholders_become_pictures_before_a_message(pictures: Path, tmp_path: Path) -> None:
    entries = [
        llava("1", "<image>\nis there a dog?", "no", "a cat?", "yes"),
        llava("2", "what is this?\n<image>", "a fish"),
        llava("3", "compare <image> and <image>.", "same", image=["a.png", "sub/b.png"]),
        llava("1", "no placeholder", "yes"),
        {"id": "text", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]},
    ]
    report, records = convert("llava", write(tmp_path / "llava.json", entries), pictures)
    assert [record.sample.id for record in records] == ["1", "2", "3", "1#2"]
    assert messages_of(records[0]) == (
        Message("user", "is there a dog?", 1),
        Message("assistant", "no"),
        Message("user", "a cat?"),
        Message("assistant", "yes"),
    )
    assert [messages_of(record)[0].num_images for record in records] == [1, 1, 2, 1]
    assert messages_of(records[1])[0].content == "what is this?"
    assert [image.width for image in records[2].sample.images] == [10, 10]
    ids = [image.id for record in records for image in record.sample.images]
    assert len(set(ids)) == len(ids) == 5
    assert report.mended == {"ids used before": 1, "pictures without a placeholder": 1}
    assert report.left_out == {"samples without a picture": 1}
    assert report.kept["samples"] == 4


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_chat_messages_come_as_text_or_in_parts(kind: str, pictures: Path, tmp_path: Path) -> None:
    asked = [[{"type": "image"}, {"type": "text", "text": "is there a dog?"}], [{"type": "text", "text": "<image>hm?"}]]
    rows: list[dict[str, Any]] = []
    for parts, answer, picture in zip(asked, ("no", "yes"), ("a.png", "sub/b.png"), strict=True):
        said = [{"type": "text", "text": answer}]
        messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": said}]
        rows.append({"messages": messages, "images": [picture]})
    source = tmp_path / f"chat.{kind}"
    if kind == "parquet":
        for row in rows:
            row["images"] = [{"bytes": make_png(7), "path": None}]
        pq.write_table(pa.Table.from_pylist(rows), source)
    else:
        write(source, rows if kind == "json" else "\n\n".join(map(json.dumps, rows)))
    _, records = convert("messages", source, pictures)
    assert [messages_of(record) for record in records] == [
        (Message("user", "is there a dog?", 1), Message("assistant", "no")),
        (Message("user", "hm?", 1), Message("assistant", "yes")),
    ]
    assert records[0].sample.images[0].width == (7 if kind == "parquet" else 10)


def asked(*parts: dict[str, Any] | str, **row: Any) -> dict[str, Any]:
    """A row of chat messages: a question of pictures and texts, and an answer."""
    content = [part if isinstance(part, dict) else {"type": "text", "text": part} for part in parts]
    answer = [{"type": "text", "text": "yes"}]
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}], **row}


def part(**name: Any) -> dict[str, Any]:
    return {"type": "image", **name}


@pytest.mark.parametrize(
    ("row", "widths"),
    [
        (asked(part(image="a.png"), "is it?"), [10]),
        (asked(part(path="7.png"), part(url="a.png"), "same?"), [7, 10]),
        (asked(part(image={"bytes": make_png(5), "path": None}), "is it?"), [5]),
        (asked(part(image=None, path="7.png"), "is it?", images=None), [7]),
        (asked(part(path="7.png"), part(image="a.png"), "same?", images=["./7.png", "a.png"]), [7, 10]),
        (asked(part(), "and <image>", part(path="7.png"), images=["a.png", "a.png", "7.png"]), [10, 10, 7]),
        (asked(part(path="7.png"), "is it?", images=[{"bytes": make_png(4), "path": "7.png"}]), [4]),
    ],
)
def test_a_part_may_name_its_own_picture(row: Any, widths: list[int], pictures: Path, tmp_path: Path) -> None:
    (pictures / "7.png").write_bytes(make_png(7))
    source = tmp_path / "chat.parquet"  # all parts have all keys there, most of them null
    pq.write_table(pa.Table.from_pylist([row]), source)
    _, (record,) = convert("messages", source, pictures)
    assert [image.width for image in record.sample.images] == widths
    assert messages_of(record)[0].num_images == len(widths)


def test_captions_of_coco_become_a_sample_each(pictures: Path, tmp_path: Path) -> None:
    images = [{"id": 3, "file_name": "a.png"}, {"id": 4, "file_name": "sub/b.png"}, {"id": 5, "file_name": "a.png"}]
    captions = [
        {"image_id": 3, "caption": "A dog. "},
        {"image_id": 4, "caption": "A cat."},
        {"image_id": 3, "caption": "Dogs."},
    ]
    source = write(tmp_path / "captions.json", {"images": images, "annotations": captions})
    report, records = convert("captions", source, pictures, LENIENT)
    assert [(record.sample.id, messages_of(record)[1].content) for record in records] == [
        ("3", "A dog."),
        ("3.1", "Dogs."),
        ("4", "A cat."),
    ]
    assert all(record.sample.conversations[0].kind == "caption" for record in records)
    assert report.left_out == {"samples without an answer": 1}


def test_folders_have_captions_beside_the_pictures_or_in_one_file(pictures: Path) -> None:
    write(pictures / "a.txt", "a dog\n")
    write(pictures / "sub" / "b.txt", "a cat")
    report, records = convert("folder", pictures, None, LENIENT)
    assert {record.sample.id: messages_of(record)[1].content for record in records} == {
        "a.png": "a dog",
        "sub/b.png": "a cat",
    }
    assert report.left_out == {"samples without an answer": 1}  # the broken picture has no caption either
    write(pictures / "metadata.jsonl", json.dumps({"file_name": "sub/b.png", "text": "a bird"}))
    _, records = convert("folder", pictures, None)
    assert [(record.sample.id, messages_of(record)[1].content) for record in records] == [("sub/b.png", "a bird")]
    write(pictures / "metadata.jsonl", json.dumps({"file_name": "sub/b.png", "said": "a bird"}))
    with pytest.raises(ValueError, match=r"picture sub/b\.png has no `caption` or `text`; it has file_name, said;"):
        convert("folder", pictures, None)


def test_rows_without_messages_say_what_they_have(pictures: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.jsonl", json.dumps({"id": "x", "text": "a bird"}))
    with pytest.raises(ValueError, match="row 0 has no list `messages`; it has id, text;"):
        convert("messages", source, pictures)


# ------------------------------------------------------------------------------------------------------------ faults


ROBOT = {"id": "x", "image": "a.png", "conversations": [{"from": "robot", "value": "<image>"}]}


@pytest.mark.parametrize(
    ("entry", "reason", "message"),
    [
        (llava("x", "<image>?", "yes", image="nowhere.png"), "pictures missing on disk", "no such picture"),
        (llava("x", "<image>?", "yes", image="broken.png"), "pictures that cannot be read", "broken.png: not an image"),
        (llava("x", "<image><image>?", "yes"), "another number of placeholders than pictures", "shows 2"),
        (llava("x", "<image>?"), "samples without an answer", "no answer of the assistant"),
        (llava("x", "<image>?", " "), "samples without an answer", "no answer of the assistant"),
        (ROBOT, "roles nobody knows", "'robot'; known are human"),
        (llava("\U0010fe00", "<image>?", "yes"), "ids that are no text", "private characters"),
        (llava("x", "<image>?", "\U0010fdf0"), "texts that are none", "private characters"),
        (llava("x", "<image>?", "yes") | {"id": [1]}, "ids that are no text", r"the id \[1\]"),
        (llava("x", "<image>?", "yes") | {"id": float("nan")}, "ids that are no text", "the id nan"),
        ({"id": "x"}, "samples without conversations", "entry 1 has no list `conversations`; it has id;"),
        (7, "samples without conversations", "entry 1 has no list"),
        (
            llava("x", "<image>?", "yes", image=5),
            "pictures that cannot be read",
            "entry 1 has a picture that is",
        ),
    ],
)
def test_what_is_broken_is_named_or_counted(
    entry: Any, reason: str, message: str, pictures: Path, tmp_path: Path
) -> None:
    source = write(tmp_path / "llava.json", [llava("good", "<image>?", "yes"), entry])
    flag = "--skip-missing" if "missing" in reason else "--skip-broken"
    with pytest.raises(ValueError, match=message) as caught:
        convert("llava", source, pictures)
    assert flag in str(caught.value)
    assert not (tmp_path / "out").exists()
    report, records = convert("llava", source, pictures, LENIENT)
    assert [record.sample.id for record in records] == ["good"]
    assert report.left_out == {reason: 1}


def test_a_picture_outside_its_directory_is_read_only_where_that_is_allowed(pictures: Path, tmp_path: Path) -> None:
    (pictures / "a.png").rename(tmp_path / "a.png")
    source = write(tmp_path / "llava.json", [llava("x", "<image>?", "yes", image="../a.png")])
    with pytest.raises(ValueError, match=r"\.\./a\.png: leads out of .*--allow-outside"):
        convert("llava", source, pictures)
    _, records = convert("llava", source, pictures, DialogueOptions(allow_outside=True))
    assert len(records) == 1


def test_messages_of_neither_text_nor_parts_are_named_or_counted(pictures: Path, tmp_path: Path) -> None:
    said = [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "yes"}]
    rows = [{"messages": said, "image": None, "images": ["a.png"]}, {"messages": [{"role": "user", "content": 5}]}]
    source = write(tmp_path / "chat.json", rows)
    with pytest.raises(ValueError, match="row 1 has a message of 5; --skip-broken"):
        convert("messages", source, pictures)
    report, records = convert("messages", source, pictures, LENIENT)
    assert [len(record.sample.images) for record in records] == [1]
    assert report.left_out == {"messages without text": 1}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([{"type": "image"}, {"type": "text", "text": {"a": 1}}], "messages without text"),
        ([[["x"]]], "parts of messages nobody knows"),
        ([{"type": "video"}], "parts of messages nobody knows"),
    ],
    ids=str,
)
def test_parts_of_messages_are_texts_and_pictures(content: Any, reason: str, pictures: Path, tmp_path: Path) -> None:
    answer = {"role": "assistant", "content": [{"type": "text", "text": "yes"}]}
    good = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "is it?"}]}
    rows = [
        {"messages": [first, answer], "images": ["a.png"]} for first in (good, {"role": "user", "content": content})
    ]
    report, records = convert("messages", write(tmp_path / "chat.json", rows), pictures, LENIENT)
    assert [messages_of(record)[0] for record in records] == [Message("user", "is it?", 1)]
    assert report.left_out == {reason: 1}


@pytest.mark.parametrize(
    ("row", "reason", "message"),
    [
        (
            asked(part(path="sub/b.png"), part(path="a.png"), "same?", images=["a.png", "sub/b.png"]),
            "parts that name another picture than `images`",
            "row 1 names the picture 'sub/b.png' in a message, and number 1 of its `images` is 'a.png'",
        ),
        (
            asked(part(), part(path="a.png"), "same?", images=["a.png"]),
            "parts that name another picture than `images`",
            "row 1 names the picture 'a.png' in a message, and number 2 of its `images` is not there",
        ),
        (
            asked(part(path="a.png"), part(), "same?"),
            "another number of placeholders than pictures",
            "has 1 pictures and shows 2",
        ),
        (asked(part(image=5), "is it?"), "pictures that cannot be read", "row 1 has a picture that is neither"),
        (asked(part(url="https://there.example/a.png"), "is it?"), "pictures missing on disk", "no such picture"),
    ],
)
def test_a_part_that_names_a_wrong_picture_is_told(
    row: Any, reason: str, message: str, pictures: Path, tmp_path: Path
) -> None:
    source = write(tmp_path / "chat.json", [asked(part(), "is it?", images=["a.png"]), row])
    with pytest.raises(ValueError, match=message):
        convert("messages", source, pictures)
    report, records = convert("messages", source, pictures, LENIENT)
    assert [record.sample.id for record in records] == ["0"]
    assert report.left_out == {reason: 1}


def test_an_answer_of_spaces_takes_no_time(pictures: Path, tmp_path: Path) -> None:
    entry = llava("x", "a \t\n<image>\n <image>  b", " " * 100_000 + "yes", image=["a.png", "a.png"])
    start = time.process_time()
    _, (record,) = convert("llava", write(tmp_path / "llava.json", [entry]), pictures)
    assert time.process_time() - start < 10
    assert messages_of(record)[0] == Message("user", "a\n\nb", 2)


@pytest.mark.parametrize(
    ("format", "name"),
    [("llava", "s.json"), ("messages", "s.jsonl"), ("messages", "s.parquet"), ("captions", "s.json")],
)
def test_a_pipe_is_refused_and_not_waited_for(format: Any, name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=rf"{name}: is a directory, a pipe or a device"):
        convert(format, tmp_path / name, None)


def test_a_null_picture_beside_a_list_of_pictures_hides_none(pictures: Path, tmp_path: Path) -> None:
    entry = llava("x", "<image>?", "yes", image=None) | {"images": ["a.png"]}
    _, records = convert("llava", write(tmp_path / "llava.json", [entry]), pictures)
    assert [len(record.sample.images) for record in records] == [1]


def test_a_damaged_parquet_file_is_named(tmp_path: Path) -> None:
    source = tmp_path / "chat.parquet"
    source.write_bytes(b"PAR1 but no table")
    with pytest.raises(ValueError, match=r"chat\.parquet: the Parquet file cannot be read") as caught:
        convert("messages", source, None)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("format", "content", "message"),
    [
        ("captions", '{"images": [5], "annotations": []}', "no list `images` of mappings"),
        ("captions", '{"images": [{"id": true}], "annotations": []}', 'image has the value True as "id"'),
        (
            "captions",
            '{"images": [], "annotations": [{"image_id": 1.0, "caption": "x"}]}',
            'annotation has the value 1.0 as "image_id"',
        ),
        (
            "captions",
            '{"images": [], "annotations": [{"image_id": 1, "caption": ["x"]}]}',
            r"annotation has the value \['x'\] as \"caption\"",
        ),
        ("llava", "{", "not valid JSON"),
        ("llava", "{}", "holds a dict; a list of samples was expected"),
        ("llava", "[]", "no samples to write"),
        ("captions", "[]", "is not a COCO captions file"),
        ("messages", "{}\n{", "line 2: not valid JSON"),
        ("folder", "", "is no directory of pictures"),
        ("llava", None, "no such file or directory"),
    ],
)
def test_sources_of_another_kind_are_named(format: Any, content: str | None, message: str, tmp_path: Path) -> None:
    source = tmp_path / "source.jsonl"
    if content is not None:
        write(source, content)
    with pytest.raises(ValueError, match=message):
        convert(format, source, None, LENIENT)


def test_the_command_converts_limits_and_refuses(pictures: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "llava.json", [llava(str(number), "<image>?", "yes") for number in range(4)])
    arguments = [
        "data",
        "convert",
        str(source),
        "--from",
        "llava",
        "--images",
        str(pictures),
        "--out",
        str(tmp_path / "o"),
    ]
    done = CliRunner().invoke(app, [*arguments, "--limit", "3"])
    assert done.exit_code == 0, done.output
    assert "3 samples" in done.output and "samples after the limit" in done.output
    assert len(read_parquet(tmp_path / "o")) == 3
    refused = CliRunner().invoke(app, ["data", "convert", str(source), "--from", "llava", "--out", str(pictures)])
    assert refused.exit_code != 0 and "is not empty" in str(refused.exception)
