"""What a model cannot take is left out, counted and named; the rest is diagnosed."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import agevlm
from agevlm.data.parquet import Record, write_parquet
from agevlm.data.schema import ImageSource, Sample
from agevlm.diagnosis.askable import askable, unasked
from agevlm.diagnosis.asking import presence_samples
from agevlm.evaluation import benchmarks
from agevlm.evaluation.benchmarks import Settings
from agevlm.vlms import Vlm
from tests.vlms import tiny_families


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    found = presence_samples(benchmarks.test_samples("tiny", "scenes", Settings(num_images=4)))
    return [replace(s, conversations=tuple(replace(c, groundings=()) for c in s.conversations[:6])) for s in found]


def picture(name: str, width: int, height: int) -> ImageSource:
    file = io.BytesIO()
    Image.new("RGB", (width, height), (200, 30, 30)).save(file, "PNG")
    return ImageSource(name, height, width, data=file.getvalue())


def asking(sample: Sample, text: str) -> Sample:
    """The sample with another text as its first question."""
    first, *rest = sample.conversations
    question, answer = first.messages
    return replace(sample, conversations=(replace(first, messages=(replace(question, content=text), answer)), *rest))


def test_a_picture_that_cannot_be_used_is_left_out_and_named(tmp_path: Path, samples: list[Sample]) -> None:
    thin = replace(samples[2], images=(picture("thin picture", 1, 300),))
    write_parquet(tmp_path / "data", [Record(sample) for sample in (*samples[:2], thin, samples[3])])
    pair = tiny_families.made("qwen2_vl")
    found = agevlm.diagnose(pair, tmp_path / "data", out=tmp_path / "out", device="cpu")
    why = found.record["left_out"]["some pictures and questions"]
    assert why.startswith(f"1 of 4 pictures, and 0 questions about others, cannot be asked: {thin.id}: thin picture: ")
    assert "aspect ratio" in why
    assert found.record["unasked"].keys() == {thin.id}
    assert found.record["provenance"]["pictures"] == "3"
    assert "thin picture" in found.page.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["llava", "mllama", "agevlm"])
def test_a_question_that_is_too_long_is_left_out_for_both_models(name: str, samples: list[Sample]) -> None:
    long = asking(samples[1], "the red fish " * 300 + "is there a fish ?")
    vlms = [Vlm(*tiny_families.made(name)), Vlm(*tiny_families.made("llava"))]
    left, why = askable(vlms, [samples[0], long, *samples[2:]])
    assert why.keys() == {long.conversations[0].id}
    assert "and the context takes" in why[long.conversations[0].id]
    assert left == [samples[0], replace(long, conversations=long.conversations[1:]), *samples[2:]]
    sentence = unasked(why, samples)
    assert sentence and sentence.startswith("0 of 4 pictures, and 1 questions about others, cannot be asked: ")
    assert unasked({}, samples) is None


def test_a_question_must_go_with_the_next_picture_too(samples: list[Sample]) -> None:
    """Of Qwen2-VL a larger picture has more tokens: with it the question does not fit."""
    vlm = Vlm(*tiny_families.made("qwen2_vl"))
    small, large = (replace(s, images=(picture(s.id, side, side),)) for s, side in zip(samples, (32, 96), strict=False))
    room = 512 - max(len(vlm.encode([vlm.prompt("")], [[Image.new("RGB", (96, 96))]]).tensors["input_ids"][0]), 1)
    long = asking(small, "fish " * (room + 2))
    left, why = askable([vlm], [long, large])
    assert why.keys() == {long.conversations[0].id}
    assert [len(sample.conversations) for sample in left] == [5, 6]


def test_where_nothing_is_left_the_first_reason_is_told(samples: list[Sample]) -> None:
    thin = [replace(sample, images=(picture("thin picture", 1, 300),)) for sample in samples]
    with pytest.raises(ValueError, match=r"of 4 there are 0: .*: thin picture: .*aspect ratio"):
        askable([Vlm(*tiny_families.made("qwen2_vl"))], thin)
