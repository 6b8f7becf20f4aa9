"""MMStar: 1,500 questions that cannot be answered without the picture, in six categories of three kinds each."""

from __future__ import annotations

from collections.abc import Sequence

from agevlm.evaluation.official.answers import lmms_eval_letter, mmstar_letter, vlmevalkit_letter
from agevlm.evaluation.official.benchmark import (
    LMMS_EVAL_NEW_TOKENS,
    Benchmark,
    Marked,
    Protocol,
    Question,
    Sections,
)
from agevlm.evaluation.official.cv_bench import LETTER
from agevlm.evaluation.official.files import Row, Source, Table
from agevlm.evaluation.official.measures import Section, accuracy, by, having, mean_of
from agevlm.evaluation.official.schemas import Schema, letter, read_tables
from agevlm.evaluation.run_figures import Figure

_LETTERS = "ABCD"


def _question(row: Row, kind: str, source: Source, options: dict[str, str]) -> Question:
    identity = str(row["index"])
    shown = source.picture(row["image"], f"picture {identity}")
    facts = {"category": row["category"], "kind": row[kind]}
    return Question(
        identity, row["question"].strip(), letter(row["answer"], _LETTERS), shown, shown.name, facts, options
    )


def _of_parquet(row: Row, table: Table, source: Source) -> Question:
    return _question(row, "l2_category", source, {})


def _of_tsv(row: Row, table: Table, source: Source) -> Question:
    options = {name: row[name] for name in _LETTERS if row.get(name)}
    return _question(row, "l2-category" if "l2-category" in row else "l2_category", source, options)


_COMMON = frozenset({"index", "question", "image", "answer", "category"})
SCHEMAS = (
    Schema("the hub's Parquet", _COMMON | {"l2_category"}, _of_parquet, frozenset({"A"})),
    Schema("VLMEvalKit's TSV", _COMMON | {"A", "B", "l2-category"}, _of_tsv),
    Schema("VLMEvalKit's TSV", _COMMON | {"A", "B", "l2_category"}, _of_tsv),
)


def _in_text(question: Question) -> str:
    if question.options:
        raise ValueError(
            "this protocol asks with the options in the text, as in the Parquet of Lin-Chen/MMStar, and the file has "
            "them in columns: choose --protocol vlmevalkit, or give the Parquet"
        )
    return question.text


def _in_columns(question: Question) -> str:
    if not question.options:
        raise ValueError(
            "this protocol asks with options of columns of their own, as in VLMEvalKit's MMStar.tsv, and the file has "
            "them in the text: choose --protocol official or lmms-eval, or give the TSV"
        )
    listed = "".join(f"{name}. {text}\n" for name, text in question.options.items())
    return f"Question: {question.text}\nOptions:\n{listed}Please select the correct answer from the options above. \n"


def plain_figures(marks: Sequence[Marked]) -> Sections:
    """Every question once: over all, and of each category and kind."""
    parts = {value: accuracy(marks, having(fact, value)) for fact in ("category", "kind") for value in by(marks, fact)}
    return {"average": accuracy(marks), **parts}


def lmms_eval_figures(marks: Sequence[Marked]) -> Sections:
    """The mean of the kinds, of all and of each category; and of each kind alone."""
    kinds = {kind: accuracy(marks, having("kind", kind)) for kind in by(marks, "kind")}
    found: dict[str, Section] = {"average": _mean_of_kinds(marks, kinds, accuracy(marks), by(marks, "kind"))}
    for category in by(marks, "category"):
        own = by([mark for mark in marks if mark.question.facts["category"] == category], "kind")
        found[category] = _mean_of_kinds(marks, kinds, accuracy(marks, having("category", category)), own)
    return {**found, **kinds}


def _mean_of_kinds(marks: Sequence[Marked], kinds: dict[str, Section], section: Section, own: Sequence[str]) -> Section:
    parts = [part for kind in own if isinstance(part := kinds[kind]["accuracy"], Figure)]
    return {**section, "accuracy": mean_of(parts)}


MMSTAR = Benchmark(
    name="mmstar",
    title="MMStar",
    paper="Chen et al. 2024, arXiv 2403.20330",
    source="github.com/MMStar-Benchmark/MMStar, huggingface.co/datasets/Lin-Chen/MMStar",
    licence="not stated in the repository",
    data="mmstar.parquet of Lin-Chen/MMStar, or VLMEvalKit's MMStar.tsv",
    hub=("Lin-Chen/MMStar",),
    read=lambda source: read_tables("MMStar", source, SCHEMAS),
    protocols=(
        Protocol(
            "official",
            "MMStar-Benchmark/MMStar@79e6d1c, evaluate/mmstar.py: the first character; prompt of its LLaVA-NeXT",
            lambda question: f"{_in_text(question)}\n{LETTER}",
            lambda answer, question: mmstar_letter(answer),
            plain_figures,
            ("average.accuracy",),
            max_new_tokens=32,
        ),
        Protocol(
            "lmms-eval",
            "lmms-eval 0.7.3, task mmstar: its rule for multiple choice; the mean of 18 kinds",
            lambda question: f"{_in_text(question)}\n{LETTER.rstrip('.')}",
            lambda answer, question: lmms_eval_letter(answer, _LETTERS),
            lmms_eval_figures,
            ("average.accuracy",),
            max_new_tokens=LMMS_EVAL_NEW_TOKENS,
            stop=("\n\n",),
        ),
        Protocol(
            "vlmevalkit",
            "VLMEvalKit, image_mcq.py, without a judge: the only letter or the only option named",
            _in_columns,
            lambda answer, question: vlmevalkit_letter(answer, question.options),
            plain_figures,
            ("average.accuracy",),
            max_new_tokens=512,
        ),
    ),
)
