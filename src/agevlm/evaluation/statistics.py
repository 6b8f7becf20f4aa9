"""Figures over several seeds: mean, 95 % interval, and the paired difference and ratio of two arms. Pure functions.

A run is one trained model, asked on the test world of its seed; all arms of a seed answer the same questions. So there
are two sources of chance, the training and the choice of pictures, and two intervals that each see them in their way:

- the two-level percentile bootstrap draws seeds with replacement, then pictures with replacement in each drawn seed, a
  picture with all its questions; two arms are always asked on the same draw. With few seeds it is too narrow where the
  seeds differ by more than their pictures explain: S seeds seem to spread by (S - 1) / S of their variance, and a
  normal quantile stands where one of Student's t belongs, so that 95 % become 83 % with 5 seeds and 76 % with 3;
- the t interval over the figures of the seeds, with S - 1 degrees of freedom: right for any number of seeds if the
  figures are about normal, since every seed has its own training and its own pictures; but with 3 seeds that happen to
  agree it can be narrower than the choice of pictures alone allows.

Seeds that have something in common that others have not, such as the foundation they start from, are no draws apart
from each other. `groups` says which belong together; with two groups or more there is a third interval, Student's t
over the means of the groups. With one group nothing can be said of others.

The interval that is reported reaches from the lowest of the lower ends to the highest of the upper ends: it holds its
95 % in all these cases (docs/statistics.md has the simulation) and is wider than needed in most. Each is kept beside
it. What is known only as one figure a seed (perplexity, seconds) has no bootstrap. One seed says nothing of other
seeds: its interval knows its pictures only, and a figure alone has none (minus to plus infinity, null in JSON). Where
nothing varies, because no picture has an error or all have nothing else, the interval is the exact one for such a case.
"""

# Shapes: A arms, D draws, S seeds, I pictures, Q questions, K draws of one seed.

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agevlm.evaluation.parsing import parse_yes_no
from agevlm.evaluation.scores import auroc

NUM_DRAWS = 2000
UNBOUNDED = (-math.inf, math.inf)

Floats = NDArray[np.float64]
Interval = tuple[float, float]
Groups = Mapping[int, int] | None  # seed → the number of its group; None: each is its own
Record = Mapping[str, Any]  # a line of predictions.jsonl

_TAILS = (0.025, 0.975)
_NORMAL_QUANTILE = 1.959964
# fmt: off
_T_QUANTILES = (  # of Student's t at 0.975, for 1 to 30 degrees of freedom
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281,
    2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860,
    2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484, 2.0452, 2.0423,
)
# fmt: on


@dataclass(frozen=True)
class Estimate:
    """A figure over seeds: `mean`, its 95 % interval from `low` to `high`, and the `values` of the `seeds`, in order.

    `bootstrap` (over seeds and pictures), `t` (over seeds) and `t_groups` (over groups of seeds) are the intervals that
    `low` and `high` enclose, None where there is none. An end that nothing bounds is infinite.
    """

    mean: float
    low: float
    high: float
    values: tuple[float, ...]
    seeds: tuple[int, ...]
    bootstrap: Interval | None = None
    t: Interval | None = None
    t_groups: Interval | None = None

    @property
    def num_seeds(self) -> int:
        """The seeds that the figure stands on; for two arms those that both have."""
        return len(self.seeds)

    def __neg__(self) -> Estimate:
        """The difference of the second arm from the first, of one of the first from the second."""

        def flipped(interval: Interval | None) -> Interval | None:
            return (-interval[1], -interval[0]) if interval else None

        values = tuple(-value for value in self.values)
        intervals = map(flipped, (self.bootstrap, self.t, self.t_groups))
        return Estimate(-self.mean, -self.high, -self.low, values, self.seeds, *intervals)

    def record(self) -> dict[str, Any]:
        """As JSON has it; what is not finite is null."""
        return {
            "mean": _finite(self.mean),
            "low": _finite(self.low),
            "high": _finite(self.high),
            "values": [_finite(value) for value in self.values],
            "seeds": list(self.seeds),
            "num_seeds": self.num_seeds,
            **{name: _ends(getattr(self, name)) for name in ("bootstrap", "t", "t_groups")},
        }


def _ends(interval: Interval | None) -> list[float | None] | None:
    return [_finite(end) for end in interval] if interval else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


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
        return _divide(above_K, below_K)


@dataclass(frozen=True, eq=False)
class Ranks(Figure):
    """AUROC: chance that a question with `positive` has a higher score than one without, ties as half."""

    scores: ArrayLike
    positive: ArrayLike

    @property
    def value(self) -> float:
        """The AUROC of all questions; NaN where one class is empty."""
        positive_Q, scores_Q = self._marks
        return auroc(scores_Q[positive_Q], scores_Q[~positive_Q]) if 0 < positive_Q.mean() < 1 else math.nan

    @property
    def _marks(self) -> tuple[NDArray[np.bool_], Floats]:
        return np.asarray(self.positive, dtype=bool), np.asarray(self.scores, dtype=np.float64)

    @cached_property
    def _won_II(self) -> Floats:
        """Pairs of a positive of one picture and a negative of another that are won, a tie as half."""
        positive_Q, scores_Q = self._marks
        high, image_of_high = scores_Q[positive_Q], self._image_of_Q[positive_Q]
        low, image_of_low = scores_Q[~positive_Q], self._image_of_Q[~positive_Q]
        won_II = np.zeros((self.num_images, self.num_images))
        for image in range(self.num_images):
            ours = np.sort(low[image_of_low == image])
            won = (np.searchsorted(ours, high, "left") + np.searchsorted(ours, high, "right")) / 2
            won_II[:, image] = np.bincount(image_of_high, won, self.num_images)
        return won_II

    def drawn(self, counts_KI: Floats) -> Floats:
        """The share of pairs won, pictures counting as often as they were drawn; memory grows with their square."""
        positive_Q, _ = self._marks
        high_K, low_K = (
            counts_KI @ np.bincount(self._image_of_Q, part_Q, self.num_images) for part_Q in (positive_Q, ~positive_Q)
        )
        return _divide((counts_KI @ self._won_II * counts_KI).sum(axis=1), high_K * low_K)


def _divide(above: Floats, below: Floats) -> Floats:
    return np.divide(above, below, out=np.full_like(above, math.nan), where=below != 0)


def estimate(
    arm: Mapping[int, Figure],
    *,
    bounds: Interval = UNBOUNDED,
    groups: Groups = None,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> Estimate:
    """Mean over seeds of a figure, with its interval; `arm` is seed → figure, `groups` those with something in common.

    Seeds whose figure is NaN are left out. `bounds` are the values that the figure can have: ends beyond are moved
    there. Deterministic in `seed`. No seed with a figure is a ValueError.
    """
    arm = {number: arm[number] for number in sorted(arm) if not math.isnan(arm[number].value)}
    _some(arm, "no seed has this figure")
    values_S = np.array([figure.value for figure in arm.values()])
    (draws_D,) = _two_level([arm], num_draws, seed)
    found = _of_mean(values_S, arm, draws_D, groups, bounds)
    if (values_S == bounds[0]).all() or (values_S == bounds[1]).all():
        return _beside_a_bound(found, sum(figure.num_counted for figure in arm.values()), bounds)
    return found


def _beside_a_bound(found: Estimate, num_images: int, bounds: Interval) -> Estimate:
    """The exact interval for a figure that is at its bound in every picture, where nothing varies: no error in n."""
    reach = (bounds[1] - bounds[0]) * (1 - _TAILS[0] ** (1 / num_images))
    if found.mean == bounds[0]:
        return replace(found, high=bounds[0] + reach)
    return replace(found, low=bounds[1] - reach)


def difference(
    first: Mapping[int, Figure],
    second: Mapping[int, Figure],
    *,
    names: tuple[str, str] = ("the first arm", "the second arm"),
    groups: Groups = None,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> Estimate:
    """Mean over the shared seeds of first minus second, paired: both are asked on the same draw of seeds and pictures.

    Arms that share no seed, and arms that were asked different questions in a shared seed, are ValueErrors that say
    which (by `names`) and how many. A seed where either figure is NaN is left out.
    """
    one, two = _pair(first, second, names)
    values_S = np.array([one[number].value - two[number].value for number in one])
    draws_AD = _two_level([one, two], num_draws, seed)
    return _of_mean(values_S, one, draws_AD[0] - draws_AD[1], groups, UNBOUNDED)


def ratio(
    first: Mapping[int, Figure],
    second: Mapping[int, Figure],
    *,
    names: tuple[str, str] = ("the first arm", "the second arm"),
    groups: Groups = None,
    num_draws: int = NUM_DRAWS,
    seed: int = 0,
) -> Estimate:
    """Mean of the first arm over mean of the second, over the shared seeds, paired like `difference`; both at least 0.

    `values` are the ratios of the seeds; `mean` is the ratio of the means and not their mean. The t intervals are
    Fieller's; they have no upper end where the mean of the second arm is not clear of 0. Errors as in `difference`.
    """
    one, two = _pair(first, second, names)
    values_AS = np.array([[figure.value for figure in arm.values()] for arm in (one, two)])
    above_D, below_D = _two_level([one, two], num_draws, seed)
    return _ratio(values_AS, one, _quotient(above_D, below_D), groups)


def estimate_of_seeds(values: Mapping[int, float], *, bounds: Interval = UNBOUNDED, groups: Groups = None) -> Estimate:
    """Mean of one number a seed, with its t intervals, for what is no figure of questions (perplexity, seconds).

    A bootstrap over 3 to 5 seeds would hold less than its 95 %: see the head of the file. The rest as in `estimate`.
    """
    values = {number: values[number] for number in sorted(values)}
    _some(values, "no seed has this figure")
    values_S = np.array(list(values.values()), dtype=np.float64)
    return _of_mean(values_S, values, None, groups, bounds)


def difference_of_seeds(first: Mapping[int, float], second: Mapping[int, float], *, groups: Groups = None) -> Estimate:
    """Mean over the shared seeds of first minus second, with its paired t intervals; no shared seed is a ValueError."""
    shared = _shared(first, second)
    return estimate_of_seeds({number: first[number] - second[number] for number in shared}, groups=groups)


def ratio_of_seeds(first: Mapping[int, float], second: Mapping[int, float], *, groups: Groups = None) -> Estimate:
    """Mean of the first over mean of the second, over the shared seeds, both at least 0, with Fieller's intervals."""
    shared = _shared(first, second)
    values_AS = np.array([[arm[number] for number in shared] for arm in (first, second)], dtype=np.float64)
    return _ratio(values_AS, shared, None, groups)


def _some(found: Mapping[int, object] | Sequence[int], complaint: str) -> None:
    if not found:
        raise ValueError(complaint)


def _shared(first: Mapping[int, object], second: Mapping[int, object]) -> list[int]:
    shared = sorted(first.keys() & second.keys())
    _some(shared, f"two arms without a common seed cannot be paired: {sorted(first)} and {sorted(second)}")
    return shared


def _pair(
    first: Mapping[int, Figure], second: Mapping[int, Figure], names: tuple[str, str]
) -> tuple[dict[int, Figure], dict[int, Figure]]:
    """Both arms on the seeds that both have, in order."""
    shared = _shared(first, second)
    for number in shared:
        _check_same_questions(first[number], second[number], names, number)
    known = [n for n in shared if not (math.isnan(first[n].value) or math.isnan(second[n].value))]
    _some(known, f"{names[0]} and {names[1]} share no seed in which both have this figure")
    return {number: first[number] for number in known}, {number: second[number] for number in known}


def _check_same_questions(first: Figure, second: Figure, names: tuple[str, str], seed: int) -> None:
    asked = [dict(zip(figure.ids, figure.images, strict=True)) for figure in (first, second)]
    if asked[0] == asked[1]:
        return
    extra, missing = asked[0].keys() - asked[1].keys(), asked[1].keys() - asked[0].keys()
    moved = sum(image != asked[1].get(identity, image) for identity, image in asked[0].items())
    raise ValueError(
        f"seed {seed}: {names[0]} and {names[1]} were not asked the same questions. {names[1]} lacks {len(extra)} of "
        f"the {len(asked[0])} of {names[0]} {sorted(extra)[:3]}, {names[0]} lacks {len(missing)} of the "
        f"{len(asked[1])} of {names[1]} {sorted(missing)[:3]}, and {moved} are about another picture."
    )


def _two_level(arms: Sequence[Mapping[int, Figure]], num_draws: int, seed: int) -> Floats:
    """Means over seeds (A, D) in draws of seeds and of pictures within them, the same for all arms.

    A seed is drawn anew, with its own pictures, as often as it comes up. Where nothing of the figure is left in a drawn
    seed it is left out of that mean; a draw may be NaN.
    """
    rng = np.random.default_rng(seed)
    seeds = list(arms[0])
    seed_DS = rng.integers(len(seeds), size=(num_draws, len(seeds)))
    figures_ADS = np.empty((len(arms), *seed_DS.shape))
    for place, number in enumerate(seeds):
        chosen_DS = seed_DS == place
        counts_KI = _image_counts(rng, int(chosen_DS.sum()), arms[0][number].num_images)
        for row, arm in enumerate(arms):
            figures_ADS[row, chosen_DS] = arm[number].drawn(counts_KI)
    known_ADS = ~np.isnan(figures_ADS)
    return _divide(np.where(known_ADS, figures_ADS, 0).sum(axis=2), known_ADS.sum(axis=2).astype(np.float64))


def _image_counts(rng: np.random.Generator, num_draws: int, num_images: int) -> Floats:
    """How often each picture comes up (K, I) when as many are drawn as there are."""
    drawn_KI = rng.integers(num_images, size=(num_draws, num_images)) + num_images * np.arange(num_draws)[:, None]
    counts = np.bincount(drawn_KI.ravel(), minlength=num_draws * num_images)
    return counts.reshape(num_draws, num_images).astype(np.float64)


def _t_quantile(degrees: int) -> float:
    """Student's t at 0.975: from the table up to 30 degrees of freedom, then by the expansion about the normal."""
    if degrees <= len(_T_QUANTILES):
        return _T_QUANTILES[degrees - 1]
    z = _NORMAL_QUANTILE
    return z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)


def _t_interval(values_S: Floats | None) -> Interval | None:
    if values_S is None or len(values_S) < 2:
        return None
    reach = _t_quantile(len(values_S) - 1) * float(values_S.std(ddof=1)) / math.sqrt(len(values_S))
    return float(values_S.mean()) - reach, float(values_S.mean()) + reach


def _group_means(values_XS: Floats, seeds: Iterable[int], groups: Groups) -> Floats | None:
    """Means (..., G) over the seeds of each group; None where that is nothing new: no groups, one, or one a seed."""
    if groups is None:
        return None
    group_S = np.array([groups[seed] for seed in seeds])
    numbers = np.unique(group_S)
    if not 1 < len(numbers) < len(group_S):
        return None
    return np.stack([values_XS[..., group_S == number].mean(axis=-1) for number in numbers], axis=-1)


def _of_mean(
    values_S: Floats, seeds: Collection[int], draws_D: Floats | None, groups: Groups, bounds: Interval
) -> Estimate:
    intervals = (_t_interval(values_S), _t_interval(_group_means(values_S, seeds, groups)))
    return _enclose(float(values_S.mean()), values_S, seeds, draws_D, intervals, bounds)


def _ratio(values_AS: Floats, seeds: Collection[int], draws_D: Floats | None, groups: Groups) -> Estimate:
    above, below = values_AS.mean(axis=1)
    mean = float(_quotient(np.array([above]), np.array([below]))[0])
    intervals = (_fieller(values_AS), _fieller(_group_means(values_AS, seeds, groups)))
    return _enclose(mean, _quotient(*values_AS), seeds, draws_D, intervals, (0.0, math.inf))


def _quotient(above: Floats, below: Floats) -> Floats:
    """above / below, both at least 0; infinite over 0, and NaN where both are 0."""
    return np.where((below == 0) & (above > 0), math.inf, _divide(above, below))


def _fieller(values_AS: Floats | None) -> Interval | None:
    """Fieller's interval of the ratio of two paired means: the ratios r for which above - r * below may have mean 0."""
    if values_AS is None or values_AS.shape[1] < 2:
        return None
    num_seeds = values_AS.shape[1]
    above, below = (float(mean) for mean in values_AS.mean(axis=1))
    spread_AA = np.cov(values_AS) * _t_quantile(num_seeds - 1) ** 2 / num_seeds
    a, b, c = below**2 - spread_AA[1, 1], above * below - spread_AA[0, 1], above**2 - spread_AA[0, 0]
    reach = math.sqrt(max(b * b - a * c, 0.0))
    if a > 0:
        return float((b - reach) / a), float((b + reach) / a)
    # The mean below may be 0: no ratio is too large. Those between the roots of the parabola are too small.
    roots = sorted(((b - reach) / a, (b + reach) / a)) if a < 0 and reach > 0 else [0.0, 0.0]
    return (float(roots[1]) if roots[0] <= 0 else 0.0), math.inf


def _enclose(
    mean: float,
    values_S: Floats,
    seeds: Collection[int],
    draws_D: Floats | None,
    of_t: tuple[Interval | None, Interval | None],
    bounds: Interval,
) -> Estimate:
    """The estimate whose interval encloses that of the draws and those of Student, over seeds and over their groups."""
    intervals = (None if draws_D is None else _percentiles(draws_D[~np.isnan(draws_D)]), *of_t)
    low, high = UNBOUNDED
    if ends := [interval for interval in intervals if interval is not None]:
        low, high = max(bounds[0], min(end[0] for end in ends)), min(bounds[1], max(end[1] for end in ends))
    return Estimate(mean, low, high, tuple(values_S.tolist()), tuple(seeds), *intervals)


def _percentiles(draws: Floats) -> Interval | None:
    """Ends that are draws themselves, not between two: a ratio may be infinite."""
    if not len(draws):
        return None
    low, high = np.quantile(draws, _TAILS, method="inverted_cdf")
    return float(low), float(high)


# Figures of predictions.jsonl, named as in metrics.json.


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
