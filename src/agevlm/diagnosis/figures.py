"""What the parts of a diagnosis found, as figures with intervals over pictures, and as a verdict. Pure functions."""

# Shapes: K draws, I pictures, Q questions, B bins.

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from agevlm.analysis.similarity import Similarity
from agevlm.diagnosis.asking import Answers, Condition, Record
from agevlm.diagnosis.captions import CaptionReading
from agevlm.diagnosis.heads import HeadReading
from agevlm.evaluation.detection import NUM_BINS
from agevlm.evaluation.run_figures import Figure, Floats, Ranks, Share, divide, figure_of, reference_is_yes
from agevlm.evaluation.scores import POPE_SPLITS
from agevlm.evaluation.statistics import Estimate, difference, estimate

DETECTORS = {
    "null_mass": "null token",
    "entropy": "attention entropy",
    "logit_lens": "logit lens",
    "p_no": "probability of no",
}
"""Numbers of a word that may tell that it is made up, higher for what is not there."""

MAX_UNPARSED = 0.2
"""Where a larger share of answers says neither yes nor no, accuracy does not say where they come from."""

IN_PART, CLEARLY = 0.1, 0.25
"""From these gaps to what is right without the picture on, answers come from it in part, and clearly."""

_GUESS = Estimate(0.5, 0.5, 0.5, (0.5,), (0,))
_ANSWER_FIGURES = ("accuracy", "false_yes_ratio", "yes_ratio", "unparsed_ratio", "auroc")


@dataclass(frozen=True)
class Examination:
    """All that was found of one model; of a part that could not be made, the reason in a sentence.

    `unasked` says which pictures and questions were left out, and why; None where all were asked.
    """

    name: str
    answers: Answers
    similarity: Similarity | str
    heads: HeadReading | str
    lens: Mapping[tuple[str, str], float] | str
    captions: CaptionReading | str
    unasked: str | None = None

    @property
    def left_out(self) -> dict[str, str]:
        """Part → why it is missing."""
        parts = {
            "matching pictures": self.similarity,
            "where it looks": self.heads,
            "logit lens": self.lens,
            "words of its own captions": self.captions,
        }
        missing = {name: part for name, part in parts.items() if isinstance(part, str)}
        if isinstance(self.similarity, Similarity):
            missing |= {name.replace("_", " "): reason for name, reason in self.similarity.left_out.items()}
        if self.answers.note:
            missing["attention of words"] = self.answers.note
        if self.unasked:
            missing["some pictures and questions"] = self.unasked
        return missing


@dataclass(frozen=True, eq=False)
class CalibrationError(Figure):
    """Expected calibration error: how far P(yes) is from the share of yes, mean over questions, in bins of P(yes)."""

    probabilities: ArrayLike
    positive: ArrayLike

    @cached_property
    def _sums_3IB(self) -> Floats:
        p_Q, y_Q = (np.asarray(part, dtype=np.float64) for part in (self.probabilities, self.positive))
        place_Q = self._image_of_Q * NUM_BINS + np.clip((p_Q * NUM_BINS).astype(int), 0, NUM_BINS - 1)
        sums = [np.bincount(place_Q, part, self.num_images * NUM_BINS) for part in (np.ones_like(p_Q), p_Q, y_Q)]
        return np.stack(sums).astype(np.float64).reshape(3, self.num_images, NUM_BINS)

    def drawn(self, counts_KI: Floats) -> Floats:
        """The error with pictures counted so often."""
        number_KB, p_KB, y_KB = (counts_KI @ part for part in self._sums_3IB)
        return divide(np.abs(p_KB - y_KB).sum(1), number_KB.sum(1))


def splits_of(records: list[Record]) -> list[str]:
    """The POPE splits that were asked, easiest first."""
    asked = {record["kind"].partition(".")[2] for record in records}
    return [split for split in POPE_SPLITS if split in asked] or sorted(asked)


def distinct(records: list[Record]) -> list[Record]:
    """Each question about each picture once."""
    return list({(record["image"], record["question"]): record for record in reversed(records)}.values())[::-1]


def figures_of(exam: Examination) -> dict[str, Figure]:
    """All figures of a model by their dotted names."""
    found: dict[str, Figure] = {}
    for condition, records in exam.answers.records.items():
        found |= dict(_answer_figures(condition, records))
    once = distinct(exam.answers.records["picture"])
    found["calibration.error"] = CalibrationError(*_asked(once), *_p_and_truth(once))
    if isinstance(exam.similarity, Similarity):
        found |= dict(_similarity_figures(exam.similarity))
    if isinstance(exam.heads, HeadReading):
        found |= dict(_head_figures(exam.heads))
    if isinstance(exam.captions, CaptionReading):
        found |= dict(_caption_figures(exam.captions))
    for name in DETECTORS:
        scored = [(record, score) for record in once if (score := _score(exam, record, name)) is not None]
        absent = [not reference_is_yes(record) for record, _ in scored]
        if len(set(absent)) == 2:
            asked = _asked([record for record, _ in scored])
            found[f"made_up.{name}.auroc"] = Ranks(*asked, [score for _, score in scored], absent)
    return found


def _answer_figures(condition: Condition, records: list[Record]) -> Iterator[tuple[str, Figure]]:
    for split in splits_of(records):
        asked = [record for record in records if record["kind"] == f"pope.{split}"]
        for name in _ANSWER_FIGURES:
            yield f"answers.{condition}.{split}.{name}", figure_of(asked, f"pope.{split}.{name}")
        for name, there in (("p_yes_present", True), ("p_yes_absent", False)):
            some = [record for record in asked if reference_is_yes(record) is there]
            if some:
                share = Share(*_asked(some), _p_and_truth(some)[0], np.ones(len(some)))
                yield f"answers.{condition}.{split}.{name}", share


def _asked(records: list[Record]) -> tuple[list[str], list[str]]:
    return [record["id"] for record in records], [record["image"] for record in records]


def _p_and_truth(records: list[Record]) -> tuple[list[float], list[bool]]:
    return [float(record["p_yes"]) for record in records], [reference_is_yes(record) for record in records]


def _similarity_figures(found: Similarity) -> Iterator[tuple[str, Figure]]:
    texts = [sample.id for sample in found.pairs.samples]
    ids = [f"{text}/{kind}" for kind in ("matching", "mismatched") for text in texts]
    for measure in found.scores:
        scores = found.headline(measure)
        positive = np.repeat([True, False], len(texts))
        values = np.concatenate([scores.matching, scores.mismatched])
        yield f"similarity.{measure}.auroc", Ranks(ids, texts * 2, values, positive)


def _head_figures(heads: HeadReading) -> Iterator[tuple[str, Figure]]:
    """Of the pictures that heads were not ranked on."""
    told = ~heads.is_ranking
    ids, images = (
        [value for value, is_told in zip(of, told, strict=True) if is_told] for of in (heads.ids, heads.images)
    )
    layer, head = heads.ranked()[0]
    ones = np.ones(len(ids))
    for name in heads.mean:
        yield f"looking.mean.{name}", Share(ids, images, heads.mean[name][told], ones)
        yield f"looking.best_head.{name}", Share(ids, images, heads.heads[name][told, layer, head], ones)
    yield "looking.chance.mass", Share(ids, images, heads.area[told], ones)
    yield "looking.chance.pointing", Share(ids, images, heads.touched[told], ones)


def _caption_figures(found: CaptionReading) -> Iterator[tuple[str, Figure]]:
    """Of the words of its own captions: how many are made up, and what tells."""
    ids, images = ([f"{w.image}/{w.phrase}" for w in found.words], [w.image for w in found.words])
    absent = [not word.present for word in found.words]
    yield "captions.made_up_ratio", Share(ids, images, np.array(absent, dtype=float), np.ones(len(absent)))
    for name in DETECTORS:
        scored = [(place, word.scores[name]) for place, word in enumerate(found.words) if name in word.scores]
        made_up = [absent[place] for place, _ in scored]
        if len(set(made_up)) == 2:
            of_ids, of_images = ([known[place] for place, _ in scored] for known in (ids, images))
            yield f"captions.{name}.auroc", Ranks(of_ids, of_images, [score for _, score in scored], made_up)


def _score(exam: Examination, record: Record, name: str) -> float | None:
    """A detector's number of a question; None where its word was not read."""
    if name == "p_no":
        return 1 - float(record["p_yes"])
    word = record["words"][0] if record["words"] else None
    if name != "logit_lens":
        return None if word is None else word[name]
    if isinstance(exam.lens, str) or word is None:
        return None
    confidence = exam.lens.get((record["image"], word["phrase"]))
    return None if confidence is None else 1 - confidence


def estimates_of(figures: Mapping[str, Figure]) -> dict[str, Estimate]:
    """Every figure with its 95 % interval over pictures; those that nothing can be said of are left out."""
    return {n: estimate({0: f}, bounds=(0.0, 1.0)) for n, f in figures.items() if np.isfinite(f.value)}


def differences_of(one: Mapping[str, Figure], two: Mapping[str, Figure]) -> dict[str, Estimate]:
    """First minus second, paired over pictures, of the figures that both have of the same questions."""
    found = {}
    for name in one.keys() & two.keys():
        alike = sorted(one[name].ids) == sorted(two[name].ids)
        if alike and np.isfinite(one[name].value) and np.isfinite(two[name].value):
            found[name] = difference({0: one[name]}, {0: two[name]})
    return {name: found[name] for name in one if name in found}


def verdict(exam: Examination, found: Mapping[str, Estimate]) -> list[str]:
    """Three sentences: whether it answers from the picture, whether it looks, whether what is made up shows."""
    split = splits_of(exam.answers.records["picture"])[-1]
    return [_on_the_prior(split, found), _on_looking(exam, found), _on_made_up(found)]


def _on_the_prior(split: str, found: Mapping[str, Estimate]) -> str:
    """Whether accuracy with the picture is above the best of what is right without it: another one, none, a guess."""
    known = [found[f"answers.{condition}.{split}.accuracy"] for condition in ("picture", "other")]
    unparsed = [found[f"answers.{condition}.{split}.unparsed_ratio"].mean for condition in ("picture", "other")]
    if (share := sum(unparsed) / 2) > MAX_UNPARSED:
        return f"{share:.0%} of its answers say neither yes nor no, {_on_p_yes(split, found)}."
    blank = found.get(f"answers.blank.{split}.accuracy")
    how = _by_gap(
        known[0],
        [known[1], *([blank] if blank else [])],
        "It answers from the picture",
        "It answers in part from the picture",
        "It answers from the question alone",
        "It is not clear whether it answers from the picture",
    )
    grey = f", {blank.mean:.0%} with a blank one" if blank else ""
    with_it = f"{known[0].mean:.0%} of the {split} questions are right with it"
    return f"{how}: {with_it}, {known[1].mean:.0%} with another picture in its place{grey}."


def _on_p_yes(split: str, found: Mapping[str, Estimate]) -> str:
    """Whether P(yes) tells from the picture what is there, of a model whose answers do not say."""
    names = [f"answers.{condition}.{split}.auroc" for condition in ("picture", "other")]
    if not all(name in found for name in names):
        return "and whether its P(yes) comes from the picture is not measured"
    seen, other = (found[name] for name in names)
    blank = found.get(f"answers.blank.{split}.auroc")
    how = _by_gap(
        seen,
        [other, *([blank] if blank else [])],
        "its P(yes) tells from the picture what is there",
        "its P(yes) tells in part from the picture what is there",
        "its P(yes) does not tell from the picture what is there",
        "it is not clear whether its P(yes) tells from the picture what is there",
    )
    return f"and {how}: AUROC {seen.mean:.2f} with it, {other.mean:.2f} with another picture in its place"


def _by_gap(seen: Estimate, without: list[Estimate], clear: str, in_part: str, none: str, unclear: str) -> str:
    """What the gap between the true picture and the best without it says: of `without`, and one half, as by guessing.

    The interval of the gap is Newcombe's, of the two intervals as if they were of different pictures: rather too wide.
    """
    best = max([_GUESS, *without], key=lambda one: one.mean)
    gap = seen.mean - best.mean
    low = gap - math.hypot(seen.mean - seen.low, best.high - best.mean)
    high = gap + math.hypot(seen.high - seen.mean, best.mean - best.low)
    if low <= 0:
        return none if high < IN_PART else unclear
    return clear if gap >= CLEARLY else in_part if gap >= IN_PART else none


def _on_looking(exam: Examination, found: Mapping[str, Estimate]) -> str:
    if not isinstance(exam.heads, HeadReading) or "looking.mean.mass" not in found:
        return "Where it looks is not measured."
    names = ("looking.best_head.mass", "looking.mean.mass", "looking.chance.mass")
    best, mean, chance = (found[name].mean for name in names)
    place, head = exam.heads.ranked()[0]
    how = "looks at what it is asked about" if _above(best, chance, 5) else "hardly looks at what it is asked about"
    how = how if _above(best, chance, 2) else "does not look at what it is asked about"
    return (
        f"It {how}: {best:.0%} of the attention of its best head (layer {exam.heads.layers[place]}, head {head}) lies "
        f"in the mask, {mean:.0%} of the mean of all heads, and {chance:.0%} would by chance."
    )


def _above(share: float, chance: float, times: float) -> bool:
    """Whether the odds of a share are so many times those of chance.

    For small shares that is the ratio of the two; of a large thing a share below 1 can reach it too.
    """
    return share * (1 - chance) >= times * chance * (1 - share) and share > chance


def _on_made_up(found: Mapping[str, Estimate]) -> str:
    scores = {name: found[f"made_up.{name}.auroc"].mean for name in DETECTORS if f"made_up.{name}.auroc" in found}
    if not scores:
        return "Whether what is made up shows is not measured."
    best = max(scores, key=lambda name: scores[name])
    told = f"its {DETECTORS[best]} (AUROC {scores[best]:.2f})"
    if scores[best] < 0.7:
        return f"Nothing tells whether a thing is made up: the best of what is measured is {told}."
    return f"Whether a thing is made up shows{'' if scores[best] >= 0.9 else ' in part'}, most in {told}."


def reliability_of(exam: Examination) -> dict[str, list[Any]]:
    """P(yes) in bins: mean probability and share of things that are there, of each bin with questions."""
    p_Q, y_Q = map(np.asarray, _p_and_truth(distinct(exam.answers.records["picture"])))
    bin_Q = np.clip((p_Q * NUM_BINS).astype(int), 0, NUM_BINS - 1)
    full = [b for b in range(NUM_BINS) if (bin_Q == b).any()]
    return {
        "probability": [float(p_Q[bin_Q == b].mean()) for b in full],
        "present": [float(y_Q[bin_Q == b].mean()) for b in full],
        "num_questions": [int((bin_Q == b).sum()) for b in full],
    }
