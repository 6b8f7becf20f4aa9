"""Referring expressions: pickles that run nothing, questions with the mask of what they mean, what is broken."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from agevlm.cli import app
from agevlm.data.formats.refer import convert_refer
from agevlm.data.masks import decode_mask
from agevlm.data.parquet import read_parquet


class Harmful:
    """What runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("harm"),))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 20)).save(tmp_path / "a.png")
    square = [[2, 2, 8, 2, 8, 6, 2, 6]]
    middle = [[16, 8, 24, 8, 24, 12, 16, 12]]
    annotations = [
        {"id": 7, "image_id": 1, "category_id": 3, "segmentation": square, "bbox": [2, 2, 6, 4]},
        {"id": 8, "image_id": 1, "category_id": 3, "segmentation": middle, "bbox": [16, 8, 8, 4]},
        {"id": 9, "image_id": 1, "category_id": 3, "segmentation": [], "bbox": [16, 8, 8, 4]},
    ]
    size = {"height": 20, "width": 40}
    images: list[dict[str, Any]] = [{"id": number, "file_name": "a.png", **size} for number in (1, 3)]
    images += [{"id": 2, "file_name": "b.png"}, {"id": 4, "file_name": "a.png", "height": 40, "width": 80}]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 3, "name": "person"}]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return tmp_path


def make_ref(number: int, annotation: int, *sentences: str, image: int = 1, split: str = "train") -> dict[str, Any]:
    said = [{"sent": sentence, "sent_id": place} for place, sentence in enumerate(sentences)]
    return {"ref_id": number, "ann_id": annotation, "image_id": image, "split": split, "sentences": said}


def write_refs(root: Path, refs: Any, name: str = "refs(unc).p") -> Path:
    path = root / name
    path.write_bytes(json.dumps(refs).encode() if name.endswith("json") else pickle.dumps(refs, protocol=2))
    return path


@pytest.mark.parametrize("name", ["refs(unc).p", "refs.json"])
def test_expressions_become_questions_grounded_in_their_thing(name: str, root: Path) -> None:
    refs = [make_ref(0, 7, "man in blue.", "the left  guy"), make_ref(1, 8, "woman"), make_ref(2, 7, "no", split="val")]
    convert_refer(write_refs(root, refs, name), root / "instances.json", root, root / "out", split="train")
    (record,) = read_parquet(root / "out")
    said = [
        (one.kind, one.messages[0].content, one.messages[1].content, one.groundings[0].phrase)
        for one in record.sample.conversations
    ]
    assert said[:2] == [
        ("location", "where is the man in blue?", "top left", "man in blue"),
        ("location", "where is the left guy?", "top left", "the left guy"),
    ]
    kind, _, answer, phrase = said[2]
    assert (kind, answer, phrase) == ("caption", "the woman.", "woman")
    assert [decode_mask(one.groundings[0].masks[0]).sum() for one in record.sample.conversations] == [24, 24, 32]


def test_an_id_may_be_text_here_and_a_number_there(root: Path) -> None:
    path = write_refs(root, [make_ref(1, 7, "good") | {"image_id": "1", "ann_id": "7"}])
    convert_refer(path, root / "instances.json", root, root / "out")
    assert len(read_parquet(root / "out")) == 1


def test_pickles_run_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    path = write_refs(root, [Harmful()])
    with pytest.raises(ValueError, match="only plain lists and dictionaries are read"):
        convert_refer(path, root / "instances.json", root, root / "out")
    assert not (root / "harm").exists()


@pytest.mark.parametrize(
    ("ref", "reason", "message"),
    [
        (make_ref(1, 99, "x"), "expressions of no annotation", "no annotation 99"),
        (make_ref(1, 9, "x"), "annotations: no mask", "it has no segmentation"),
        *(
            (make_ref(1, 7, "x") | odd, "expressions that are malformed", message)
            for odd, message in (
                ({"sentences": [{"sent": {"a": 1}}]}, "its sentences are"),
                ({"sentences": [{"sent": ["x"]}]}, "its sentences are"),
                ({"sentences": ""}, "its sentences are ''"),
                ({"ref_id": True}, "its ref_id is True"),
                ({"image_id": True}, "its image_id is True"),
                ({"ann_id": True}, "its ann_id is True"),
            )
        ),
        (make_ref(1, 7, "\U0010fe00"), "expressions that are no text", "private characters"),
        (make_ref(1, 7, " "), "expressions without text", "sentence 0 is empty"),
        (make_ref(1, 7, "x", image=2), "pictures missing on disk", "b.png: no such picture"),
        (make_ref(1, 7, "x", image=3), "expressions of another picture's annotation", "annotation 7 is of picture 1"),
        (make_ref(1, 7, "x", image=4), "pictures of another size than stated", "20 × 40 pixels .* say 40 × 80"),
        (make_ref(1, 7, "x", image=5), "pictures that the instances do not list", "picture 5 is not listed"),
    ],
)
def test_what_is_broken_is_named_or_counted(ref: Any, reason: str, message: str, root: Path) -> None:
    path = write_refs(root, [make_ref(0, 7, "good"), ref])
    with pytest.raises(ValueError, match=message):
        convert_refer(path, root / "instances.json", root, root / "out")
    assert not (root / "out").exists()
    options = ["--skip-missing", "--skip-broken", "--instances", str(root / "instances.json"), "--images", str(root)]
    done = CliRunner().invoke(app, ["data", "refer", str(path), *options, "--out", str(root / "out")])
    assert done.exit_code == 0, done.output
    assert reason in done.output and "1 samples, 1 conversations" in done.output


def test_a_picture_outside_its_directory_is_read_only_where_that_is_allowed(root: Path) -> None:
    (root / "a.png").rename(root.parent / "a.png")
    content = json.loads((root / "instances.json").read_text())
    content["images"][0]["file_name"] = "../a.png"
    (root / "instances.json").write_text(json.dumps(content))
    path = write_refs(root, [make_ref(0, 7, "good")])
    with pytest.raises(ValueError, match=r"\.\./a\.png: leads out of .*--allow-outside"):
        convert_refer(path, root / "instances.json", root, root / "out")
    convert_refer(path, root / "instances.json", root, root / "out", allow_outside=True)
    assert len(read_parquet(root / "out")) == 1


def test_files_of_another_kind_are_named(root: Path) -> None:
    (root / "text.p").write_text("text")
    for path, message in (
        (root / "text.p", "cannot be read"),
        (write_refs(root, {"a": 1}, "d.json"), "no list of referring"),
        (root / "nowhere.p", "no such file of referring expressions"),
        (write_refs(root, [make_ref(0, 7, "x")]), "no expressions of the split 'test'; there are train"),
    ):
        with pytest.raises(ValueError, match=message):
            convert_refer(path, root / "instances.json", root, root / "out", split="test")
