"""The outcome of an evaluation and its files: predictions.jsonl, metrics.json and metrics.md."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from agevlm.evaluation.localisation import WordAttention
from agevlm.evaluation.scores import Metrics, Prediction
from agevlm.files import write_beside

_PACKAGES = ("agevlm", "torch", "transformers", "numpy", "pillow")
_COLUMNS = ("accuracy", "precision", "recall", "f1", "yes_ratio", "unparsed_ratio", "auroc", "num_questions")


@dataclass(frozen=True)
class Evaluation:
    """Predictions in the order of the questions, the attention of their words (by question id), and all figures.

    `note` says why no word was localised, None where words were or there were none.
    """

    predictions: list[Prediction]
    words: Mapping[str, Sequence[WordAttention]]
    metrics: Metrics = field(default_factory=dict)
    note: str | None = None

    def records(self) -> Iterator[dict[str, Any]]:
        """Each prediction as it stands in predictions.jsonl."""
        for prediction in self.predictions:
            yield _record(prediction, self.words.get(prediction.question.id, ()))


def _record(prediction: Prediction, words: Sequence[WordAttention]) -> dict[str, Any]:
    question = prediction.question
    return {
        "id": question.id,
        "image": question.image,
        "kind": question.kind,
        "question": question.text,
        "answer": prediction.answer,
        "reference": question.reference,
        "parsed": prediction.parsed,
        "correct": prediction.correct,
        "p_yes": prediction.p_yes,
        "words": [_word_record(word) for word in words],
    }


def _word_record(word: WordAttention) -> dict[str, Any]:
    where = word.where
    return {
        "phrase": word.phrase,
        "present": where is not None,
        "pointing": where.pointing if where else None,
        "mass": where.mass if where else None,
        "iou": where.iou if where else None,
        "null_mass": word.null_mass,
        "entropy": word.entropy,
    }


def write_evaluation(out: str | Path, records: Iterator[dict[str, Any]], metrics: Metrics) -> None:
    """Write predictions.jsonl (one question a line), metrics.json (nested) and metrics.md (tables) into `out`."""
    out = Path(out)
    with write_beside(out / "predictions.jsonl") as beside, beside.open("w", encoding="utf-8") as file:
        for record in records:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    with write_beside(out / "metrics.json") as beside:
        beside.write_text(json.dumps(metrics, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    with write_beside(out / "metrics.md") as beside:
        beside.write_text(metrics_table(metrics), encoding="utf-8")


def provenance(**facts: Any) -> dict[str, Any]:
    """What made a figure: the command line, the versions of Python and of the packages, and the `facts` given."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # a checkout on the path that was never installed
            versions[package] = "not installed"
    return {"command": [Path(sys.argv[0]).name, *sys.argv[1:]], "versions": versions, **facts}


def metrics_table(metrics: Metrics) -> str:
    """The figures as Markdown: a table of kinds, one of localisation, perplexity, and what made them."""
    lines = ["# Evaluation", ""]
    name = section_namer(metrics)
    for title, section in _worlds(metrics):
        lines += [f"## {title}", "", *_answers_table(section, name), "", *_attention_table(section)]
    perplexity = metrics.get("text_perplexity")
    if perplexity:
        lines += ["## Text perplexity", "", "| when | perplexity |", "|---|---|"]
        lines += [f"| {when} | {value:.3f} |" for when, value in perplexity.items() if isinstance(value, float)] + [""]
    if "provenance" in metrics:
        lines += ["## Provenance", "", "```json", json.dumps(metrics["provenance"], indent=2), "```", ""]
    return "\n".join(lines)


def _worlds(metrics: Metrics) -> Iterator[tuple[str, Metrics]]:
    yield "Benchmark", metrics
    if "biased" in metrics:
        yield "The same, with the training's co-occurrence", metrics["biased"]


def section_namer(metrics: Mapping[str, Any]) -> Callable[[str], str]:
    """What to call a section of metrics: its path, and whether the model was never trained on what is asked there."""
    strange = set(metrics.get("provenance", {}).get("not_trained", ()))
    return lambda path: f"{path} (not trained)" if path in strange else path


def _answers_table(metrics: Metrics, name_of: Callable[[str], str]) -> list[str]:
    lines = ["| kind | " + " | ".join(_COLUMNS) + " |", "|---" * (len(_COLUMNS) + 1) + "|"]
    for name, scores in _leaves(metrics):
        lines.append(f"| {name_of(name)} | " + " | ".join(_cell(scores, column) for column in _COLUMNS) + " |")
    return lines


def _leaves(metrics: Metrics, prefix: str = "") -> Iterator[tuple[str, Metrics]]:
    """Every section that scores answers, with its path."""
    for name, value in metrics.items():
        if isinstance(value, dict) and name not in ("biased", "pointing", "by_number", "provenance"):
            if "accuracy" in value:
                yield prefix + name, value
            yield from _leaves(value, f"{prefix}{name}.")


def _cell(scores: Metrics, column: str) -> str:
    value = scores.get(column)
    if value is None:
        return ""
    if column == "accuracy" and "accuracy_interval" in scores:
        low, high = scores["accuracy_interval"]
        return f"{value:.3f} ({low:.3f} to {high:.3f})"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def _attention_table(metrics: Metrics) -> list[str]:
    sections = [name for name in ("pointing", "attention", "null_token") if name in metrics]
    if not sections:
        return []
    lines = ["| localisation of object words | |", "|---|---|"]
    lines += [
        f"| {section}.{name} | {_cell(metrics[section], name)} |"
        for section in sections
        for name in metrics[section]
        if not name.endswith("interval")
    ]
    return [*lines, ""]
