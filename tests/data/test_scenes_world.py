"""What a scene holds: categories, colours, partners, places. Layouts only, no pictures."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from pydantic import ValidationError

from agevlm.data.scenes.world import (
    CATEGORIES,
    COLOURS,
    GROUP_OF,
    GROUPS,
    PARTNERS,
    WorldSpec,
    place,
    sample_categories,
    sample_colour,
)


def _layouts(num: int, **settings: float) -> list[list[str]]:
    spec, rng = WorldSpec(**settings), np.random.default_rng(3)
    return [sample_categories(spec, rng) for _ in range(num)]


def _partner_ratio(layouts: list[list[str]]) -> float:
    """Share of the categories in a scene whose partner is there too."""
    beside = [PARTNERS[category] in layout for layout in layouts for category in set(layout)]
    return sum(beside) / len(beside)


def test_sixteen_categories_in_four_groups_of_two_pairs() -> None:
    assert len(CATEGORIES) == len(set(CATEGORIES)) == 16
    assert [len(pairs) for pairs in GROUPS.values()] == [2, 2, 2, 2]
    for category in CATEGORIES:
        assert PARTNERS[PARTNERS[category]] == category != PARTNERS[category]
        assert GROUP_OF[PARTNERS[category]] == GROUP_OF[category]


def test_named_colours_lie_far_apart() -> None:
    """Every channel of a drawn colour moves by 14 at most, which is far less than half of the least distance."""
    colours = np.array(list(COLOURS.values()))
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=-1) + 1000 * np.eye(len(colours))
    assert distances.min() / 2 > 14 * 3**0.5


def test_partners_come_together_as_often_as_asked() -> None:
    chance, biased = (
        _partner_ratio(_layouts(3000, co_occurrence=0.0)),
        _partner_ratio(_layouts(3000, co_occurrence=0.8)),
    )
    assert 0.22 < chance < 0.35
    assert 0.75 < biased < 0.85


def test_a_partner_that_always_comes_is_missing_only_for_want_of_room() -> None:
    for layout in _layouts(500, co_occurrence=1.0, min_objects=2):
        lonely = [category for category in set(layout) if PARTNERS[category] not in layout]
        assert set(lonely) <= {layout[-1]}


def test_numbers_of_things_are_even_and_within_bounds() -> None:
    numbers = Counter(len(layout) for layout in _layouts(3000, min_objects=2, max_objects=5))
    assert sorted(numbers) == [2, 3, 4, 5]
    assert min(numbers.values()) > 600


def test_repeats_make_larger_counts_and_none_without() -> None:
    def most(ratio: float) -> Counter[int]:
        return Counter(max(Counter(layout).values()) for layout in _layouts(1500, repeat_ratio=ratio))

    assert all(most(0.25)[number] > 15 for number in (1, 2, 3))
    assert most(0.6)[4] > most(0.0)[4]


def test_categories_and_colours_are_even() -> None:
    categories = Counter(category for layout in _layouts(4000) for category in set(layout))
    rng = np.random.default_rng(0)
    colours = Counter(sample_colour(rng) for _ in range(8000))
    assert set(categories) == set(CATEGORIES) and set(colours) == set(COLOURS)
    assert max(categories.values()) < 1.25 * min(categories.values())
    assert max(colours.values()) < 1.25 * min(colours.values())


def test_places_lie_in_the_picture_and_scale_with_it() -> None:
    rng = np.random.default_rng(1)
    for side in (96, 240):
        placements = [place(WorldSpec(image_size=side), "fish", "red", rng) for _ in range(500)]
        assert all(0 < c < side for p in placements for c in p.centre)
        assert all(7 / 96 * side <= p.radius <= 15 / 96 * side and abs(p.angle) <= 25 for p in placements)
        assert 150 < sum(p.mirrored for p in placements) < 350


def test_a_layout_is_a_function_of_its_seed() -> None:
    assert _layouts(50) == _layouts(50)


@pytest.mark.parametrize(
    "wrong",
    [
        {"co_occurrence": 1.2},
        {"image_size": 64},
        {"min_objects": 0},
        {"min_objects": 5, "max_objects": 4},
        {"min_radius_ratio": 0.3, "max_radius_ratio": 0.2},
        {"coocurrence": 0.5},
    ],
)
def test_a_wrong_setting_is_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError) as caught:
        WorldSpec(**wrong)
    assert next(iter(wrong)) in str(caught.value)


def test_a_spec_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        WorldSpec().image_size = 128  # type: ignore[misc]
