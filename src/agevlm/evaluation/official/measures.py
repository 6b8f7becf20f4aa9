"""Figures of marked answers: shares of questions, shares of groups that are all right, and what is made of several.

Every figure is over all marks of a run, some with weight 0, so that figures of parts can be drawn again together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from agevlm.evaluation.official.benchmark import Marked
from agevlm.evaluation.run_figures import Figure, Floats, Share
from agevlm.evaluation.statistics import estimate

Among = Callable[[Marked], bool]
Section = dict[str, "Figure | int"]


@dataclass(frozen=True, eq=False)
class Combined(Figure):
    """A function of other figures of the same marks, such as a mean of them."""

    parts: Sequence[Figure]
    function: Callable[..., Floats]

    def drawn(self, counts_KI: Floats) -> Floats:
        """The function of the drawn parts."""
        return self.function(*(part.drawn(counts_KI) for part in self.parts))


def everything(mark: Marked) -> bool:
    """All marks."""
    return True


def share(
    marks: Sequence[Marked], of: Callable[[Marked], float], among: Callable[[Marked], float] = everything
) -> Share:
    """Sum of `of` over sum of `among`, both over the marks where `among` is not 0."""
    weights = [float(among(mark)) for mark in marks]
    values = [float(of(mark)) * weight for mark, weight in zip(marks, weights, strict=True)]
    return Share([m.question.id for m in marks], [m.question.unit for m in marks], values, weights)


def quotient(marks: Sequence[Marked], above: Callable[[Marked], float], below: Callable[[Marked], float]) -> Share:
    """Sum of `above` over sum of `below`."""
    ids, units = [m.question.id for m in marks], [m.question.unit for m in marks]
    return Share(ids, units, [float(above(m)) for m in marks], [float(below(m)) for m in marks])


def groups_right(marks: Sequence[Marked], key: Callable[[Marked], Hashable], among: Among = everything) -> Share:
    """The share of groups (marks of one `key`, all of one unit) whose every member is right."""
    groups: dict[Hashable, list[Marked]] = {}
    for mark in marks:
        if among(mark):
            groups.setdefault(key(mark), []).append(mark)
    firsts = {members[0].question.id: all(m.correct for m in members) for members in groups.values()}
    return quotient(marks, lambda m: firsts.get(m.question.id, False), lambda m: m.question.id in firsts)


def mean_of(figures: Sequence[Figure], weights: Sequence[float] | None = None) -> Combined:
    """The weighted mean of figures of the same marks."""
    shares = np.array(weights if weights is not None else [1.0] * len(figures))
    first = figures[0]
    return Combined(first.ids, first.images, figures, lambda *parts_K: np.average(parts_K, axis=0, weights=shares))


def or_zero(figure: Figure) -> Combined:
    """The figure, and 0 where it has nothing to divide by."""
    return Combined(figure.ids, figure.images, (figure,), lambda part: np.nan_to_num(part, nan=0.0))


def accuracy(marks: Sequence[Marked], among: Among = everything) -> Section:
    """Accuracy, how many answers could not be read, and how many questions."""
    return {
        "accuracy": share(marks, lambda m: m.correct, among),
        "unparsed_ratio": share(marks, lambda m: m.unparsed, among),
        "num_questions": sum(map(among, marks)),
    }


def detection(marks: Sequence[Marked], among: Among = everything, positive: str = "yes") -> Section:
    """Accuracy, and precision, recall and F1 of the answer `positive`; an answer not read is no answer `positive`."""
    said = lambda m: among(m) and m.parsed == positive  # noqa: E731
    true = lambda m: among(m) and m.question.answer == positive  # noqa: E731
    both = lambda m: said(m) and true(m)  # noqa: E731
    counts = accuracy(marks, among)
    return {
        "accuracy": counts["accuracy"],
        "precision": quotient(marks, both, said),
        "recall": quotient(marks, both, true),
        "f1": quotient(marks, lambda m: 2 * both(m), lambda m: said(m) + true(m)),
        "yes_ratio": share(marks, lambda m: m.parsed == "yes", among),
        "unparsed_ratio": counts["unparsed_ratio"],
        "num_questions": counts["num_questions"],
    }


def mean_section(sections: Sequence[Mapping[str, Figure | int]]) -> Section:
    """Each figure averaged over sections, each section once; counts are added."""
    found: Section = {}
    for name in sections[0]:
        parts: list[Any] = [section[name] for section in sections]
        found[name] = sum(parts) if isinstance(parts[0], int) else mean_of(parts)
    return found


def by(marks: Sequence[Marked], fact: str) -> list[str]:
    """The values of a fact, in the order in which questions have them."""
    return list(dict.fromkeys(mark.question.facts[fact] for mark in marks if fact in mark.question.facts))


def having(fact: str, value: str) -> Among:
    """The marks whose question has `value` for `fact`."""
    return lambda mark: mark.question.facts.get(fact) == value


def records(sections: Mapping[str, Mapping[str, Figure | int]]) -> dict[str, dict[str, Any]]:
    """Values and 95 % intervals as metrics.json has them; what cannot be divided is null.

    The interval is the percentile bootstrap over units (pictures, pairs), or the exact one of Clopper and Pearson where
    no unit or every unit is right.
    """
    return {title: _section_record(section) for title, section in sections.items()}


def _section_record(section: Mapping[str, Figure | int]) -> dict[str, Any]:
    record: dict[str, Any] = {}
    for name, figure in section.items():
        if isinstance(figure, int):
            record[name] = figure
            continue
        value = figure.value
        record[name] = None if math.isnan(value) else value
        if not math.isnan(value):
            found = estimate({0: figure}, bounds=(0.0, 1.0))
            record[f"{name}_interval"] = [found.low, found.high]
    return record
