"""Detectors of hallucination: how well a number tells that the thing a question names is not there.

Each POPE question names one thing. Three numbers of it are compared as evidence that the thing is absent:

- `null_mass`: what its words give to the null token, of models that have one;
- `p_no`: 1 - P(yes), the model's own answer;
- `entropy`: of its words' attention over the picture, see `localisation.map_entropy`.

AUROC asks how well a detector ranks, calibration whether it can be read as the probability that the thing is absent.
The first two are read as they are. Entropy is no probability: it is read through a logistic curve of two numbers,
fitted on one half of the pictures and read on the other, both ways round. The same is given for all three, so that what
remains is the detector's and not the scale's. Pure functions on records of predictions.jsonl.
"""

# Shapes: Q questions, B bins.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agevlm.evaluation.run_figures import Floats, Ranks, Record, reference_is_yes
from agevlm.evaluation.statistics import Estimate, Groups, difference, estimate, estimate_of_seeds

SPLITS = ("random", "adversarial")
DETECTORS = ("null_mass", "p_no", "entropy")
ANSWER = "p_no"
PROBABILITIES = ("null_mass", ANSWER)  # the detectors that can be read as they are
NUM_BINS = 10

_ROUNDING = 1e-5  # of a sum of softmax weights in float32
_RIDGE = 1e-3  # of the standardised slope and offset: keeps the curve finite where a detector makes no mistake


@dataclass(frozen=True)
class Bin:
    """Questions whose probability is from `low` to below `high`: mean probability, and the share that is absent.

    Both are None in an empty bin. The last bin holds 1 too.
    """

    low: float
    high: float
    num_questions: int
    probability: float | None
    absent: float | None


@dataclass(frozen=True)
class Calibration:
    """Reliability bins of all seeds together, and the expected calibration error: mean over seeds of each one's own."""

    error: Estimate
    bins: tuple[Bin, ...]

    def record(self) -> dict[str, Any]:
        """As JSON has it: the bins as columns, between `edges`."""
        names = ("num_questions", "probability", "absent")
        columns = {name: [getattr(found, name) for found in self.bins] for name in names}
        edges = [*(found.low for found in self.bins), self.bins[-1].high]
        return {"error": self.error.record(), "bins": {"edges": edges, **columns}}


@dataclass(frozen=True)
class Detection:
    """One detector on one split: AUROC for absent against present; calibration, `as_is` None for no probability.

    `minus_answer` is its AUROC minus that of the answer's own probability, paired; None for that itself.
    """

    auroc: Estimate
    minus_answer: Estimate | None
    num_questions: int
    as_is: Calibration | None
    fitted: Calibration

    def record(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "auroc": self.auroc.record(),
            "minus_answer": self.minus_answer.record() if self.minus_answer else None,
            "num_questions": self.num_questions,
            "as_is": self.as_is.record() if self.as_is else None,
            "fitted": self.fitted.record(),
        }


def detect(runs: Mapping[int, Sequence[Record]], groups: Groups = None) -> dict[str, dict[str, Detection]]:
    """Every detector of `DETECTORS` on every split of `SPLITS`, of one arm: seed → the records of its predictions.

    A detector that a run has no numbers for is left out there: null mass without a null token, entropy in files written
    before it was measured. `groups` as `statistics` has them.
    """
    found: dict[str, dict[str, Detection]] = {}
    for split in SPLITS:
        seen = {detector: _known(runs, split, detector) for detector in DETECTORS}
        answers = seen[ANSWER]
        for detector, known in seen.items():
            if known:
                against = answers if detector != ANSWER and answers.keys() & known.keys() else None
                found.setdefault(split, {})[detector] = _detection(known, against, groups, detector in PROBABILITIES)
    return found


def _known(runs: Mapping[int, Sequence[Record]], split: str, detector: str) -> dict[int, Ranks]:
    seen = {seed: evidence(records, split, detector) for seed, records in runs.items()}
    return {seed: ranks for seed, ranks in seen.items() if ranks is not None}


def evidence(records: Sequence[Record], split: str, detector: str) -> Ranks | None:
    """A detector's numbers on the questions of a POPE split of one run, `positive` where the thing is absent.

    For `statistics.estimate` and `difference`. None where a question lacks the number or one of the classes is empty.
    """
    asked = [record for record in records if record["kind"] == f"pope.{split}"]
    scores = [_score(record, detector) for record in asked]
    known = [score for score in scores if score is not None]
    absent = [not reference_is_yes(record) for record in asked]
    if len(known) < len(asked) or not 0 < sum(absent) < len(asked):
        return None
    return Ranks([record["id"] for record in asked], [record["image"] for record in asked], known, absent)


def _score(record: Record, detector: str) -> float | None:
    if detector == "p_no":
        return None if record["p_yes"] is None else 1 - record["p_yes"]
    return record["words"][0].get(detector) if record["words"] else None


def _detection(
    known: Mapping[int, Ranks], answers: Mapping[int, Ranks] | None, groups: Groups, is_probability: bool
) -> Detection:
    absent = {seed: np.asarray(ranks.positive, dtype=bool) for seed, ranks in known.items()}
    scores = {seed: np.asarray(ranks.scores, dtype=np.float64) for seed, ranks in known.items()}
    fitted = {seed: cross_fitted(scores[seed], absent[seed], known[seed].images) for seed in known}
    return Detection(
        auroc=estimate(known, bounds=(0.0, 1.0), groups=groups),
        minus_answer=difference(known, answers, groups=groups) if answers else None,
        num_questions=sum(map(len, scores.values())),
        as_is=_calibration(scores, absent, groups) if is_probability else None,
        fitted=_calibration(fitted, absent, groups),
    )


def _calibration(
    probability: Mapping[int, Floats], absent: Mapping[int, NDArray[np.bool_]], groups: Groups
) -> Calibration:
    errors = {seed: calibration_error(reliability(probability[seed], absent[seed])) for seed in probability}
    pooled = reliability(np.concatenate(list(probability.values())), np.concatenate(list(absent.values())))
    return Calibration(estimate_of_seeds(errors, bounds=(0.0, 1.0), groups=groups), pooled)


def reliability(probability: ArrayLike, absent: ArrayLike, num_bins: int = NUM_BINS) -> tuple[Bin, ...]:
    """Questions in bins of equal width by the probability that the thing is absent.

    A probability outside [0, 1] by more than rounding is a ValueError.
    """
    probability_Q, absent_Q = np.asarray(probability, dtype=np.float64), np.asarray(absent, dtype=np.float64)
    if not (probability_Q.min(initial=0) >= -_ROUNDING and probability_Q.max(initial=0) <= 1 + _ROUNDING):
        raise ValueError(f"a probability is from 0 to 1, got {probability_Q.min():.4g} to {probability_Q.max():.4g}")
    bin_Q = np.clip((probability_Q * num_bins).astype(int), 0, num_bins - 1)
    count_B = np.bincount(bin_Q, minlength=num_bins)
    sums_B = [np.bincount(bin_Q, values_Q, num_bins) for values_Q in (probability_Q, absent_Q)]
    return tuple(
        Bin(
            number / num_bins,
            (number + 1) / num_bins,
            int(count),
            *(float(sums[number] / count) if count else None for sums in sums_B),
        )
        for number, count in enumerate(count_B)
    )


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error in [0, 1]: mean over questions of the distance of their bin's probability and share.

    Chance alone gives a well calibrated detector more than 0: up to about 0.4 * sqrt(bins / questions).
    """
    full = [found for found in bins if found.probability is not None and found.absent is not None]
    gaps = sum(b.num_questions * abs(b.probability - b.absent) for b in full)  # type: ignore[operator]
    return float(gaps / sum(found.num_questions for found in full))


def cross_fitted(scores: ArrayLike, absent: ArrayLike, images: Sequence[str]) -> Floats:
    """Probabilities (Q,) of being absent by a logistic curve of the score, fitted on the other half of the pictures.

    The halves are the pictures at even and at odd places in the order of their names; all questions of a picture are in
    one. Where the other half holds one class only, or nothing, the curve is fitted on all questions.
    """
    scores_Q, absent_Q = np.asarray(scores, dtype=np.float64), np.asarray(absent, dtype=np.float64)
    odd_Q = np.unique(np.asarray(images), return_inverse=True)[1] % 2 == 1
    probability_Q = np.empty(len(scores_Q))
    for read_Q in (odd_Q, ~odd_Q):
        fit_Q = ~read_Q if len(set(absent_Q[~read_Q].tolist())) == 2 else np.ones_like(read_Q)
        probability_Q[read_Q] = _logistic(scores_Q[fit_Q], absent_Q[fit_Q], scores_Q[read_Q])
    return probability_Q


def _logistic(scores_Q: Floats, absent_Q: Floats, read: Floats) -> Floats:
    """P(absent) at the scores `read`, by a logistic regression on one number with a slight ridge."""
    from scipy.optimize import root
    from scipy.special import expit

    centre, scale = float(scores_Q.mean()), float(scores_Q.std()) or 1.0
    inputs_Q2 = np.stack([np.ones(len(scores_Q)), (scores_Q - centre) / scale], axis=1)

    def slope(weights_2: Floats) -> Floats:
        """That of the loss, which has one minimum: there it is 0."""
        return inputs_Q2.T @ (expit(inputs_Q2 @ weights_2) - absent_Q) + _RIDGE * weights_2

    found = root(slope, np.zeros(2))
    assert found.success, found.message
    return np.asarray(expit(found.x[0] + found.x[1] * (read - centre) / scale))
