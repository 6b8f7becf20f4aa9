"""RealWorldQA: 765 pictures, many from cars, a question each; the answer is a letter, a number or a word."""

from __future__ import annotations

from collections.abc import Sequence

from agevlm.evaluation.official.answers import behind_answer_is, lmms_eval_letter
from agevlm.evaluation.official.benchmark import Benchmark, Marked, Protocol, Question, Sections
from agevlm.evaluation.official.files import Row, Source, Table
from agevlm.evaluation.official.measures import accuracy, by, having
from agevlm.evaluation.official.schemas import Schema, read_tables

_LETTERS = "ABCD"


def _question(row: Row, table: Table, source: Source) -> Question:
    shown = source.picture(row["image"], row.get("image_path") or None)
    answer = str(row["answer"]).strip()
    kind = "letter" if answer.upper() in _LETTERS else "word"
    return Question(shown.name, row["question"].strip(), answer, shown, shown.name, {"kind": kind})


SCHEMAS = (Schema("the hub's Parquet", frozenset({"question", "answer", "image"}), _question, frozenset({"A"})),)


def figures(marks: Sequence[Marked]) -> Sections:
    """Accuracy over all, over questions with a letter for an answer, and over the others."""
    return {"all": accuracy(marks), **{kind: accuracy(marks, having("kind", kind)) for kind in by(marks, "kind")}}


def _lmms_eval(answer: str, question: Question) -> str | None:
    if question.facts["kind"] == "letter":
        return lmms_eval_letter(answer, _LETTERS)
    return answer.lower().strip().rstrip(".") or None


def _cambrian(answer: str, question: Question) -> str | None:
    """The first word behind "answer is"; unlike elsewhere in Cambrian brackets stay."""
    return next(iter(behind_answer_is(answer).rstrip(".").split()), None)


REALWORLDQA = Benchmark(
    name="realworldqa",
    title="RealWorldQA",
    paper="xAI 2024, with Grok-1.5 Vision; no paper",
    source="huggingface.co/datasets/xai-org/RealworldQA",
    licence="CC BY-ND 4.0",
    data="the Parquet of xai-org/RealworldQA or of lmms-lab/RealWorldQA",
    hub=("lmms-lab/RealWorldQA", "xai-org/RealworldQA"),
    read=lambda source: read_tables("RealWorldQA", source, SCHEMAS),
    protocols=(
        Protocol(
            "lmms-eval",
            "lmms-eval 0.7.3, task realworldqa: letters by its rule for multiple choice, other answers whole",
            lambda question: question.text,
            _lmms_eval,
            figures,
            ("all.accuracy",),
            max_new_tokens=16,
            stop=("\n\n",),
        ),
        Protocol(
            "cambrian",
            "cambrian-mllm/cambrian@0d7ca41, eval/realworldqa: the first word of the answer is the reference",
            lambda question: question.text,
            _cambrian,
            figures,
            ("all.accuracy",),
            max_new_tokens=512,
        ),
    ),
)
