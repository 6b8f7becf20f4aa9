"""Golden answers of every parser."""

from __future__ import annotations

import pytest

from agevlm.evaluation.parsing import YES_NO_PARSERS, parse_choice, parse_number, parse_yes_no

GOLDEN = [  # answer, original, strict, first_word
    ("Yes.", "yes", None, "yes"),
    ("yes, there is", "yes", None, "yes"),
    ("There is no dog", "no", None, None),
    ("", "yes", None, None),
    ("unsure", "yes", None, None),
    ("No", "no", "no", "no"),
    ("not sure, yes", "no", None, None),
    ("YES", "yes", "yes", "yes"),
    (" no \n", "no", "no", "no"),
    ("No, there is not.", "no", None, "no"),
    ("Yes. There is no doubt.", "yes", None, "yes"),
    ("nothing", "yes", None, None),
    ("'No'", "yes", None, "no"),
]


@pytest.mark.parametrize(("answer", "original", "strict", "first_word"), GOLDEN)
def test_yes_no(answer: str, original: str, strict: str | None, first_word: str | None) -> None:
    assert parse_yes_no(answer, "original") == original
    assert parse_yes_no(answer, "strict") == strict
    assert parse_yes_no(answer) == parse_yes_no(answer, "first_word") == first_word


def test_unknown_parser_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"'loose'.*" + ", ".join(YES_NO_PARSERS)):
        parse_yes_no("yes", "loose")


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        ("3", 3),
        ("Three.", 3),
        ("There are two fish and 4 cups", 2),
        ("zero", 0),
        ("twenty!", 20),
        ("none", None),
        ("someone", None),
        ("", None),
        ("3rd", None),
        ("12 cups", 12),
        ("²", None),
    ],
)
def test_number(answer: str, number: int | None) -> None:
    assert parse_number(answer) == number


@pytest.mark.parametrize(
    ("answer", "choice"),
    [("Red.", "red"), ("the cup is blue, not red", "blue"), ("reddish", None), ("", None), ("It's RED", "red")],
)
def test_choice(answer: str, choice: str | None) -> None:
    assert parse_choice(answer, ["red", "blue"]) == choice
