"""What people are told where they ask for more than a model says that it learned."""

from __future__ import annotations

import pytest

from agevlm.analysis.learned import fitting_questions, question_notice, unlearned_notice

PRESENCE = ["presence"]


@pytest.mark.parametrize(
    "question",
    [
        "How many people are there?",
        "what color is the car",
        "Look at this photo. Where is the dog?",
        "Describe the image.",
    ],
)
def test_a_kind_that_was_never_asked_is_told(question: str) -> None:
    told = question_notice(question, "photos", PRESENCE)
    assert told == (
        "photos learned to answer “is there a …?” and was hardly ever asked this, so its answer means nothing"
    )


@pytest.mark.parametrize(
    ("question", "known"),
    [
        ("Is there a dog in the picture?", PRESENCE),
        ("are there any dogs?", PRESENCE),
        ("In this picture, is there a dog?", PRESENCE),  # opens in no known way
        ("Gibt es einen Hund?", PRESENCE),
        ("a dog", PRESENCE),
        ("is there a dog? tell me", PRESENCE),  # one sentence is of the kind that was asked
        ("how many dogs are there?", ["counting", "presence"]),
        ("how many dogs are there?", ["conversation", "vqa"]),  # of others: what they ask is not known
        ("how many dogs are there?", ["conversation"]),
        ("how many dogs are there?", []),
        ("how many dogs are there?", None),
    ],
)
def test_else_nothing_is_told(question: str, known: list[str] | None) -> None:
    assert question_notice(question, "photos", known) is None


@pytest.mark.parametrize(
    ("words", "questions", "first"),
    [
        (["airplane", "dog", "person"], PRESENCE, "Is there a person in the picture?"),
        (["oven", "umbrella"], ["counting", "presence"], "Is there an oven in the picture?"),
        (["dog"], ["caption", "presence"], "What is in the picture?"),
        (["dog"], ["counting"], "What is in the picture?"),
        (["dog"], None, "What is in the picture?"),
        (None, PRESENCE, "What is in the picture?"),
    ],
)
def test_questions_fit_what_was_learned(words: list[str] | None, questions: list[str] | None, first: str) -> None:
    assert fitting_questions(words, questions)[0] == first


def test_a_word_that_was_not_learned_is_told_with_the_nearest() -> None:
    told = unlearned_notice("dogs", "photos", ["cat", "dog", "sheep"])
    assert told == "dogs: not among the 3 words that photos learned (dog, …), so its answer means nothing"
