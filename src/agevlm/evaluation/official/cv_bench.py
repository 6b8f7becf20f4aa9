"""CV-Bench: counting and relations in pictures of ADE20K and COCO (2D), depth and distance in those of Omni3D (3D).

Cambrian weighs the sources: half the mean of ADE20K and COCO, half Omni3D. lmms-eval counts every question once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from agevlm.evaluation.official.answers import cambrian_text, leading_letter, vlmevalkit_letter
from agevlm.evaluation.official.benchmark import Benchmark, Marked, Protocol, Question, Reading, Sections
from agevlm.evaluation.official.files import Row, Source
from agevlm.evaluation.official.measures import Section, accuracy, by, having, mean_of, share
from agevlm.evaluation.official.schemas import Schema, letter, read_tables
from agevlm.evaluation.run_figures import Figure

LETTER = "Answer with the option's letter from the given choices directly."
_LETTERS = "ABCDEF"
_COLUMNS = frozenset({"idx", "type", "task", "choices", "answer", "prompt", "source"})


def _question(row: Row, picture: object, source: Source) -> Question:
    shown = source.picture(picture, row.get("filename"))
    options = dict(zip(_LETTERS, map(str, row["choices"]), strict=False))
    facts = {"type": row["type"], "task": row["task"], "source": row["source"]}
    reference = letter(row["answer"], "".join(options))
    return Question(f"{row['type']}/{row['idx']}", row["prompt"], reference, shown, shown.name, facts, options)


SCHEMAS = (
    Schema("the hub's Parquet", _COLUMNS | {"image"}, lambda row, table, source: _question(row, row["image"], source)),
    Schema(
        "the hub's JSON lines",
        _COLUMNS | {"filename"},
        lambda row, table, source: _question(row, row["filename"], source),
    ),
)


def _read(part: str | None, source: Source) -> Reading:
    reading = read_tables("CV-Bench", source, SCHEMAS)
    if part is None:
        return reading
    questions = [question for question in reading.questions if question.facts["type"] == part]
    if not questions:
        raise ValueError(
            f"{source.root} holds no question of CV-Bench {part}: name the directory of that part, or of all"
        )
    return replace(reading, questions=questions)


def _parts(marks: Sequence[Marked], mean_of_sources: Sequence[str]) -> dict[str, Section]:
    """A section for each type (2D, 3D), source and task; in those of `mean_of_sources` every source counts once."""
    found: dict[str, Section] = {}
    for part in sorted(by(marks, "type")):
        found[part] = accuracy(marks, having("type", part))
        if part in mean_of_sources:
            sources = by([m for m in marks if m.question.facts["type"] == part], "source")
            found[part]["accuracy"] = mean_of([_of_source(marks, source) for source in sources])
    for fact in ("source", "task"):
        found |= {value: accuracy(marks, having(fact, value)) for value in by(marks, fact)}
    return found


def _of_source(marks: Sequence[Marked], source: str) -> Figure:
    return share(marks, lambda m: m.correct, having("source", source))


def weighted_figures(marks: Sequence[Marked]) -> Sections:
    """Of 2D the mean of its sources, of both parts their mean; beside it every question once ("plain")."""
    parts = _parts(marks, ("2D", "3D"))
    overall = accuracy(marks)
    overall["accuracy"] = mean_of(
        [part for kind in sorted(by(marks, "type")) if isinstance(part := parts[kind]["accuracy"], Figure)]
    )
    return {"overall": overall, "plain": accuracy(marks), **parts}


def plain_figures(marks: Sequence[Marked]) -> Sections:
    """Every question once."""
    return {"overall": accuracy(marks), **_parts(marks, ())}


def vlmevalkit_figures(marks: Sequence[Marked]) -> Sections:
    """Two benchmarks: of 2D the mean of its sources, of 3D every question once."""
    return _parts(marks, ("2D",))


def _cambrian_letter(answer: str, question: Question) -> str | None:
    first = cambrian_text(answer)[:1].upper()
    return first if first in question.options else None


def _noted(question: Question) -> str:
    note = "Note: You only need to respond with {} without providing any additional information."
    return f"{note.format(', '.join(question.options))}\n\n{question.text}"


def _protocols(headline: str) -> tuple[Protocol, ...]:
    return (
        Protocol(
            "official",
            "cambrian-mllm/cambrian@a220b3f, eval/ade, coco and omni, and the card of the data set: the first "
            "character of the answer; mean of the sources",
            lambda question: f"{question.text}\n{LETTER}",
            _cambrian_letter,
            weighted_figures,
            (f"{headline}.accuracy",),
            max_new_tokens=512,
        ),
        Protocol(
            "lmms-eval",
            "lmms-eval 0.7.3, tasks cv_bench, cv_bench_2d, cv_bench_3d: the first letter of the answer; plain mean",
            _noted,
            lambda answer, question: leading_letter(answer, "".join(question.options)),
            plain_figures,
            (f"{headline}.accuracy",),
            max_new_tokens=1024,
            stop=("\n\n",),
        ),
        Protocol(
            "vlmevalkit",
            "VLMEvalKit, CVBench in image_mcq.py, without a judge: 2D as the mean of its sources, 3D plain",
            lambda question: question.text,
            lambda answer, question: vlmevalkit_letter(answer, question.options),
            vlmevalkit_figures,
            tuple(f"{part}.accuracy" for part in (("2D", "3D") if headline == "overall" else (headline,))),
            max_new_tokens=512,
        ),
    )


def _benchmark(name: str, part: str | None) -> Benchmark:
    return Benchmark(
        name=name,
        title="CV-Bench" if part is None else f"CV-Bench {part}",
        paper="Tong et al. 2024 (Cambrian-1), arXiv 2406.16860",
        source="huggingface.co/datasets/nyu-visionx/CV-Bench",
        licence="Apache-2.0; the pictures are those of ADE20K, COCO and Omni3D",
        data="test_2d.parquet and test_3d.parquet, or test_2d.jsonl, test_3d.jsonl and img/",
        hub=("nyu-visionx/CV-Bench",),
        read=lambda source: _read(part, source),
        protocols=_protocols(part or "overall"),
    )


CV_BENCH, CV_BENCH_2D, CV_BENCH_3D = (
    _benchmark(name, part) for name, part in (("cv-bench", None), ("cv-bench-2d", "2D"), ("cv-bench-3d", "3D"))
)
