"""Datasets of the hub: streamed row by row, no further than asked; what is not there or breaks ends in one line."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from agevlm.cli import app
from agevlm.data.formats.dialogues import DialogueOptions, convert_dialogues
from agevlm.data.formats.hub import HubDataset
from agevlm.data.parquet import Record, read_parquet

datasets = pytest.importorskip("datasets")

TURNS = [{"from": "human", "value": "<image>\nwhat is there?"}, {"from": "gpt", "value": "a fish"}]
MESSAGES = [{"role": "user", "content": "what is there?"}, {"role": "assistant", "content": "a fish"}]


def picture(number: int) -> dict[str, Any]:
    data = io.BytesIO()
    Image.new("RGB", (8 + number, 8), "red").save(data, "PNG")
    return {"bytes": data.getvalue(), "path": None}


def save(directory: Path, **columns: list[Any]) -> str:
    """A dataset in the form that the hub has, whose `image` column holds pictures."""
    whole = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    directory.mkdir()
    whole.to_parquet(directory / "train-00000-of-00001.parquet")
    return str(directory)


def convert(format: Any, name: str, out: Path, limit: int | None = None) -> tuple[Any, list[Record]]:
    report, _ = convert_dialogues(format, HubDataset(name), None, out, DialogueOptions(limit=limit))
    return report, list(read_parquet(out))


@pytest.mark.parametrize(
    ("format", "columns", "answer"),
    [
        ("llava", {"id": list("abc"), "conversations": [TURNS] * 3}, "a fish"),
        ("messages", {"id": list("abc"), "messages": [MESSAGES] * 3}, "a fish"),
        ("captions", {"id": list("abc"), "caption": ["a tree "] * 3}, "a tree"),
        ("captions", {"id": list("abc"), "text": [["a tree", "a bush"]] * 3}, "a tree"),
    ],
)
def test_rows_become_samples(tmp_path: Path, format: Any, columns: dict[str, Any], answer: str) -> None:
    name = save(tmp_path / "source", image=[picture(number) for number in range(3)], **columns)
    report, records = convert(format, name, tmp_path / "out")
    assert report.kept["samples"] == 3
    assert [record.sample.id for record in records] == list("abc")
    assert [record.sample.images[0].width for record in records] == [8, 9, 10]
    (conversation,) = records[0].sample.conversations
    assert [(message.role, message.num_images) for message in conversation.messages] == [("user", 1), ("assistant", 0)]
    assert conversation.messages[1].content == answer


@pytest.mark.parametrize(
    ("format", "wanted"),
    [
        ("captions", "caption or text and images or image"),
        ("llava", "conversations and images or image"),
        ("messages", "messages"),
    ],
)
def test_rows_without_the_columns_of_a_format_are_refused_at_the_first(
    tmp_path: Path, format: Any, wanted: str
) -> None:
    name = save(tmp_path / "source", image=[picture(0)] * 3, said=[MESSAGES] * 3)
    lenient = DialogueOptions(skip_missing=True, skip_broken=True)
    for options in (None, lenient):
        with pytest.raises(ValueError, match=f"its columns are image, said, and --from {format} wants {wanted}: "):
            convert_dialogues(format, HubDataset(name), None, tmp_path / "out", options)


def test_no_more_is_read_than_the_limit_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = 0

    def rows(_: HubDataset) -> Iterator[dict[str, Any]]:
        nonlocal taken
        for number in range(1000):
            taken += 1
            yield {"id": str(number), "image": picture(0), "conversations": TURNS}

    monkeypatch.setattr(HubDataset, "rows", rows)
    report, records = convert("llava", "user/name", tmp_path / "out", limit=5)
    assert (report.kept["samples"], len(records)) == (5, 5)
    assert taken <= 6


def test_a_stream_that_breaks_says_where_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream:
        def decode(self, _: bool) -> Iterator[dict[str, Any]]:
            yield {"id": "a", "image": picture(0), "conversations": TURNS}
            raise ConnectionError("the peer\nwent away")

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Stream())
    with pytest.raises(ValueError, match=r"^hub:user/name:train: cannot be read after 1 rows \(the peer went away\)$"):
        convert("llava", "user/name", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"^hub:user/nothing:train: cannot be read after 0 rows \("):
        convert("llava", "user/nothing", tmp_path / "out")
    with pytest.raises(ValueError, match="names no dataset"):
        HubDataset("")
    name = save(tmp_path / "source", image=[picture(0)], conversations=[TURNS])
    with pytest.raises(ValueError, match="not folder"):
        convert("folder", name, tmp_path / "out")
    with pytest.raises(ValueError, match=r"cannot be read after 0 rows .*validation"):
        convert_dialogues("llava", HubDataset(name, split="validation"), None, tmp_path / "out")


def test_the_command(tmp_path: Path) -> None:
    name = save(tmp_path / "source", image=[picture(0)], conversations=[TURNS])
    out = tmp_path / "out"
    found = CliRunner().invoke(app, ["data", "convert", f"hub:{name}", "--from", "llava", "--out", str(out)])
    assert found.exit_code == 0, found.output
    assert len(list(read_parquet(out))) == 1
    found = CliRunner().invoke(
        app, ["data", "convert", "x.json", "--from", "llava", "--split", "test", "--out", str(out)]
    )
    assert found.exit_code != 0
    assert "hub:user/name" in str(found.exception)
