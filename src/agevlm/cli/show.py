"""What a command shows: tables on standard output, bars on standard error, and nothing that libraries have to say."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def print_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under their headings; numbers stand to the right, fractions with three digits."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    rows = [list(row) for row in rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for number, heading in enumerate(headings):
        numeric = all(isinstance(row[number], int | float | None) for row in rows)
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=number == 0)
    for row in rows:
        table.add_row(*(_text(value) for value in row))
    Console(highlight=False).print(table)


def _text(value: object) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)


_SCORES = {  # a key of metrics.json and its heading
    "accuracy": "accuracy",
    "precision": "precision",
    "recall": "recall",
    "f1": "F1",
    "yes_ratio": "yes",
    "unparsed_ratio": "unparsed",
    "num_questions": "n",
}


def print_metrics(directory: Path) -> None:
    """Print the figures of an evaluation in short, and where all of them are."""
    metrics = json.loads((directory / "metrics.json").read_text(encoding="utf-8"))
    groups = dict(_groups({name: part for name, part in metrics.items() if name not in ("biased", "provenance")}))
    questions = {name: group for name, group in groups.items() if "unparsed_ratio" in group}
    print_table(
        ("questions", *_SCORES.values()),
        [(name, *(group.get(key) for key in _SCORES)) for name, group in questions.items()],
    )
    others = {name: group for name, group in groups.items() if name not in questions and ".by_" not in name}
    values = [(f"{name}.{key}", value) for name, group in others.items() for key, value in group.items()]
    print_table(("measure", "value"), [(name, value) for name, value in values if isinstance(value, float)])
    provenance = metrics.get("provenance", {})
    if strange := [name for name in provenance.get("not_trained", ()) if name in questions]:
        print(f"never trained on: {', '.join(strange)}")
    for reason in provenance.get("left_out", ()):
        print(f"left out: {reason}")
    print(f"metrics: {directory / 'metrics.md'}")


_PAIR_FIGURES = {  # a key of a similarity record and its heading
    "mean_matching": "matching",
    "mean_mismatched": "mismatched",
    "auroc": "AUROC",
    "paired_accuracy": "paired",
    "overlap": "overlap",
}


def print_similarity(record: dict[str, Any]) -> None:
    """Print the figures of a similarity record, a line for each measure and layer; a star marks the headlines."""
    lines = []
    for name, measure in record["measures"].items():
        for scores in measure["layers"] or [measure]:
            layer = "" if scores["layer"] is None else str(scores["layer"])
            star = "*" if scores["layer"] == measure["layer"] else ""
            lines.append((name, f"{layer}{star}", *(scores[key] for key in _PAIR_FIGURES)))
    print_table(("measure", "layer", *_PAIR_FIGURES.values()), lines)
    print(f"pairs: {record['num_pairs']} that match and as many that do not")
    for name, reason in record.get("left_out", {}).items():
        print(f"left out: {name}: {reason}")


def _groups(metrics: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every mapping of figures in nested metrics, under its dotted name."""
    for name, part in metrics.items():
        if isinstance(part, dict):
            yield prefix + name, part
            yield from _groups(part, f"{prefix}{name}.")


def print_official(metrics: dict[str, Any], directory: Path) -> None:
    """Print the figures of an official benchmark, what was not asked, and where all of it is."""
    from agevlm.evaluation.official.outcome import tables_of, verdict

    for title, columns, rows in tables_of(metrics, intervals=False):
        print_table((title, *columns), [(name, *cells) for name, cells in rows])
    print(verdict(metrics))
    print(f"figures: {directory / 'metrics.json'}")


@contextmanager
def bars() -> Iterator[Callable[[str, int, int], None]]:
    """Give a function that shows how far each named part is: its name, what is done, what there is in all.

    With the rate and the time that is left.
    """
    from rich.console import Console
    from rich.progress import Progress, ProgressColumn, Task, TaskID
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.finished_speed or task.speed or 0:.1f} a second")

    console = Console(stderr=True)
    tasks: dict[str, TaskID] = {}
    columns = (*Progress.get_default_columns(), Rate())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:

        def show(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = progress.add_task(name, total=total)
            progress.update(tasks[name], completed=done)

        yield show


def quiet_transformers() -> None:
    """Turn off the bars and warnings of transformers in this process; errors still come."""
    import warnings

    from transformers.utils import logging

    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\b")
    logging.set_verbosity_error()
    logging.disable_progress_bar()
