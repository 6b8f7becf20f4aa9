"""Groundings of two datasets against each other, on a pair whose every figure is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from agevlm.cli import app
from agevlm.data.masks import encode_mask
from agevlm.data.parquet import Record, write_parquet
from agevlm.data.schema import RLE, Conversation, Grounding, ImageSource, Message, Sample
from agevlm.evaluation.agreement import compare_groundings

WORDS = ("dog", "cat", "bird", "fish", "dog")
TEXT = " ".join(WORDS)
Said = tuple[bool | None, int]  # whether it is there, and columns of its mask


def mask(columns: int) -> RLE:
    pixels = np.zeros((4, 10), dtype=bool)
    pixels[:, :columns] = True
    return encode_mask(pixels)


def make_sample(number: int, said: Sequence[Said], text: str = TEXT) -> Sample:
    groundings, start = [], 0
    for word, (present, columns) in zip(WORDS, said, strict=True):
        masks = (mask(columns),) if present else ()
        groundings.append(Grounding(0, start, start + len(word), word, present, masks))
        start += len(word) + 1
    conversation = Conversation("c", "caption", (Message("user", text, 1),), tuple(groundings))
    return Sample(str(number), (ImageSource(str(number), 4, 10, data=b"png"),), (conversation,))


def write(directory: Path, *samples: Sample) -> Path:
    write_parquet(directory, map(Record, samples), vocabulary=WORDS[:4])
    return directory


TRUTH: tuple[Said, ...] = ((True, 10), (True, 4), (False, 0), (None, 0), (True, 10))  # the second dog is the first


def test_every_figure_is_that_of_a_count(tmp_path: Path) -> None:
    truth = write(tmp_path / "truth", *(make_sample(number, TRUTH) for number in range(3)))
    found = write(
        tmp_path / "found",
        make_sample(0, ((True, 5), (True, 4), (True, 9), (True, 9), (True, 5))),
        make_sample(2, ((False, 0), (None, 0), (False, 0), (False, 0), (False, 0))),
    )
    told = compare_groundings(found, truth)
    assert (told.num_samples, told.num_phrases, told.num_present) == (2, 6, 4)
    means = {name: known.mean for name, known in told.figures.items()}
    assert means == pytest.approx(
        {"mean_iou": 0.75, "iou_at_least_0.5": 1, "iou_at_least_0.75": 0.5, "iou_at_least_0.9": 0.5}
        | {"found": 0.5, "missed": 0.25, "imagined": 0.5, "denied": 0.5, "unknown": 1 / 6}
    )
    assert told.iou_by_phrase == {"cat": 1.0, "dog": 0.5}
    assert told.figures["found"].low < 0.5 < told.figures["found"].high


def test_the_command_tells_and_writes_it(tmp_path: Path) -> None:
    truth = write(tmp_path / "truth", make_sample(0, TRUTH))
    out = tmp_path / "agreement.json"
    done = CliRunner().invoke(app, ["data", "agree", str(truth), str(truth), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "mean_iou" in done.output and json.loads(out.read_text())["mean_iou"]["mean"] == 1.0


def test_datasets_of_other_things_are_named(tmp_path: Path) -> None:
    truth = write(tmp_path / "truth", make_sample(0, TRUTH))
    with pytest.raises(ValueError, match="truth: has no sample 1 where"):
        compare_groundings(write(tmp_path / "more", make_sample(0, TRUTH), make_sample(1, TRUTH)), truth)
    with pytest.raises(ValueError, match="sample 0: says other things"):
        compare_groundings(write(tmp_path / "other", make_sample(0, TRUTH, TEXT + "!")), truth)
    unknown = write(tmp_path / "unknown", make_sample(0, ((None, 0),) * 5))
    with pytest.raises(ValueError, match="no phrase in common"):
        compare_groundings(truth, unknown)
