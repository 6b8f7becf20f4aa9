"""A figure of one run, and what it becomes when some pictures are drawn twice and others not at all. Pure functions.

Two kinds are enough for all that is reported: shares (accuracy, precision, F1, attention mass) and ranks (AUROC).
`figure_of` makes them from the records of predictions.jsonl by their names in metrics.json. What they say of a trained
model, over seeds and pictures, is the business of `statistics.py`.
"""

# Shapes: I pictures, Q questions, K draws.

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agevlm.evaluation.parsing import parse_yes_no

Floats = NDArray[np.float64]
Record = Mapping[str, Any]  # a line of predictions.jsonl


@dataclass(frozen=True, eq=False)
class Figure(ABC):
    """A figure of one run and the questions it stands on; `ids` are unique, `images` name the picture of each."""

    ids: Sequence[str]
    images: Sequence[str]

    def __post_init__(self) -> None:
        if not self.ids or len(set(self.ids)) < len(self.ids) or len(self.images) != len(self.ids):
            raise ValueError(
                f"a figure needs questions, each with its own id and a picture: got {len(self.ids)} ids, "
                f"{len(set(self.ids))} of them distinct, and {len(self.images)} pictures"
            )

    @cached_property
    def num_images(self) -> int:
        """Pictures asked about."""
        return len(set(self.images))

    @property
    def num_counted(self) -> int:
        """Pictures that the figure takes anything from."""
        return self.num_images

    @cached_property
    def _image_of_Q(self) -> NDArray[np.intp]:
        """The number of each question's picture, in the order of the pictures' names."""
        return np.unique(np.asarray(self.images), return_inverse=True)[1]

    @property
    def value(self) -> float:
        """The figure itself: every picture once. NaN where it has nothing to divide by."""
        return float(self.drawn(np.ones((1, self.num_images)))[0])

    @abstractmethod
    def drawn(self, counts_KI: Floats) -> Floats:
        """The figure (K,) with picture i, in the order of names, counted so often; NaN where nothing is left of it."""


@dataclass(frozen=True, eq=False)
class Share(Figure):
    """Sum of `values` over sum of `weights`, one of each a question: a mean (weights of 1), precision or F1."""

    values: ArrayLike
    weights: ArrayLike

    @cached_property
    def _sums_2I(self) -> Floats:
        parts = [np.asarray(part, dtype=np.float64) for part in (self.values, self.weights)]
        return np.stack([np.bincount(self._image_of_Q, part, self.num_images) for part in parts])

    @property
    def num_counted(self) -> int:
        """Pictures with any weight: a precision knows nothing from those without a yes."""
        return int((self._sums_2I[1] != 0).sum())

    def drawn(self, counts_KI: Floats) -> Floats:
        """The quotient of the drawn sums."""
        above_K, below_K = self._sums_2I @ counts_KI.T
        return divide(above_K, below_K)


@dataclass(frozen=True, eq=False)
class Ranks(Figure):
    """AUROC: chance that a question with `positive` has a higher score than one without, ties as half."""

    scores: ArrayLike
    positive: ArrayLike

    @property
    def _positive_Q(self) -> NDArray[np.bool_]:
        return np.asarray(self.positive, dtype=bool)

    @cached_property
    def _won_II(self) -> Floats:
        """Pairs of a positive of one picture and a negative of another that are won, a tie as half."""
        scores_Q, positive_Q = np.asarray(self.scores, dtype=np.float64), self._positive_Q
        won_QQ = (1 + np.sign(scores_Q[positive_Q, None] - scores_Q[~positive_Q])) / 2
        is_of_IQ = np.eye(self.num_images)[:, self._image_of_Q]
        return is_of_IQ[:, positive_Q] @ won_QQ @ is_of_IQ[:, ~positive_Q].T

    def drawn(self, counts_KI: Floats) -> Floats:
        """The share of pairs won, pictures counting as often as they were drawn; memory grows with their square."""
        high_K, low_K = (
            counts_KI @ np.bincount(self._image_of_Q, part_Q, self.num_images)
            for part_Q in (self._positive_Q, ~self._positive_Q)
        )
        return divide((counts_KI @ self._won_II * counts_KI).sum(axis=1), high_K * low_K)


def divide(above: Floats, below: Floats) -> Floats:
    """above / below, NaN over 0."""
    return np.divide(above, below, out=np.full_like(above, math.nan), where=below != 0)


def figure_of(records: Sequence[Record], name: str) -> Figure:
    """The figure called `name`, as in metrics.json, of the records of one predictions.jsonl, ready for `estimate`.

    Of answers: a kind and accuracy, error (1 - accuracy) or unparsed_ratio; of yes/no questions also precision, recall,
    f1, yes_ratio, false_yes_ratio, auroc. "relation" pools its forms, "pope.mean" is the mean of the splits. Of object
    words: pointing.accuracy, attention.mass, attention.iou, null_token.auroc, .mass_present and .mass_absent.
    A name unknown here, or that these records have nothing for, is a ValueError.
    """
    if name in _WORD_FIGURES or name == "null_token.auroc":
        return _word_figure(records, name)
    kind, _, figure = name.rpartition(".")
    if kind == "pope.mean":
        asked = [record for record in records if record["kind"].startswith("pope.")]
    else:
        asked = [r for r in records if r["correct"] is not None and (r["kind"] + ".").startswith(kind + ".")]
    if not kind or not asked:
        raise ValueError(f"no answers for the figure {name!r}: there are {sorted({r['kind'] for r in records})}")
    ids, images = [r["id"] for r in asked], [r["image"] for r in asked]
    if figure == "auroc" and kind != "pope.mean":
        return Ranks(ids, images, [_p_yes(r, name) for r in asked], [reference_is_yes(r) for r in asked])
    parts_2Q = np.array([_parts(record, figure) for record in asked], dtype=np.float64).T
    kinds = np.array([r["kind"] if kind == "pope.mean" else kind for r in asked])
    for group in set(kinds.tolist()):
        if not parts_2Q[1, kinds == group].any():  # nothing to divide by counts as 0, as in scores.py
            parts_2Q[1, kinds == group] = 1.0
        if kind == "pope.mean":
            parts_2Q[:, kinds == group] /= parts_2Q[1, kinds == group].sum()
    return Share(ids, images, *parts_2Q)


def _parts(record: Record, figure: str) -> tuple[float, float]:
    """What a question adds above and below the line of a figure."""
    said, is_yes = record["parsed"] == "yes", reference_is_yes(record)
    found: dict[str, tuple[float, float]] = {
        "accuracy": (record["correct"], 1),
        "error": (not record["correct"], 1),
        "unparsed_ratio": (record["parsed"] is None, 1),
    }
    if record["p_yes"] is not None:
        found |= {
            "precision": (said and is_yes, said),
            "recall": (said and is_yes, is_yes),
            "f1": (2 * (said and is_yes), said + is_yes),
            "yes_ratio": (said, 1),
            "false_yes_ratio": (said and not is_yes, not is_yes),
        }
    if figure not in found:
        raise ValueError(f"questions of kind {record['kind']} have no figure {figure!r}: choose one of {list(found)}")
    return found[figure]


def reference_is_yes(record: Record) -> bool:
    """Whether the right answer of a yes/no question is yes."""
    return parse_yes_no(record["reference"], "first_word") == "yes"


def _p_yes(record: Record, name: str) -> float:
    if record["p_yes"] is None:
        raise ValueError(f"no figure {name!r}: question {record['id']} has no P(yes)")
    return float(record["p_yes"])


_WORD_FIGURES: Mapping[str, tuple[str, bool]] = {  # the key in a word's record, and whether its thing is there
    "pointing.accuracy": ("pointing", True),
    "attention.mass": ("mass", True),
    "attention.iou": ("iou", True),
    "null_token.mass_present": ("null_mass", True),
    "null_token.mass_absent": ("null_mass", False),
}


def _word_figure(records: Sequence[Record], name: str) -> Figure:
    """A figure of object words; questions that are equal in picture and text were asked once and count once."""
    distinct = {(record["image"], record["question"]): record for record in reversed(records)}
    key, present = _WORD_FIGURES.get(name, ("null_mass", None))
    found = [
        (f"{record['id']}#{place}", record["image"], word[key], not word["present"])
        for record in reversed(distinct.values())
        for place, word in enumerate(record["words"])
        if word[key] is not None and present in (None, word["present"])
    ]
    if not found:
        raise ValueError(f"no object words for the figure {name!r}: this model has none, or no null token")
    ids, images, values, absent = zip(*found, strict=True)
    return Ranks(ids, images, values, absent) if present is None else Share(ids, images, values, np.ones(len(ids)))
