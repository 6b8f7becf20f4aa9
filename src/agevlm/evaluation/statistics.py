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

Quantiles and exact intervals are scipy's. Its bootstrap has one level: draws of pictures within draws of seeds, the
same for both arms, are made here, and so is Fieller's interval of a ratio.
"""

# Shapes: A arms, D draws, S seeds, I pictures, Q questions, K draws of one seed.

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from agevlm.evaluation.run_figures import Figure, Floats, divide

NUM_DRAWS = 2000
UNBOUNDED = (-math.inf, math.inf)

Interval = tuple[float, float]
Groups = Mapping[int, int] | None  # seed → the number of its group; None: each is its own

_LEVEL = 0.95
_TAILS = (0.025, 0.975)


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
    """The exact interval (Clopper and Pearson) for a figure at its bound in every picture, where nothing varies."""
    from scipy.stats import binomtest

    reach = (bounds[1] - bounds[0]) * float(binomtest(0, num_images).proportion_ci(_LEVEL).high)
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
    return divide(np.where(known_ADS, figures_ADS, 0).sum(axis=2), known_ADS.sum(axis=2).astype(np.float64))


def _image_counts(rng: np.random.Generator, num_draws: int, num_images: int) -> Floats:
    """How often each picture comes up (K, I) when as many are drawn as there are."""
    drawn_KI = rng.integers(num_images, size=(num_draws, num_images)) + num_images * np.arange(num_draws)[:, None]
    counts = np.bincount(drawn_KI.ravel(), minlength=num_draws * num_images)
    return counts.reshape(num_draws, num_images).astype(np.float64)


def _t_quantile(degrees: int) -> float:
    from scipy.stats import t

    return float(t.ppf(_TAILS[1], degrees))


def _t_interval(values_S: Floats | None) -> Interval | None:
    if values_S is None or len(values_S) < 2:
        return None
    from scipy.stats import sem

    mean, reach = float(values_S.mean()), _t_quantile(len(values_S) - 1) * float(sem(values_S))
    return mean - reach, mean + reach


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
    return np.where((below == 0) & (above > 0), math.inf, divide(above, below))


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
