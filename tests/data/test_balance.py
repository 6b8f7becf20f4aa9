"""Balanced questions: every category as often yes as no, over any dataset; hard ones ask for what goes together."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from agevlm.data.balance import PresenceBalance, asked_categories
from agevlm.data.language import Chooser, make_conversations
from agevlm.data.scenes import CATEGORIES, WorldSpec, draw_scene

PICTURES = [draw_scene(WorldSpec(), 3, index).annotation for index in range(200)]
HELD = [picture.categories for picture in PICTURES]
SKEWED = [
    {"person"} | ({"dog"} if n % 10 == 0 else set()) | ({"cup", "table"} if n % 3 == 0 else set()) for n in range(59)
]
SKEWED += [{"cup"}]


def answers(balance: PresenceBalance, held: list[set[str]], num: int = 40) -> dict[str, list[int]]:
    """Category → how often it was asked where it is, and where it is not."""
    rng = np.random.default_rng(0)
    counts: dict[str, list[int]] = {category: [0, 0] for category in balance.categories}
    for picture in held:
        for _ in range(num):
            category = balance.choose(picture, rng)
            counts[category][category not in picture] += 1
    return counts


@pytest.mark.parametrize("hard_ratio", [0.0, 0.7])
def test_every_category_is_asked_as_often_where_it_is_as_where_it_is_not(hard_ratio: float) -> None:
    balance = PresenceBalance.of(HELD, CATEGORIES, hard_ratio=hard_ratio)
    assert balance.categories == CATEGORIES
    assert balance.yes_ratios == pytest.approx(0.5, abs=1e-3)
    assert list(balance.notes()) == []
    for yes, no in answers(balance, [set(picture) for picture in HELD]).values():
        assert yes / (yes + no) == pytest.approx(0.5, abs=0.08)


def test_natural_questions_have_a_habit_that_balance_takes_away() -> None:
    vocabulary = ("person", "dog", "cup", "table")
    natural = answers(PresenceBalance.of(SKEWED, vocabulary, balanced=False), SKEWED)
    assert natural["person"][0] > 20 * natural["person"][1] and natural["dog"][0] < natural["dog"][1] / 4
    balance = PresenceBalance.of(SKEWED, vocabulary)
    for category in ("dog", "cup", "table"):
        yes, no = answers(balance, SKEWED)[category]
        assert yes / (yes + no) == pytest.approx(0.5, abs=0.08)


def test_chances_are_natural_where_nothing_is_to_be_balanced() -> None:
    held = [{"a"}, {"b"}, {"c"}, {"d"}]
    balance = PresenceBalance.of(held, "abcd")
    assert balance.chances({"a"}) == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6], abs=1e-3)
    assert balance.chances({"a", "b"}) == pytest.approx([1 / 4] * 4, abs=1e-3)  # of a picture that it never saw
    assert balance.chances(()) == pytest.approx([1 / 4] * 4, abs=1e-3)
    assert balance.chances("abcd") == pytest.approx([1 / 4] * 4, abs=1e-3)


def test_hard_questions_ask_for_what_goes_together() -> None:
    held = [{"table", "cup"}] * 6 + [{"table"}] * 2 + [{"boat"}, {"key"}, {"tree"}]
    vocabulary = ("table", "cup", "boat", "key", "tree")
    easy, half, hard = (
        PresenceBalance.of(held, vocabulary, balanced=False, hard_ratio=ratio).chances({"table"})
        for ratio in (0.0, 0.5, 1.0)
    )
    assert easy == pytest.approx([0.5, 0.125, 0.125, 0.125, 0.125])
    assert half == pytest.approx([0.5, 0.3125, 0.0625, 0.0625, 0.0625])
    assert hard == pytest.approx([0.5, 0.5, 0, 0, 0])
    alone = PresenceBalance.of(held, vocabulary, balanced=False, hard_ratio=1.0).chances({"boat"})
    assert alone == pytest.approx([0.125, 0.125, 0.5, 0.125, 0.125])  # nothing was ever seen with it


def test_what_cannot_be_asked_or_balanced_is_named() -> None:
    held = [{"sky", "dog"}, {"sky"}, {"sky", "dog"}]
    balance = PresenceBalance.of(held, ("sky", "dog", "yeti", "elf"))
    assert balance.categories == asked_categories(held, ("sky", "dog", "yeti", "elf")) == ("dog",)
    assert list(balance.notes()) == [
        "never asked: 2 categories in no picture (yeti, elf)",
        "never asked: 1 categories in every picture (sky)",
        "not balanced, for want of pictures with and without: dog (yes to 67%)",
    ]
    many = PresenceBalance.of([{"dog"}, set()], ["dog", *(f"thing {n}" for n in range(30))])
    assert next(iter(many.notes())).endswith("thing 11 and 18 more)")


def test_where_nothing_tells_pictures_apart_it_says_so() -> None:
    with pytest.raises(
        ValueError, match=r"nothing to balance in 2 pictures: 1 categories in every picture \(a\); 1 cat.*--keep-empty"
    ):
        PresenceBalance.of([{"a"}, {"a"}], ("a", "b"))
    with pytest.raises(ValueError, match="there is no picture"):
        PresenceBalance.of([], ("a",))
    with pytest.raises(ValueError, match="hard_ratio"):
        PresenceBalance.of([{"a"}, {}], ("a",), hard_ratio=1.5)


def test_a_large_dataset_is_balanced_by_a_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agevlm.data.balance.MAX_PICTURES", 50)
    balance = PresenceBalance.of(HELD, CATEGORIES)
    assert balance.together.max() <= 50
    yes, no = np.sum(list(answers(balance, [set(picture) for picture in HELD]).values()), axis=0)
    assert yes / (yes + no) == pytest.approx(0.5, abs=0.05)


def test_conversations_ask_what_the_balance_chooses() -> None:
    balance = PresenceBalance.of(HELD, CATEGORIES)
    rng = np.random.default_rng(1)
    said: Counter[tuple[str, str]] = Counter()
    for picture in PICTURES:
        for conversation in make_conversations(
            picture, rng, CATEGORIES, {"presence": 1.0}, 30, Chooser(balance.choose)
        ):
            (grounding,) = conversation.groundings
            answer = conversation.messages[1].content
            assert grounding.present == (answer == "yes") == (grounding.phrase in picture.categories)
            said[grounding.phrase, answer] += 1
    for category in CATEGORIES:
        yes, no = said[category, "yes"], said[category, "no"]
        assert yes / (yes + no) == pytest.approx(0.5, abs=0.09)
