"""How answers are read: every protocol's rule on answers worked out by hand; one restated on random ones."""

from __future__ import annotations

import random

import pytest

from agevlm.evaluation.official import answers


@pytest.mark.parametrize(
    ("answer", "official", "exact", "one_of_two"),
    [
        ("yes", "yes", "yes", "yes"),
        ("Yes, there is a fish.", "yes", None, "yes"),
        ("No.", "no", None, "no"),
        (" NO ", "yes", "no", "no"),  # POPE's rule knows No and no, and no other spelling
        ("There is not. Yes", "no", None, "yes"),
        ("A fish", "yes", None, None),  # POPE's rule guesses
        ("", "yes", None, None),
        ("yes or no", "no", None, None),
        ("**Yes**", "yes", None, None),
        ("yes/no", "yes", None, None),
        ("Yes.No", "yes", None, None),  # a full stop goes, and the two words are one
        ("yes, 1,000 fish", "yes", None, "yes"),
        ("yes-1,000", "yes", None, None),  # a number with a comma: every mark goes without a space in its place
        ("It is: no", "no", None, "no"),
    ],
)
def test_yes_and_no(answer: str, official: str, exact: str | None, one_of_two: str | None) -> None:
    assert answers.pope_yes_no(answer) == official
    assert answers.exact_yes_no(answer) == exact
    assert answers.vlmevalkit_yes_no(answer) == one_of_two


def test_popes_guess_is_told_apart() -> None:
    guesses = ("A fish.", "", "NO", "No\nthere is none", "no!", "No;", "*No*", "It is there. Yes.", "eyes")
    assert [text for text in guesses if not answers.guessed_yes(text)] == []
    said = ("yes", "Yes!", "*Yes*", "no", "No.", "It is not", "No, there is none", "no yes")
    assert [text for text in said if answers.guessed_yes(text)] == []


@pytest.mark.parametrize(
    ("answer", "leading", "of_mmvp", "of_mmstar", "of_lmms_eval"),
    [
        ("B", "B", "B", "B", "B"),
        ("(b)", "B", "B", "B", None),
        ("b. boat", "B", "B", "B", None),
        ("A fish", "A", "A", "A", "A"),
        ("The answer is B", None, "B", "B", "B"),
        ("The answer is (B).", None, "B", None, "B"),
        ("option b", None, "B", "B", None),
        ("Because of it", "B", "B", "B", "B"),
        ("I see A and B: the answer is A.", None, "A", None, "A"),
        ("A or B", "A", "A", "A", "A"),
        ("(A) or (C)", "A", "A", "A", "C"),
        ("", None, None, None, None),
        ("fish", None, None, None, None),
        ("D: no", None, None, "D", "D"),
    ],
)
def test_letters(
    answer: str, leading: str | None, of_mmvp: str | None, of_mmstar: str | None, of_lmms_eval: str | None
) -> None:
    assert answers.leading_letter(answer, "ABC") == leading
    assert answers.a_or_b(answer) == of_mmvp
    assert answers.mmstar_letter(answer) == of_mmstar
    assert answers.lmms_eval_letter(answer, "ABCD") == of_lmms_eval


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("(B) boat", "B"),
        ("A or B", None),  # two letters, and no option is named
        ("a boat", "B"),
        ("A boat", "A"),  # the article is the only letter, and among the last five words
        ("A b c d e boat", "B"),  # too far from the end for a letter
        ("fish and boat", None),
        ("Cannot determine the answer", None),
        ("Z", None),
        ("the thing is a boat of the kind that people in the north would have called so long ago", None),  # too long
    ],
)
def test_vlmevalkits_letter_or_option(answer: str, letter: str | None) -> None:
    assert answers.vlmevalkit_letter(answer, {"A": "fish", "B": "boat"}) == letter


@pytest.mark.parametrize(
    ("answer", "text"),
    [("The answer is: (A).", ": (a"), ("Answer: b", "b"), ("(c)", "c"), ("the answer is x. answer is d", "d")],
)
def test_cambrians_text(answer: str, text: str) -> None:
    assert answers.cambrian_text(answer) == text


def test_lmms_evals_letter_restated_on_random_answers() -> None:
    """The same rule, written from its order of forms: first the form, then the last place, then the earlier letter."""
    pieces = [
        "A",
        "B",
        "C",
        "a",
        " ",
        ".",
        ":",
        ")",
        "(",
        "the answer is",
        "I choose",
        "\n",
        "cat",
        "B.",
        "(C)",
        ",",
        "!",
    ]
    rng = random.Random(0)
    for _ in range(3000):
        answer = "".join(rng.choice(pieces) for _ in range(rng.randrange(8)))
        assert answers.lmms_eval_letter(answer, "ABCD") == restated(answer, "ABCD"), answer


def restated(answer: str, letters: str) -> str | None:
    text = answer.strip()
    for mark in [",", ".", "!", "?", ";", ":", "'", '"']:
        text = text.strip(mark)
    text = f" {text} "
    inner = text.strip()
    if not inner:
        return None
    starts = [c for c in letters if inner.startswith(c)]
    for c in starts:
        if len(inner) == 1 or not inner[1].isalpha():
            return c
    for c in letters:
        if inner.endswith(c) and not inner[-2:-1].isalpha():
            return c
    low = text.lower()
    phrases = ["the answer is", "answer is", "i choose"]
    behind = {
        c: max(
            (
                text.find(c, low.find(p) + len(p))
                for p in phrases
                if p in low and text.find(c, low.find(p) + len(p)) >= 0
            ),
            default=-1,
        )
        for c in letters
    }
    if max(behind.values()) >= 0:
        return max(letters, key=lambda c: behind[c])
    for form in ("({})", "{}.", "{}:", "{})", "{} "):
        places = {c: text.rfind(form.format(c)) for c in letters}
        if max(places.values()) >= 0:
            return max(letters, key=lambda c: places[c])
    places = {c: text.rfind(c) for c in letters}
    return max(letters, key=lambda c: places[c]) if max(places.values()) >= 0 else None
