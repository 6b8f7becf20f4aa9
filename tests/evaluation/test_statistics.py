"""Intervals on simulated runs whose truth is known."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import scipy.stats

from agevlm.evaluation.run_figures import Figure, Ranks, Share
from agevlm.evaluation.statistics import (
    Estimate,
    difference,
    difference_of_seeds,
    estimate,
    estimate_of_seeds,
    ratio,
    ratio_of_seeds,
)


def _mean(values: Any, questions_per_image: int = 1, *, prefix: str = "") -> Share:
    values = np.asarray(values, dtype=float)
    images = [f"image-{number // questions_per_image}" for number in range(len(values))]
    return Share([f"{prefix}q{number}" for number in range(len(values))], images, values, np.ones(len(values)))


def _width(found: Estimate) -> float:
    return found.high - found.low


def _world(rng: np.random.Generator, seed_sd: float, image_sd: float, num_seeds: int = 5) -> dict[int, Figure]:
    """Runs of 30 pictures with 4 questions each, all of mean 0."""
    return {
        seed: _mean(rng.normal(0, seed_sd) + np.repeat(rng.normal(0, image_sd, 30), 4) + rng.normal(0, 1, 120), 4)
        for seed in range(num_seeds)
    }


@pytest.mark.parametrize("seed_sd", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("num_seeds", [3, 5])
def test_the_interval_holds_its_95_percent(seed_sd: float, num_seeds: int) -> None:
    rng = np.random.default_rng(1)
    found = [estimate(_world(rng, seed_sd, 0.5, num_seeds), num_draws=200) for _ in range(200)]
    covered = np.mean([one.low <= 0 <= one.high for one in found])
    assert covered >= 0.92  # 95 % less two standard errors of 200 draws


def test_the_bootstrap_alone_is_too_narrow_where_seeds_differ() -> None:
    rng = np.random.default_rng(2)
    found = [estimate(_world(rng, 1.0, 0.5, 3), num_draws=200) for _ in range(200)]
    assert np.mean([one.bootstrap[0] <= 0 <= one.bootstrap[1] for one in found if one.bootstrap]) < 0.85


def test_mean_values_and_seeds() -> None:
    found = estimate({7: _mean([1, 1, 0, 0]), 3: _mean([1, 1, 1, 0])})
    assert (found.mean, found.values, found.seeds, found.num_seeds) == (0.625, (0.75, 0.5), (3, 7), 2)
    assert found.bootstrap is not None and found.t is not None
    assert found.low == min(found.bootstrap[0], found.t[0])
    assert found.high == max(found.bootstrap[1], found.t[1])
    bounded = estimate({7: _mean([1, 1, 0, 0]), 3: _mean([1, 1, 1, 0])}, bounds=(0.0, 1.0))
    assert (bounded.low, bounded.high) == (0.0, 1.0)  # t with 1 degree of freedom reaches far


def test_seeds_of_different_size_count_alike() -> None:
    assert estimate({0: _mean([1] * 100), 1: _mean([0] * 10)}).mean == 0.5


def test_it_is_deterministic_in_the_seed() -> None:
    world = _world(np.random.default_rng(3), 0.1, 0.5)
    assert estimate(world) == estimate(world)
    assert estimate(world, seed=1).bootstrap != estimate(world).bootstrap


def test_questions_of_one_picture_widen_the_interval() -> None:
    marks = np.random.default_rng(4).random(100) < 0.5
    alone = estimate({0: _mean(np.repeat(marks, 4))})
    together = estimate({0: _mean(np.repeat(marks, 4), 4)})
    assert _width(together) == pytest.approx(2 * _width(alone), rel=0.15)  # 4 equal questions are one


def test_one_seed_knows_its_pictures_only() -> None:
    found = estimate({0: _mean([0, 1] * 50)})
    assert found.t is None
    assert 0.3 < found.low < 0.5 < found.high < 0.7


def test_no_error_in_n_pictures_is_not_certainty() -> None:
    perfect = estimate({0: _mean(np.ones(60)), 1: _mean(np.ones(40))}, bounds=(0.0, 1.0))
    assert (perfect.mean, perfect.high) == (1.0, 1.0)
    assert perfect.low**100 == pytest.approx(0.025)  # so often 100 pictures would be right at that rate
    hopeless = estimate({0: _mean(np.zeros(100))}, bounds=(0.0, 1.0))
    assert hopeless.low == 0 and hopeless.high == pytest.approx(1 - perfect.low)


def test_pictures_that_a_figure_takes_nothing_from_make_it_no_surer() -> None:
    said = np.arange(600) < 2  # a precision of two answers
    figure = Share([str(n) for n in range(600)], [str(n) for n in range(600)], said.astype(float), said.astype(float))
    assert estimate({0: figure}, bounds=(0.0, 1.0)).low ** 2 == pytest.approx(0.025)


def test_pairing_narrows_the_difference() -> None:
    rng = np.random.default_rng(5)
    first, second, other = {}, {}, {}
    for seed in range(5):
        shared = rng.normal(0, 0.3) + rng.normal(0, 1, 200)  # seed and questions are hard or easy for both arms
        first[seed] = _mean(shared + 0.2 + rng.normal(0, 0.1, 200))
        second[seed] = _mean(shared + rng.normal(0, 0.1, 200))
        other[seed] = _mean(rng.normal(0, 0.3) + rng.normal(0, 1, 200))
    paired = difference(first, second)
    assert paired.low > 0.1
    assert paired.high < 0.3
    assert _width(paired) < 0.2 * _width(difference(first, other))
    assert paired.mean == pytest.approx(estimate(first).mean - estimate(second).mean)


def test_an_arm_differs_from_itself_by_exactly_0() -> None:
    world = _world(np.random.default_rng(6), 0.5, 0.5)
    same = difference(world, dict(reversed(world.items())))
    assert (same.mean, same.low, same.high, same.values) == (0.0, 0.0, 0.0, (0.0,) * 5)
    error = {seed: _mean(np.random.default_rng(seed).random(300) < 0.3) for seed in range(5)}
    assert (ratio(error, error).mean, ratio(error, error).bootstrap) == (1.0, (1.0, 1.0))


def test_the_order_of_questions_does_not_matter() -> None:
    marks = np.random.default_rng(7).random(80) < 0.5
    one = _mean(marks, 4)
    turned = Share(one.ids[::-1], one.images[::-1], marks[::-1].astype(float), np.ones(80))
    assert difference({0: one}, {0: turned}).high == 0.0


def test_only_shared_seeds_are_paired() -> None:
    world = _world(np.random.default_rng(8), 0.5, 0.5)
    found = difference(world, {seed: world[seed] for seed in (0, 3, 4)})
    assert (found.seeds, found.num_seeds) == ((0, 3, 4), 3)
    with pytest.raises(ValueError, match="without a common seed"):
        difference({0: world[0]}, {1: world[1]})
    with pytest.raises(ValueError, match="without a common seed"):
        ratio_of_seeds({0: 1.0}, {1: 1.0})


def test_other_questions_are_an_error_that_names_the_arm_and_the_number() -> None:
    full, part = _mean([0.0] * 12), _mean([0.0] * 9)
    with pytest.raises(
        ValueError, match=r"seed 4: age and concat .* concat lacks 3 of the 12 of age .* age lacks 0 of"
    ):
        difference({4: full}, {4: part}, names=("age", "concat"))
    with pytest.raises(ValueError, match="age lacks 3 of the 12 of concat"):
        ratio({4: part}, {4: full}, names=("age", "concat"))
    with pytest.raises(ValueError, match="11 are about another picture"):
        difference({4: _mean([0.0] * 12)}, {4: _mean([0.0] * 12, 4)})


def test_seeds_without_the_figure_are_no_figure() -> None:
    with pytest.raises(ValueError, match="no seed has this figure"):
        estimate({0: Share(["a"], ["x"], [0], [0])})


def test_a_share_of_what_is_rare_is_drawn_from_the_draws_that_hold_it() -> None:
    rare = {seed: Share(["a", "b", "c"], ["x", "y", "z"], [1, 0, 0], [1, 0, 0]) for seed in range(3)}
    assert estimate(rare).bootstrap == (1.0, 1.0)


def test_auroc_of_a_perfect_detector() -> None:
    perfect = {seed: Ranks(list("abcd"), list("wxyz"), [0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1]) for seed in range(3)}
    found = estimate(perfect)
    assert (found.mean, found.low, found.high) == (1.0, 1.0, 1.0)


def test_ratio_of_errors() -> None:
    rng = np.random.default_rng(10)
    hard = {seed: rng.random(600) for seed in range(5)}
    first = {seed: _mean(luck < 0.1) for seed, luck in hard.items()}
    second = {seed: _mean(luck < 0.4) for seed, luck in hard.items()}
    found = ratio(first, second)
    assert found.mean == pytest.approx(estimate(first).mean / estimate(second).mean)
    assert found.values[2] == pytest.approx(first[2].value / second[2].value)
    assert 0.18 < found.low < 0.25 < found.high < 0.33


@pytest.mark.parametrize("seed_sd", [0.01, 0.05])
def test_the_interval_of_a_ratio_holds_its_95_percent(seed_sd: float) -> None:
    rng = np.random.default_rng(11)
    covered = 0
    for _ in range(150):
        arms: list[dict[int, Figure]] = [{}, {}]
        for seed in range(4):
            luck = rng.random(200)
            for arm, rate in zip(arms, (0.1, 0.3), strict=True):
                arm[seed] = _mean(luck < np.clip(rng.normal(rate, seed_sd * rate / 0.1), 0, 1))
        found = ratio(arms[0], arms[1], num_draws=200)
        covered += found.low <= 1 / 3 <= found.high
    assert covered / 150 >= 0.91


def test_a_ratio_to_what_may_be_0_has_no_upper_end() -> None:
    found = ratio_of_seeds({0: 1.0, 1: 2.0, 2: 3.0}, {0: 0.0, 1: 0.1, 2: 0.0})
    assert found.high == math.inf
    assert found.record()["high"] is None
    assert found.record()["values"][0] is None  # 1 / 0
    json.dumps(found.record(), allow_nan=False)


def test_a_ratio_without_an_upper_end_has_a_lower_one() -> None:
    errors, fewer = {0: 0.20, 1: 0.30, 2: 0.25}, {0: 0.01, 1: 0.14, 2: 0.05}
    found, turned = ratio_of_seeds(fewer, errors), ratio_of_seeds(errors, fewer)
    assert turned.high == math.inf
    assert turned.low == pytest.approx(1 / found.high)  # one says what the other says


def test_figures_of_seeds_alone() -> None:
    found = estimate_of_seeds({1: 2.0, 0: 1.0, 2: 3.0})
    assert (found.mean, found.values, found.bootstrap) == (2.0, (1.0, 2.0, 3.0), None)
    assert found.high - found.mean == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    paired = difference_of_seeds({0: 11.0, 1: 21.0, 2: 31.1}, {0: 10.0, 1: 20.0, 2: 30.0, 3: 0.0})
    assert paired.mean == pytest.approx(31 / 30)
    assert paired.low > 0.8
    faster = ratio_of_seeds({0: 11.0, 1: 12.1, 2: 13.2}, {0: 10.0, 1: 11.0, 2: 12.0})
    assert (faster.mean, faster.low, faster.high) == pytest.approx((1.1, 1.1, 1.1))


def test_seeds_that_share_something_count_as_one_of_it() -> None:
    values, groups = {0: 1.0, 1: 2.0, 2: 4.0, 3: 1.2, 4: 2.2}, {0: 0, 1: 1, 2: 2, 3: 0, 4: 1}
    found = estimate_of_seeds(values, groups=groups)
    apart = estimate_of_seeds({0: 1.1, 1: 2.1, 2: 4.0})  # the means of the three
    assert found.t_groups == apart.t and found.t == estimate_of_seeds(values).t
    assert found.mean == estimate_of_seeds(values).mean and (found.low, found.high) == apart.t
    assert (-found).t_groups == (-found.high, -found.low) and found.record()["t_groups"] == list(apart.t or ())
    alone = estimate_of_seeds(values, groups=dict.fromkeys(values, 0))  # one group says nothing of others
    assert alone.t_groups is None and alone == estimate_of_seeds(values, groups={seed: seed for seed in values})


def test_intervals_hold_their_95_percent_where_seeds_share_foundations() -> None:
    rng = np.random.default_rng(12)
    groups = {seed: seed % 3 for seed in range(5)}
    held = dict.fromkeys(("t", "all", "difference", "ratio"), 0)
    for _ in range(300):
        of_group = rng.normal(0, 0.1, 3)
        errors = [
            {s: float(mean + of_group[s % 3] * mean + rng.normal(0, 0.01)) for s in groups} for mean in (0.2, 0.6)
        ]
        found = estimate_of_seeds(errors[1], groups=groups)
        assert found.t is not None
        held["t"] += found.t[0] <= 0.6 <= found.t[1]
        held["all"] += found.low <= 0.6 <= found.high
        gap = difference_of_seeds(*errors, groups=groups)
        held["difference"] += gap.low <= -0.4 <= gap.high
        share = ratio_of_seeds(*errors, groups=groups)
        held["ratio"] += share.low <= 1 / 3 <= share.high
    assert held["t"] < 270  # five seeds that are three
    assert min(held["all"], held["difference"], held["ratio"]) >= 279


def test_one_figure_of_one_seed_has_no_interval() -> None:
    record = estimate_of_seeds({0: 2.0}, bounds=(0.0, 10.0)).record()
    assert (record["mean"], record["low"], record["high"], record["num_seeds"]) == (2.0, None, None, 1)


@pytest.mark.parametrize("num_seeds", [2, 3, 5, 31, 60])
def test_the_t_interval_is_that_of_the_one_sample_test(num_seeds: int) -> None:
    values = np.random.default_rng(num_seeds).normal(3, 2, num_seeds)
    expected = scipy.stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert estimate_of_seeds(dict(enumerate(values))).t == pytest.approx((expected.low, expected.high), rel=1e-12)
