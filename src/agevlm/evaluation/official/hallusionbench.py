"""HallusionBench: yes-or-no questions about figures and about the same figures changed (VD), or with none at all (VS).

The authors have GPT-4 judge 1,129 answers. VLMEvalKit reads yes and no, and asks the 951 questions that have a figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agevlm.evaluation.official.answers import vlmevalkit_yes_no
from agevlm.evaluation.official.benchmark import Benchmark, Marked, Protocol, Question, Sections
from agevlm.evaluation.official.files import Row, Source, Table
from agevlm.evaluation.official.measures import Among, Section, accuracy, by, everything, groups_right, having, mean_of
from agevlm.evaluation.official.schemas import Schema, read_tables, yes_or_no
from agevlm.evaluation.run_figures import Figure

_COMMON = frozenset({"category", "question"})
_OWN = _COMMON | {"subcategory", "visual_input", "set_id", "figure_id", "question_id", "gt_answer"}


def _question(row: Row, place: Sequence[str], answer: str, picture: object, source: Source) -> Question:
    """`place`: category, subcategory, kind of picture (0: none), set, figure, question."""
    category, subcategory, visual, of_set, figure, number = map(str, place)
    unit = f"{category}_{subcategory}_{of_set}"
    facts = {"category": category, "subcategory": f"{category}_{subcategory}", "set": unit, "visual_input": visual}
    facts |= {"figure": f"{unit}_{figure}", "pair": f"{unit}_{number}", "figure_id": figure}
    shown = None if visual == "0" else source.picture(picture, f"{category}/{subcategory}/{of_set}_{figure}.png")
    return Question("_".join(map(str, place)), row["question"].strip(), answer, shown, unit, facts)


def _own(row: Row, picture: object, source: Source) -> Question:
    names = ("category", "subcategory", "visual_input", "set_id", "figure_id", "question_id")
    if str(row["gt_answer"]) not in ("0", "1"):
        raise ValueError(f"gt_answer is {row['gt_answer']!r}, expected 0 or 1")
    return _question(row, [row[n] for n in names], "yes" if str(row["gt_answer"]) == "1" else "no", picture, source)


def _of_tsv(row: Row, table: Table, source: Source) -> Question:
    place = str(row["index"]).split("_")
    if len(place) != 6:
        raise ValueError(f"the index is {row['index']!r}, expected VD_illusion_1_0_0_0 or the like")
    return _question(row, place, yes_or_no(row["answer"]), row["image"], source)


SCHEMAS = (
    Schema("the hub's Parquet", _OWN | {"image"}, lambda row, table, source: _own(row, row["image"], source)),
    Schema(
        "the authors' HallusionBench.json, or the hub's part without pictures",
        _OWN,
        lambda row, table, source: _own(row, row.get("filename"), source),
    ),
    Schema("VLMEvalKit's TSV", _COMMON | {"index", "image", "answer", "l2-category"}, _of_tsv),
)


def _check_all(questions: Sequence[Question]) -> None:
    if all(question.picture is not None for question in questions):
        raise ValueError(
            "the protocol rule-based counts questions without a figure too, and these files have none, like "
            "VLMEvalKit's TSV: give HallusionBench.json or both parts of the hub's, or choose --protocol vlmevalkit"
        )


def _section(marks: Sequence[Marked], among: Among, no_figure_counts: bool) -> Section:
    shown = lambda m: among(m) and (no_figure_counts or not _without_figure(m))  # noqa: E731
    plain = accuracy(marks, among)
    of_all = plain["accuracy"]
    of_figures = groups_right(marks, lambda m: m.question.facts["figure"], shown)
    of_pairs = groups_right(marks, lambda m: m.question.facts["pair"], among)
    assert isinstance(of_all, Figure)
    return {
        "aAcc": of_all,
        "fAcc": of_figures,
        "qAcc": of_pairs,
        "average": mean_of([of_all, of_figures, of_pairs]),
        "unparsed_ratio": plain["unparsed_ratio"],
        "num_questions": plain["num_questions"],
    }


def _without_figure(mark: Marked) -> bool:
    return mark.question.facts["category"] == "VS" and mark.question.facts["figure_id"] == "0"


def _figures(marks: Sequence[Marked], no_figure_counts: bool) -> Sections:
    found = {"overall": _section(marks, everything, no_figure_counts)}
    for fact in ("category", "subcategory"):
        for value in sorted(by(marks, fact)):
            found[value] = _section(marks, having(fact, value), no_figure_counts)
    return found


def vlmevalkit_figures(marks: Sequence[Marked]) -> Sections:
    """Share of right answers, of figures with all answers right, of questions right for all their figures."""
    return _figures(marks, True)


def own_figures(marks: Sequence[Marked]) -> Sections:
    """The same as the authors count: no figure is no figure, and not to know the answer without one is right."""
    forgiven = [replace(m, correct=m.correct or (m.parsed is None and _without_figure(m))) for m in marks]
    return _figures(forgiven, False)


HALLUSIONBENCH = Benchmark(
    name="hallusionbench",
    title="HallusionBench",
    paper="Guan et al. 2023, arXiv 2310.14566",
    source="github.com/tianyi-lab/HallusionBench",
    licence="BSD-3-Clause",
    data="HallusionBench.json and the pictures of hallusion_bench.zip, or the hub's Parquet, or VLMEvalKit's TSV",
    hub=("lmms-lab/HallusionBench",),
    read=lambda source: read_tables("HallusionBench", source, SCHEMAS),
    protocols=(
        Protocol(
            "vlmevalkit",
            "VLMEvalKit@0c7163c, utils/yorn.py, without a judge: the 951 questions with a figure",
            lambda question: question.text,
            lambda answer, question: vlmevalkit_yes_no(answer),
            vlmevalkit_figures,
            ("overall.aAcc", "overall.fAcc", "overall.qAcc"),
            max_new_tokens=128,
            keep=lambda question: question.facts["visual_input"] != "0",
        ),
        Protocol(
            "rule-based",
            "tianyi-lab/HallusionBench@08e51de, utils.py: its counts over all 1,129 questions; in the place of its "
            "judge GPT-4 the words yes and no are read as VLMEvalKit does",
            lambda question: question.text,
            lambda answer, question: vlmevalkit_yes_no(answer),
            own_figures,
            ("overall.aAcc", "overall.fAcc", "overall.qAcc"),
            max_new_tokens=128,
            check=_check_all,
        ),
    ),
    yes_no=True,
)
