"""The files of official benchmarks: every form in which they ship, and those that are damaged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from agevlm.data.images import open_image
from agevlm.evaluation.official.benchmark import Question
from agevlm.evaluation.official.files import open_source
from agevlm.evaluation.official.table import BENCHMARKS

from . import made


def questions(name: str, directory: Path) -> list[Question]:
    return BENCHMARKS[name].read(open_source(directory)).questions


def facts(found: list[Question]) -> dict[str, tuple[object, ...]]:
    return {q.id: (q.text, q.answer, dict(q.facts), dict(q.options)) for q in found}


def folder(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("hallusionbench", made.hallusionbench, made.hallusionbench_parquet),
        ("hallusionbench", made.hallusionbench, made.hallusionbench_tsv),
        ("amber", made.amber, made.amber_tsv),
        ("cv-bench", made.cv_bench, made.cv_bench_lines),
    ],
)
def test_other_forms_hold_the_same_questions(
    name: str, one: Callable[[Path], Path], other: Callable[[Path], Path], tmp_path: Path
) -> None:
    first = questions(name, one(folder(tmp_path / "one")))
    second = questions(name, other(folder(tmp_path / "other")))
    if other is made.hallusionbench_tsv:
        first = [question for question in first if question.picture is not None]
    assert facts(second) == facts(first)
    for question in second:
        assert (question.picture is None) == (question.facts.get("visual_input") == "0")
        if question.picture is not None:
            assert question.picture.read is not None
            assert open_image(question.picture.read()).size == (40, 24)
            assert question.picture.fingerprint()


def test_of_a_question_in_two_files_the_picture_that_is_at_hand_counts(tmp_path: Path) -> None:
    hub = made.cv_bench(made.cv_bench_lines(folder(tmp_path / "cv"), pictures=False))
    found = questions("cv-bench", hub)
    assert len(found) == 6
    assert all(question.picture and question.picture.read for question in found)
    both = made.pope_parquet(made.pope(folder(tmp_path / "pope")))
    (both / "val2014" / "1.jpg").unlink()
    found = questions("pope", both)
    assert len(found) == 12
    assert {question.unit for question in found} == {"1.jpg", "2.jpg"}
    read = {q.picture.name: q.picture.read() for q in found if q.picture is not None and q.picture.read is not None}
    assert isinstance(read["1.jpg"], bytes)
    assert isinstance(read["2.jpg"], Path)


def test_files_of_another_schema_may_be_ragged_or_damaged(tmp_path: Path) -> None:
    made.mmvp(tmp_path)
    (tmp_path / "other.csv").write_text("a,b\n1,2,3\n")
    (tmp_path / "other.tsv").write_text("a\tb\n1\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "broken.json").write_text("[1, ")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "empty.parquet").write_bytes(b"")
    source = open_source(tmp_path)
    assert len(BENCHMARKS["mmvp"].read(source).questions) == 4
    assert [line.partition(" ")[0] for line in source.damaged] == ["broken.json", "deep.json", "empty.parquet"]
    (tmp_path / "Questions.csv").unlink()
    with pytest.raises(
        ValueError, match=r"no file of MMVP: found broken.json \(cannot be read as json: .*empty.parquet"
    ):
        BENCHMARKS["mmvp"].read(open_source(tmp_path))


def test_a_row_of_too_few_or_too_many_values_is_named_and_a_blank_one_is_none(tmp_path: Path) -> None:
    path = made.mmvp(tmp_path) / "Questions.csv"
    whole = path.read_text()
    path.write_text(whole + ",,,\n \n\n")
    assert len(questions("mmvp", tmp_path)) == 4
    for row, said in (("5,is it ?", "it has no 'Options'"), ("5,?,(a) x (b) y,(a),more", "more values than there are")):
        path.write_text(whole + row + "\n")
        with pytest.raises(ValueError, match=rf"Questions.csv, row 5 \(the authors' Questions.csv\): .*{said}"):
            questions("mmvp", tmp_path)


def test_annotations_that_are_not_cocos_are_named(tmp_path: Path) -> None:
    made.chair(tmp_path)
    (tmp_path / "other.json").write_text(json.dumps({"annotations": [{"category_id": 3, "image_id": 1}], "more": 1}))
    with pytest.raises(ValueError, match=r"other.json has annotations, but not in COCO's form \(KeyError: 3\)"):
        questions("chair", tmp_path)


def found_pictures(name: str, directory: Path, images: Path | None = None) -> dict[str, str]:
    """The file of each question that has one, below its directory, by the question's id."""
    reading = BENCHMARKS[name].read(open_source(directory, images))
    return {
        q.id: "/".join(Path(q.picture.read()).parts[-3:])  # type: ignore[arg-type]
        for q in reading.questions
        if q.picture is not None and q.picture.read is not None
    }


def test_a_missing_picture_is_not_replaced_by_another_of_its_name(tmp_path: Path) -> None:
    hallusion = made.hallusionbench(folder(tmp_path / "hallusion"))
    whole = found_pictures("hallusionbench", hallusion)
    lost = next(path for path in sorted((hallusion / "hallusion_bench").rglob("*.png")))
    other = lost.parents[2] / "VX" / "map" / lost.name
    gone = "/".join(lost.parts[-3:])
    other.parent.mkdir(parents=True)
    lost.rename(other)
    rows = json.loads((hallusion / "HallusionBench.json").read_text())
    again = next(row for row in rows if row["filename"] and row["filename"].endswith(gone))
    rows.append(again | {"category": "VX", "subcategory": "map", "filename": f"./hallusion_bench/VX/map/{lost.name}"})
    (hallusion / "HallusionBench.json").write_text(json.dumps(rows))
    found = found_pictures("hallusionbench", hallusion)
    added = {key: path for key, path in found.items() if key not in whole}
    assert set(added.values()) == {f"VX/map/{lost.name}"}
    assert {key: path for key, path in found.items() if key in whole} == {
        key: path for key, path in whole.items() if path != gone
    }

    lines = made.cv_bench_lines(folder(tmp_path / "lines"))
    (lines / "img" / "2D" / "0.png").unlink()
    (lines / "img" / "thumbnails").mkdir()
    (lines / "img" / "thumbnails" / "0.png").write_bytes(made.png(9))
    assert len(found_pictures("cv-bench", lines)) == len(made.CV_ROWS) - 1

    pairs = made.mmvp(folder(tmp_path / "pairs"))
    (pairs / "MMVP Images" / "1.jpg").rename(folder(pairs / "other") / "1.jpg")
    assert found_pictures("mmvp", pairs).keys() == {"2", "3", "4"}


def test_folders_of_pictures_may_have_other_names(tmp_path: Path) -> None:
    pairs = made.mmvp(folder(tmp_path / "pairs"))
    (pairs / "MMVP Images").rename(pairs / "pictures")
    assert set(found_pictures("mmvp", pairs)) == {"1", "2", "3", "4"}
    (pairs / "pictures").rename(tmp_path / "elsewhere")
    assert set(found_pictures("mmvp", pairs, tmp_path / "elsewhere")) == {"1", "2", "3", "4"}
    hallusion = made.hallusionbench(folder(tmp_path / "hallusion"))
    whole = found_pictures("hallusionbench", hallusion)
    (hallusion / "hallusion_bench").rename(hallusion / "figures")
    assert found_pictures("hallusionbench", hallusion) == whole


def test_a_name_that_two_pictures_have_is_of_neither(tmp_path: Path) -> None:
    pope = made.pope(folder(tmp_path / "pope"))
    copied = folder(pope / "copies")
    (copied / "1.jpg").write_bytes((pope / "val2014" / "1.jpg").read_bytes())
    assert len(found_pictures("pope", pope)) == 12  # the same picture twice
    (copied / "1.jpg").write_bytes(made.png(9))
    assert set(found_pictures("pope", pope).values()) == {"pope/val2014/2.jpg"}
