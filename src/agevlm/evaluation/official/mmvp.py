"""MMVP: 150 pairs of pictures that CLIP takes for the same, a question about both, (a) right of one, (b) of the other.

A pair is right when both answers are. The authors have GPT-4 judge; Cambrian and lmms-eval read the letter.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from agevlm.evaluation.official.answers import a_or_b, cambrian_text
from agevlm.evaluation.official.benchmark import Benchmark, Marked, Protocol, Question, Sections
from agevlm.evaluation.official.cv_bench import LETTER
from agevlm.evaluation.official.files import Row, Source
from agevlm.evaluation.official.measures import accuracy, groups_right
from agevlm.evaluation.official.schemas import Schema, letter, read_tables

_COLUMNS = frozenset({"Question", "Options", "Correct Answer"})
_OPTION = re.compile(r"\(([ab])\)\s*(.*?)\s*(?=\([ab]\)|$)", re.IGNORECASE | re.DOTALL)


def _question(row: Row, picture: object, source: Source) -> Question:
    number = int(row["Index"] if "Index" in row else row["lndex"])  # so spelt in the authors' file
    options = {name.upper(): text for name, text in _OPTION.findall(row["Options"])}
    if list(options) != ["A", "B"]:
        raise ValueError(f"the options are {row['Options']!r}, expected (a) … (b) …")
    pair = f"pair {(number - 1) // 2 + 1}"
    answer = letter(row["Correct Answer"], "AB")
    shown = source.picture(picture, f"{number}.jpg")
    return Question(str(number), row["Question"].strip(), answer, shown, pair, {"pair": pair}, options)


SCHEMAS = (
    Schema("the hub's Parquet", _COLUMNS | {"image"}, lambda row, table, source: _question(row, row["image"], source)),
    Schema(
        "the authors' Questions.csv",
        _COLUMNS,
        lambda row, table, source: _question(
            row, f"MMVP Images/{row['Index'] if 'Index' in row else row['lndex']}.jpg", source
        ),
    ),
)


def figures(marks: Sequence[Marked]) -> Sections:
    """Pairs with both answers right, of those whose both pictures are there; and plain accuracy."""
    sizes = Counter(mark.question.unit for mark in marks)
    whole = lambda m: sizes[m.question.unit] == 2  # noqa: E731
    pairs = groups_right(marks, lambda m: m.question.unit, whole)
    return {"all": {"pair_accuracy": pairs, **accuracy(marks), "num_pairs": sum(map(whole, marks)) // 2}}


def _cambrian(answer: str, question: Question) -> str | None:
    said = cambrian_text(answer, end=".:,")
    return next((name for name, text in question.options.items() if said in (name.lower(), text.lower())), None)


def _listed(question: Question) -> str:
    return "\n".join(f"{name}. {text}" for name, text in question.options.items())


MMVP = Benchmark(
    name="mmvp",
    title="MMVP",
    paper="Tong et al. 2024, arXiv 2401.06209",
    source="github.com/tsb0601/MMVP, huggingface.co/datasets/MMVP/MMVP",
    licence="MIT",
    data="Questions.csv and MMVP Images/1.jpg to 300.jpg, or the Parquet of lmms-lab-eval/MMVP",
    hub=("lmms-lab-eval/MMVP", "MMVP/MMVP"),
    read=lambda source: read_tables("MMVP", source, SCHEMAS),
    protocols=(
        Protocol(
            "cambrian",
            "cambrian-mllm/cambrian@0d7ca41, eval/mmvp: the whole answer is the letter or the option; pairs",
            lambda question: f"{question.text} Options:\n{_listed(question)}\n{LETTER}",
            _cambrian,
            figures,
            ("all.pair_accuracy", "all.accuracy"),
            max_new_tokens=512,
        ),
        Protocol(
            "lmms-eval",
            "lmms-eval 0.7.3, task mmvp: A or B where it is first found; pairs and single questions",
            lambda question: f"{question.text}\n{_listed(question)}\n{LETTER}",
            lambda answer, question: a_or_b(answer),
            figures,
            ("all.pair_accuracy", "all.accuracy"),
            max_new_tokens=16,
            stop=("\n\n",),
        ),
    ),
)
