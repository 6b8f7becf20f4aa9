"""How well the groundings of one dataset agree with another's of the same conversations: a teacher and the truth.

What the truth does not know (`present` is None) is not asked. Where a sample means the same masks by the same word
several times, they count once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agevlm.data.masks import union_mask
from agevlm.data.parquet import ParquetDataset, read_parquet
from agevlm.data.schema import Grounding, Sample
from agevlm.evaluation.run_figures import Share
from agevlm.evaluation.statistics import Estimate, estimate

IOU_EDGES = (0.5, 0.75, 0.9)


@dataclass(frozen=True)
class Agreement:
    """What `figures` holds, each a share in [0, 1] with its 95 % interval over samples:

    - `mean_iou`: of the phrases that both say are there, the IoU of the unions of their masks; `iou_at_least_0.5` …:
      how many of these IoUs are at least that;
    - `found`, `missed`: of those there by the truth, how many are found, and how many said to be absent;
    - `imagined`, `denied`: of those absent by the truth, how many are found, and how many said to be absent;
    - `unknown`: of all, how many are left unknown.

    A figure that is a share of nothing is left out.
    """

    num_samples: int
    num_phrases: int
    num_present: int  # by the truth
    figures: dict[str, Estimate]
    iou_by_phrase: dict[str, float]  # word → mean IoU

    def record(self) -> dict[str, Any]:
        """As JSON: `mean_iou` and the other figures as {mean, low, high, …}, beside the counts."""
        counts = {name: getattr(self, name) for name in ("num_samples", "num_phrases", "num_present")}
        figures = {name: known.record() for name, known in self.figures.items()}
        return {**counts, **figures, "iou_by_phrase": self.iou_by_phrase}


@dataclass(frozen=True)
class _Answer:
    sample: str
    word: str
    truth: bool
    found: bool | None
    iou: float  # 0 where not both say that it is there


def compare_groundings(found: str | Path, truth: str | Path) -> Agreement:
    """Compare the groundings of two datasets; samples that `found` has left out are not asked.

    A ValueError where a sample of it is not in `truth` or says other things there, and where no phrase is left.
    """
    datasets = (read_parquet(directory, allow_outside=True) for directory in (found, truth))  # no picture is opened
    answers = [answer for one, two in _pairs(*datasets) for answer in _answers(one, two)]
    if not answers:
        raise ValueError(f"{found} and {truth} have no phrase in common that {truth} knows")
    present = np.array([answer.truth for answer in answers])
    said = np.array([{True: 1, False: -1, None: 0}[answer.found] for answer in answers])
    iou = np.array([answer.iou for answer in answers])
    both = present & (said == 1)
    everything = np.ones_like(present)
    asked: dict[str, tuple[NDArray[Any], NDArray[np.bool_]]] = {
        "mean_iou": (iou, both),
        **{f"iou_at_least_{edge:g}": (iou >= edge, both) for edge in IOU_EDGES},
        "found": (said == 1, present),
        "missed": (said == -1, present),
        "imagined": (said == 1, ~present),
        "denied": (said == -1, ~present),
        "unknown": (said == 0, everything),
    }
    ids, samples = [str(number) for number in range(len(answers))], [answer.sample for answer in answers]
    figures = {
        name: estimate({0: Share(ids, samples, values * among, among)}, bounds=(0.0, 1.0))
        for name, (values, among) in asked.items()
        if among.any()
    }
    words = np.array([answer.word for answer in answers])
    by_word = {str(word): float(iou[both & (words == word)].mean()) for word in np.unique(words[both])}
    return Agreement(len(set(samples)), len(answers), int(present.sum()), figures, by_word)


def _pairs(found: ParquetDataset, truth: ParquetDataset) -> Iterator[tuple[Sample, Sample]]:
    """The samples of `found`, each with that of `truth`, which has them in the same order and maybe more."""
    others = iter(truth)
    for record in found:
        one = record.sample
        two = next((other.sample for other in others if other.sample.id == one.id), None)
        if two is None:
            raise ValueError(f"{truth.directory}: has no sample {one.id} where {found.directory} has one")
        if [c.messages for c in one.conversations] != [c.messages for c in two.conversations]:
            raise ValueError(f"sample {one.id}: says other things in {found.directory} than in {truth.directory}")
        yield one, two


def _answers(one: Sample, two: Sample) -> Iterator[_Answer]:
    seen = set()
    for first, second in zip(one.conversations, two.conversations, strict=True):
        known = {(phrase.message, phrase.start, phrase.end): phrase for phrase in second.groundings}
        for phrase in first.groundings:
            truth = known.get((phrase.message, phrase.start, phrase.end))
            if truth is None or truth.present is None:
                continue
            word = phrase.phrase.lower()
            meant = (word, phrase.image, tuple(mask["counts"] for mask in truth.masks))
            if meant not in seen:
                seen.add(meant)
                yield _Answer(one.id, word, truth.present, phrase.present, _iou(phrase, truth))


def _iou(one: Grounding, two: Grounding) -> float:
    if not (one.present and two.present):
        return 0.0
    first, second = union_mask(one.masks), union_mask(two.masks)
    return float((first & second).sum() / (first | second).sum())
