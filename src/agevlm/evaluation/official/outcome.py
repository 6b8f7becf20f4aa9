"""What comes out of a run on an official benchmark: its files, its tables, and the line that others quote."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from agevlm.evaluation.official.benchmark import Marked, Question
from agevlm.files import write_beside

NUM_NAMED = 10  # missing pictures that metrics.json names; predictions.jsonl has all

Metrics = dict[str, Any]
Left = Sequence[tuple[Question, str]]  # questions that were not asked, each with the reason


def missing_record(left: Left, num_questions: int) -> Metrics:
    """How many questions were not asked, for which reasons, and the first of their pictures."""
    names = list(dict.fromkeys(q.picture.name for q, _ in left if q.picture is not None))
    return {
        "num_questions": len(left),
        "num_questions_in_all": num_questions,
        "num_pictures": len(names),
        "pictures": names[:NUM_NAMED],
        "reasons": dict(Counter(problem for _, problem in left).most_common(NUM_NAMED)),
        "first": f"{_name(left[0][0]) or left[0][0].id}: {left[0][1]}" if left else None,
    }


def _name(question: Question) -> str | None:
    return question.picture.name if question.picture is not None else None


def write_outcome(
    out: Path, metrics: Metrics, marks: Sequence[Marked], left: Left, answers: Mapping[str, Mapping[str, Any]]
) -> None:
    """Write predictions.jsonl, metrics.json and metrics.md; `answers` are records by the id of a question."""
    with write_beside(out / "predictions.jsonl") as beside, beside.open("w", encoding="utf-8") as file:
        for record in (*_predictions(marks, answers), *_left_out(left)):
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    with write_beside(out / "metrics.json") as beside:
        beside.write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    with write_beside(out / "metrics.md") as beside:
        beside.write_text(official_table(metrics), encoding="utf-8")


def _predictions(marks: Sequence[Marked], answers: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    for mark in marks:
        question = mark.question
        yield {
            "id": question.id,
            "image": _name(question),
            **question.facts,
            "question": question.text,
            "answer": mark.answer,
            "reference": question.answer,
            "parsed": mark.parsed,
            "correct": mark.correct,
            "unparsed": mark.unparsed,
            "p_yes": answers[question.id].get("p_yes"),
        }


def _left_out(left: Left) -> Iterator[dict[str, Any]]:
    for question, problem in left:
        yield {
            "id": question.id,
            "image": _name(question),
            **question.facts,
            "question": question.text,
            "problem": problem,
        }


def official_table(metrics: Metrics) -> str:
    """The figures as Markdown: one table, a row a section, and what made them."""
    facts, missing = metrics["provenance"], metrics["missing"]
    lines = [f"# {facts['benchmark']}, protocol {facts['protocol']}", "", facts["rule"] + ".", ""]
    if missing["num_questions"]:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in missing["reasons"].items())
        lines += [
            f"{missing['num_questions']} of {missing['num_questions_in_all']} questions were not asked: {reasons}. "
            "These figures are of the rest.",
            "",
        ]
    if beyond := _num_beyond(metrics):
        lines += [f"{beyond} questions are about pictures beyond `num_images`, and were not to be asked.", ""]
    if facts["damaged_files"]:
        lines += [f"Left out, for they cannot be read: {'; '.join(facts['damaged_files'])}.", ""]
    for title, columns, rows in tables_of(metrics):
        lines += [f"| {title} | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        lines += [f"| {name} | " + " | ".join(cells) + " |" for name, cells in rows] + [""]
    return "\n".join([*lines, "```json", json.dumps(facts, indent=2), "```", ""])


def verdict(metrics: Metrics) -> str:
    """The figures that others quote, in a line, and how many questions they are of."""
    facts, missing = metrics["provenance"], metrics["missing"]
    quoted = []
    for name in facts["headline"]:
        section, _, figure = name.rpartition(".")
        quoted.append(f"{name} {_cell(metrics[section], figure)}")
    asked, wanted = facts["num_questions"], missing["num_questions_in_all"]
    line = f"{facts['benchmark']}, protocol {facts['protocol']}: {'; '.join(quoted)}; {asked} of {wanted} questions"
    if missing["num_questions"]:
        line += f" ({missing['num_questions']} not asked, the first {missing['first']})"
    if beyond := _num_beyond(metrics):
        line += f"; {beyond} about pictures beyond --num-images"
    if damaged := facts["damaged_files"]:
        line += f"; {len(damaged)} damaged files left out, the first {damaged[0]}"
    return line


def _num_beyond(metrics: Metrics) -> int:
    """How many questions are about pictures beyond `num_images`."""
    missing = metrics["missing"]
    return int(missing["num_questions_in_all"] - missing["num_questions"] - metrics["provenance"]["num_questions"])


def tables_of(metrics: Metrics, intervals: bool = True) -> list[tuple[str, list[str], list[tuple[str, list[str]]]]]:
    """The sections as tables, those of the same figures together: title, columns, and rows of cells."""
    groups: dict[tuple[str, ...], list[tuple[str, list[str]]]] = {}
    for name, section in metrics.items():
        if name in ("missing", "provenance"):
            continue
        columns = tuple(column for column in section if not column.endswith("_interval"))
        groups.setdefault(columns, []).append((name, [_cell(section, column, intervals) for column in columns]))
    return [("part", list(columns), rows) for columns, rows in groups.items()]


def _cell(section: Mapping[str, Any], column: str, interval: bool = True) -> str:
    value = section[column]
    if value is None:
        return "–"
    if isinstance(value, int):
        return str(value)
    if not interval:
        return f"{value:.3f}"
    low, high = section[f"{column}_interval"]
    return f"{value:.3f} ({low:.3f} to {high:.3f})"
