"""POPE and RePOPE: is there a … in the picture? Of things that are there, and of random, popular and adversarial ones.

The official files are JSON lines, one for each split, and the split stands in the name of the file. The hub's Parquet
has it as a column. RePOPE has the same questions with its labels corrected, fewer of them.
"""

from __future__ import annotations

from collections.abc import Sequence

from agevlm.evaluation.official.answers import exact_yes_no, guessed_yes, pope_yes_no, vlmevalkit_yes_no
from agevlm.evaluation.official.benchmark import Benchmark, Marked, Protocol, Question, Reading, Sections
from agevlm.evaluation.official.files import Row, Source, Table
from agevlm.evaluation.official.measures import (
    Combined,
    Section,
    by,
    detection,
    everything,
    having,
    mean_section,
    or_zero,
    quotient,
    share,
)
from agevlm.evaluation.official.schemas import Schema, read_tables, yes_or_no
from agevlm.evaluation.run_figures import Floats, divide

SPLITS = ("random", "popular", "adversarial")


def _split(text: str) -> str:
    found = [split for split in SPLITS if split in text.lower()]
    if len(found) != 1:
        raise ValueError(f"the split is to be read from {text!r}: expected one of {', '.join(SPLITS)} in it")
    return found[0]


def _question(
    split: str, row: Row, text: str, answer: str, picture_name: str, picture: object, source: Source
) -> Question:
    return Question(
        f"{split}/{row['question_id']}",
        row[text],
        yes_or_no(row[answer]),
        source.picture(picture, picture_name),
        picture_name,
        {"split": split},
    )


def _of_json(row: Row, table: Table, source: Source) -> Question:
    return _question(_split(table.path.stem), row, "text", "label", row["image"], row["image"], source)


def _of_parquet(row: Row, table: Table, source: Source) -> Question:
    return _question(_split(row["category"]), row, "question", "answer", row["image_source"], row["image"], source)


SCHEMAS = (
    Schema("the official JSON lines", frozenset({"question_id", "image", "text", "label"}), _of_json),
    Schema(
        "the hub's Parquet",
        frozenset({"question_id", "question", "answer", "image_source", "image", "category"}),
        _of_parquet,
    ),
)


def _read(source: Source) -> Reading:
    return read_tables("POPE", source, SCHEMAS)


def _splits(marks: Sequence[Marked]) -> dict[str, Section]:
    return {split: detection(marks, having("split", split)) for split in SPLITS if split in by(marks, "split")}


def official_figures(marks: Sequence[Marked]) -> Sections:
    """Of each split accuracy, precision, recall, F1 and the share of yes, and their mean over the splits."""
    found = _splits(marks)
    return {**found, "mean": mean_section(list(found.values()))}


def lmms_eval_figures(marks: Sequence[Marked]) -> Sections:
    """Over all rows and of each split. An answer that is neither is wrong, but no missed yes; 0 where others have none.

    `yes_ratio` is that of the references, as lmms-eval has it.
    """
    names = by(marks, "split")
    return {
        "all": _lmms_eval_section(marks, names),
        **{split: _lmms_eval_section(marks, [split]) for split in SPLITS if split in names},
    }


def _lmms_eval_section(marks: Sequence[Marked], splits: Sequence[str]) -> Section:
    among = lambda m: m.question.facts["split"] in splits  # noqa: E731
    there = lambda m: among(m) and m.question.answer == "yes"  # noqa: E731
    both = lambda m: there(m) and m.parsed == "yes"  # noqa: E731
    precision = or_zero(quotient(marks, both, lambda m: among(m) and m.parsed == "yes"))
    recall = or_zero(quotient(marks, both, lambda m: there(m) and not m.unparsed))
    plain = detection(marks, among)
    return {
        "accuracy": plain["accuracy"],
        "precision": precision,
        "recall": recall,
        "f1": or_zero(Combined(precision.ids, precision.images, (precision, recall), _harmonic)),
        "yes_ratio": share(marks, there, among),
        "unparsed_ratio": plain["unparsed_ratio"],
        "num_questions": plain["num_questions"],
    }


def _harmonic(precision_K: Floats, recall_K: Floats) -> Floats:
    return divide(2 * precision_K * recall_K, precision_K + recall_K)


def vlmevalkit_figures(marks: Sequence[Marked]) -> Sections:
    """Each distinct question is asked once. "overall" counts it once for each split that has it, "distinct" once."""
    seen: dict[tuple[str, str], str] = {}
    for mark in marks:
        seen.setdefault((mark.question.unit, mark.question.text), mark.question.id)
    firsts = set(seen.values())
    distinct = detection(marks, lambda m: m.question.id in firsts)
    return {"overall": detection(marks, everything), "distinct": distinct, **_splits(marks)}


_OFFICIAL = Protocol(
    "official",
    "AoiDragon/POPE@f3ec604, evaluate.py: no where the first sentence has No, no or not, else yes",
    lambda question: question.text,
    lambda answer, question: pope_yes_no(answer),
    official_figures,
    ("mean.accuracy", "mean.f1"),
    guessed=guessed_yes,
)

_LMMS_EVAL = Protocol(
    "lmms-eval",
    "lmms-eval 0.7.3, tasks pope and pope_full: the whole answer is yes or no",
    lambda question: f"{question.text.strip()}\nAnswer the question using a single word or phrase.",
    lambda answer, question: exact_yes_no(answer),
    lmms_eval_figures,
    ("all.accuracy", "all.f1"),
    max_new_tokens=128,
    stop=("\n\n",),
)

_VLMEVALKIT = Protocol(
    "vlmevalkit",
    "VLMEvalKit@0c7163c, utils/yorn.py, without a judge: one of the words yes and no, and not the other",
    lambda question: question.text,
    lambda answer, question: vlmevalkit_yes_no(answer),
    vlmevalkit_figures,
    ("overall.f1", "overall.accuracy"),
    max_new_tokens=128,
)

POPE = Benchmark(
    name="pope",
    title="POPE",
    paper="Li et al. 2023, arXiv 2305.10355",
    source="github.com/AoiDragon/POPE",
    licence="MIT; the pictures are COCO's, each under its owner's terms",
    data="coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json and the pictures of val2014",
    hub=("lmms-lab/POPE", "lmms-lab-encoder/POPE"),
    read=_read,
    protocols=(_OFFICIAL, _LMMS_EVAL, _VLMEVALKIT),
    yes_no=True,
)

REPOPE = Benchmark(
    name="repope",
    title="RePOPE",
    paper="Neuhaus and Hein 2025, arXiv 2504.15707",
    source="github.com/YanNeu/RePOPE",
    licence="not stated in the repository; the pictures are COCO's",
    data="coco_repope_random.json, coco_repope_popular.json, coco_repope_adversarial.json and the pictures of val2014",
    hub=("MM-Hallu/RePOPE",),
    read=lambda source: read_tables("RePOPE", source, SCHEMAS),
    protocols=(_OFFICIAL, _LMMS_EVAL, _VLMEVALKIT),
    yes_no=True,
)
