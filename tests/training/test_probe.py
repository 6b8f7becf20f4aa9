"""The probe: finds what features hold, and where; is at a coin's where they hold nothing; says what it cannot tell."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from agevlm.cli import main
from agevlm.data.language import make_conversations
from agevlm.data.masks import encode_mask
from agevlm.data.parquet import Record, write_parquet
from agevlm.data.schema import AnnotatedImage, ImageSource, Instance, Sample
from agevlm.training.probe import (
    ProbeSettings,
    _best_threshold,
    _learn,
    _Pictures,
    _Questions,
    _Scorer,
    _targets,
    probe,
)

SIDE, CELL = 64, 16
COLOURS = {"fish": (255, 0, 0), "boat": (0, 255, 0), "house": (0, 0, 255), "key": (255, 255, 0)}


def save(
    directory: Path, num: int, seed: int, *, shown: bool = True, vocabulary: tuple[str, ...] = (), walls: float = 0
) -> Path:
    """Pictures of coloured squares, each on one cell of the grid; not `shown`, all of them are grey.

    The share `walls` of them also hold a wall, which is grey as all the rest.
    """
    rng = np.random.default_rng(seed)
    records = []
    for number in range(num):
        pixels = np.full((SIDE, SIDE, 3), 128, dtype=np.uint8)
        instances = []
        held = [name for name in COLOURS if rng.random() < 0.5] or ["fish"]
        for name, cell in zip(held, rng.permutation(16), strict=False):
            top, left = int(cell) // 4 * CELL, int(cell) % 4 * CELL
            mask = np.zeros((SIDE, SIDE), dtype=bool)
            mask[top : top + CELL, left : left + CELL] = True
            if shown:
                pixels[mask] = COLOURS[name]
            box = (float(left), float(top), float(CELL), float(CELL))
            instances.append(Instance(name, encode_mask(mask), box, float(CELL**2)))
        if number < walls * num:
            whole = (0.0, 0.0, float(SIDE), float(SIDE))
            mask = np.ones((SIDE, SIDE), dtype=bool)
            instances.append(Instance("wall", encode_mask(mask), whole, float(SIDE**2)))
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG")
        image = ImageSource(f"p{number}", SIDE, SIDE, data=buffer.getvalue())
        annotated = AnnotatedImage(image, tuple(instances))
        told = make_conversations(annotated, rng, list(COLOURS), {"caption": 1.0})
        records.append(Record(Sample(image.id, (image,), told), annotated))
    write_parquet(directory, records, vocabulary=(*COLOURS, *vocabulary))
    return directory


@pytest.fixture(scope="module")
def vision(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A backbone whose cells see their own pixels alone: a patch embedding and one stage, of random weights."""
    from tiny_models import make_vision_config
    from transformers import AutoBackbone, ViTImageProcessorPil

    directory = tmp_path_factory.mktemp("vision")
    torch.manual_seed(0)
    config = make_vision_config(hidden_sizes=[24], depths=[1], num_stages=1, patch_size=CELL, out_features=["stem"])
    AutoBackbone.from_config(config).save_pretrained(directory)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(directory)
    return str(directory)


def measure(tmp_path: Path, vision: str, **settings: Any) -> dict[str, Any]:
    train, test = save(tmp_path / "train", 60, 0), save(tmp_path / "test", 30, 1)
    return probe([train], ProbeSettings(vision, **settings), test=test)


def test_it_finds_what_is_there_and_where(tmp_path: Path, vision: str) -> None:
    record = measure(tmp_path, vision)
    assert record["grid"] == [4, 4]
    for figures in record["pope"].values():
        assert figures["accuracy"] > 0.9
        assert figures["auroc"] > 0.95
        assert figures["prior_accuracy"] < 0.7
        low, high = figures["accuracy_interval"]
        assert low <= figures["accuracy"] <= high
    assert record["pointing"]["accuracy"] > 0.9
    assert record["pointing"]["ceiling"] == 1.0
    assert record["num_pictures"] == {"train": 60, "test": 30}
    assert record["notes"] == []
    assert json.loads(json.dumps(record))["settings"]["vision_model"] == vision


def test_it_is_the_same_again(tmp_path: Path, vision: str) -> None:
    assert measure(tmp_path / "a", vision)["pope"] == measure(tmp_path / "b", vision)["pope"]


def test_features_that_hold_nothing_answer_like_a_coin(tmp_path: Path, vision: str) -> None:
    train, test = (save(tmp_path / name, 60, seed, shown=False) for seed, name in enumerate(("train", "test")))
    record = probe([train], ProbeSettings(vision), test=test)
    assert record["pope"]["random"]["auroc"] == pytest.approx(0.5, abs=0.12)
    assert record["pointing"]["accuracy"] < 0.3


def test_a_quarter_is_kept_aside_where_no_test_is_given(tmp_path: Path, vision: str) -> None:
    data = [save(tmp_path / "one", 40, 0), save(tmp_path / "two", 40, 2)]
    record = probe(data, ProbeSettings(vision, num_images=30))
    numbers = record["num_pictures"]
    assert numbers["train"] == 30
    assert 10 <= numbers["test"] <= 30
    assert record["test"] == "25% of the same pictures"
    assert record["pope"]["random"]["accuracy"] > 0.8


def test_categories_that_training_never_shows_are_named_and_asked(tmp_path: Path, vision: str) -> None:
    train = save(tmp_path / "train", 40, 0, vocabulary=("yeti",))
    test = save(tmp_path / "test", 30, 1, vocabulary=("yeti",))
    record = probe([train], ProbeSettings(vision), test=test)
    assert record["notes"] == ["1 categories asked are in no training picture: yeti"]
    assert record["pope"]["random"]["accuracy"] > 0.8


def test_what_every_training_picture_holds_is_answered_by_yes(tmp_path: Path, vision: str) -> None:
    words = ("wall", "yeti")
    train = save(tmp_path / "train", 40, 0, vocabulary=words, walls=1)
    test = save(tmp_path / "test", 30, 1, vocabulary=words, walls=0.5)
    settings = ProbeSettings(vision)
    record = probe([train], settings, test=test)
    assert record["notes"] == [
        "1 categories asked are in no training picture: yeti",
        "1 categories asked are in every training picture: wall",
    ]
    alike = probe([train], settings, test=save(tmp_path / "alike", 30, 1, vocabulary=words, walls=1))
    assert alike["pope"]["random"]["accuracy"] > 0.9
    assert alike["pope"]["random"]["prior_auroc"] > record["pope"]["random"]["prior_auroc"] > 0.5


@pytest.mark.parametrize("reading", ["score", "less_odds", "prior"])
def test_categories_without_a_row_are_read_by_their_frequency(reading: str) -> None:
    annotated = [
        AnnotatedImage(ImageSource(f"p{n}", 8, 8), (), ("wall", "fish") if n else ("wall", "boat")) for n in range(4)
    ]
    categories, always, held_PK, known_PK = _targets(_Pictures(tuple(annotated), (), (("wall", "fish", "yeti"),) * 4))
    assert (categories, always) == (("fish",), {"wall"})
    rows = _learn(torch.zeros(4, 2, 1), held_PK, known_PK, categories)
    scorer = _Scorer(rows, np.zeros((4, 1), dtype=np.float32), always, certain=9.0)
    asked = _Questions(np.array([0, 1, 2]), ("wall", "yeti", "fish"), np.array([True, False, True]))
    assert scorer.read(asked, reading)[:2] == pytest.approx([9.0, float(rows.odds.min())])


def test_pictures_that_are_all_alike_and_too_few_are_refused(tmp_path: Path, vision: str) -> None:
    alike = [Record(record.sample, record.annotated) for record in _same(save(tmp_path / "seed", 1, 0))]
    write_parquet(tmp_path / "alike", alike, vocabulary=list(COLOURS))
    with pytest.raises(ValueError, match="none of 4 categories tells the 6 training pictures apart"):
        probe([tmp_path / "alike"], ProbeSettings(vision), test=save(tmp_path / "test", 4, 1))
    with pytest.raises(ValueError, match="1 pictures are too few to learn from some and test on others"):
        probe([tmp_path / "seed"], ProbeSettings(vision))
    with pytest.raises(ValueError, match="'stage7' was asked for"):
        probe([tmp_path / "seed"], ProbeSettings(vision, stages=("stage7",)))


def _same(directory: Path) -> list[Record]:
    from dataclasses import replace

    from agevlm.data.parquet import read_parquet

    (record,) = read_parquet(directory)
    assert record.annotated is not None
    copies = []
    for number in range(6):
        image = replace(record.annotated.image, id=f"c{number}")
        annotated = replace(record.annotated, image=image)
        copies.append(Record(replace(record.sample, id=f"c{number}", images=(image,)), annotated))
    return copies


@pytest.mark.parametrize(
    ("scores", "yes", "expected"),
    [
        ([1, 2, 3, 4], [0, 0, 1, 1], (1.0, 2.5)),
        ([1, 2, 3, 4], [1, 1, 1, 1], (1.0, 0.5)),
        ([1, 2, 3, 4], [0, 0, 0, 0], (1.0, 4.5)),
        ([2, 2, 2, 5], [0, 0, 1, 1], (0.75, 3.5)),
        ([2, 2, 2, 2], [1, 0, 1, 1], (0.75, 1.5)),
    ],
)
def test_the_best_threshold_gives_equal_scores_one_answer(
    scores: list[float], yes: list[int], expected: tuple[float, float]
) -> None:
    assert _best_threshold(np.array(scores, dtype=float), np.array(yes, dtype=bool)) == expected


def test_the_command_prints_the_ceiling(
    tmp_path: Path, vision: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train, out = save(tmp_path / "train", 40, 0), tmp_path / "probe.json"
    options = ["--vision-model", vision, "--image-size", "64", "--stage", "stem", "--stage", "stage1"]
    options += ["--cache-dir", str(tmp_path / "cache"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["agevlm", "probe", str(train), *options])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    printed = capsys.readouterr().out
    assert "adversarial" in printed and "95 %" in printed
    low, high = json.loads(out.read_text())["pope"]["random"]["accuracy_interval"]
    assert f"{low:.3f}–{high:.3f}" in printed and "to learn from too" not in printed
    assert "a grid of 4 × 4 allows 1.000" in printed
    assert json.loads(out.read_text())["settings"]["stages"] == ["stem", "stage1"]
    assert len(list((tmp_path / "cache").glob("features-*"))) == 1


def test_the_command_says_that_test_pictures_were_learned_from(
    tmp_path: Path, vision: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train, again = save(tmp_path / "train", 20, 0), save(tmp_path / "again", 20, 0)
    options = ["--vision-model", vision, "--test", str(again), "--out", str(tmp_path / "probe.json")]
    monkeypatch.setattr(sys, "argv", ["agevlm", "probe", str(train), *options])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    told = "20 test pictures are among those to learn from too: these figures are too good"
    assert told in capsys.readouterr().out
    assert told in json.loads((tmp_path / "probe.json").read_text())["notes"]


def test_training_reads_the_features_that_the_probe_kept(foundation: Path, tmp_path: Path) -> None:
    from tiny_runs import make_recipe, run

    train = save(tmp_path / "train", 8, 0)
    settings = ProbeSettings(str(foundation / "convnext"), image_size=64)
    probe([train], settings, cache_dir=tmp_path / "cache")
    (kept,) = (tmp_path / "cache").glob("features-*")
    stage = {"name": "s", "data": {"squares": 1.0}, "kinds": {"presence": 1.0}, "trainable": ["projector", "gates"]}
    more = {"data": {"squares": {"parquet": str(train)}}, "dtype": "auto", "cache_dir": str(tmp_path / "cache")}
    content = make_recipe(foundation, stage, **more)
    content["model"]["image_size"] = 64
    run(content, tmp_path / "run")
    assert list((tmp_path / "cache").glob("features-*")) == [kept]
