"""AMBER, its discriminative part: what is there, what it is like, how things touch. Questions answered yes or no.

Precision, recall and F1 are of the answer No, for what is asked about and not there is the hallucination.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from agevlm.evaluation.official.answers import vlmevalkit_yes_no
from agevlm.evaluation.official.benchmark import Benchmark, Marked, Protocol, Question, Reading, Sections
from agevlm.evaluation.official.files import Picture, Row, Source, Table
from agevlm.evaluation.official.measures import (
    Among,
    Combined,
    Section,
    accuracy,
    by,
    detection,
    everything,
    having,
    mean_of,
)
from agevlm.evaluation.official.schemas import Schema, read_tables, yes_or_no
from agevlm.evaluation.parsing import parse_yes_no
from agevlm.evaluation.run_figures import Figure, Floats

_QUERY, _TRUTH = {"id", "image", "query"}, {"id", "type", "truth"}
_DIMENSIONS = {
    "discriminative-hallucination": "existence",
    "discriminative-attribute-state": "attribute",
    "discriminative-attribute-number": "attribute",
    "discriminative-attribute-action": "attribute",
}


def _read(source: Source) -> Reading:
    """The authors' queries joined to their annotations by id, or VLMEvalKit's TSV."""
    if any(set(table.columns) >= _TSV.columns for table in source.tables):
        return read_tables("AMBER", source, (_TSV,))
    queries = [row for table in source.tables if set(table.columns) >= _QUERY for row in table.rows]
    truths = {row["id"]: row for table in source.tables if set(table.columns) >= _TRUTH for row in table.rows}
    if not queries or not truths:
        raise ValueError(
            f"{source.root} holds no files of AMBER: found {source.described()}, expected query_discriminative.json "
            f"(id, image, query) and annotations.json (id, type, truth), or {_TSV.described()}"
        )
    questions = {}
    for row in queries:
        truth = truths.get(row["id"])
        if truth is None:
            raise ValueError(f"the query {row['id']} has no annotation: give the annotations.json of the same release")
        if truth["type"] != "generative":
            question = _question(row["id"], row["query"], truth["truth"], truth["type"], source.picture(row["image"]))
            questions[question.id] = question
    if not questions:
        raise ValueError(f"{source.root} holds the generative queries of AMBER only: give query_discriminative.json")
    return Reading(list(questions.values()))


def _question(identity: object, text: str, answer: object, kind: str, shown: Picture) -> Question:
    facts = {"dimension": _DIMENSIONS.get(kind, "relation"), "kind": kind.rpartition("-")[2]}
    return Question(str(identity), text, yes_or_no(answer), shown, shown.name, facts)


def _of_tsv(row: Row, table: Table, source: Source) -> Question:
    shown = source.picture(row["image"], row["image_path"])
    return _question(row["index"], row["question"], row["answer"], row["category"], shown)


_TSV = Schema(
    "VLMEvalKit's TSV", frozenset({"index", "image", "image_path", "question", "answer", "category"}), _of_tsv
)


def _section(marks: Sequence[Marked], among: Among, added: float) -> Section:
    found = detection(marks, among, positive="no")
    precision, recall = found["precision"], found["recall"]
    assert isinstance(precision, Figure)
    assert isinstance(recall, Figure)

    def f1(precision_K: Floats, recall_K: Floats) -> Floats:
        p, r = np.round(precision_K, 3), np.round(recall_K, 3)
        return 2 * p * r / (p + r + added)

    return {**found, "f1": Combined(precision.ids, precision.images, (precision, recall), f1)}


def official_figures(marks: Sequence[Marked]) -> Sections:
    """Of all questions, of each dimension and each kind of attribute.

    F1 is made of precision and recall rounded to a tenth of a percent, with 0.0001 added below (0.001 for existence).
    """
    found = {"all": _section(marks, everything, 1e-4)}
    for dimension in by(marks, "dimension"):
        added = 1e-3 if dimension == "existence" else 1e-4
        found[dimension] = _section(marks, having("dimension", dimension), added)
    for kind in by([m for m in marks if m.question.facts["dimension"] == "attribute"], "kind"):
        found[kind] = _section(marks, having("kind", kind), 1e-4)
    return found


def vlmevalkit_figures(marks: Sequence[Marked]) -> Sections:
    """Accuracy of each dimension, and their mean."""
    parts = {dimension: accuracy(marks, having("dimension", dimension)) for dimension in by(marks, "dimension")}
    figures = [figure for part in parts.values() if isinstance(figure := part["accuracy"], Figure)]
    return {"average": {**accuracy(marks), "accuracy": mean_of(figures)}, **parts}


AMBER = Benchmark(
    name="amber",
    title="AMBER (discriminative)",
    paper="Wang et al. 2023, arXiv 2311.07397",
    source="github.com/junyangwang0410/AMBER",
    licence="Apache-2.0",
    data="query_discriminative.json, annotations.json and AMBER_1.jpg to AMBER_1004.jpg, or VLMEvalKit's AMBER.tsv",
    hub=("yifanzhang114/AMBER_base64",),
    read=_read,
    protocols=(
        Protocol(
            "official",
            "junyangwang0410/AMBER@5e1fd52, inference.py: Yes or No; how an answer becomes one "
            "is left open there, here by its first word",
            lambda question: question.text,
            lambda answer, question: parse_yes_no(answer, "first_word"),
            official_figures,
            ("all.accuracy", "all.f1"),
        ),
        Protocol(
            "vlmevalkit",
            "VLMEvalKit@145bdaf, image_yorn.py and utils/yorn.py, without a judge: the mean of three accuracies",
            lambda question: f"{question.text}\nPlease answer yes or no.",
            lambda answer, question: vlmevalkit_yes_no(answer),
            vlmevalkit_figures,
            ("average.accuracy",),
            max_new_tokens=128,
        ),
    ),
    yes_no=True,
)
