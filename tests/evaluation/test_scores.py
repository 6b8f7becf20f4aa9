"""The scorers on answers counted by hand."""

from __future__ import annotations

import numpy as np
import pytest

from agevlm.data.language import CAPTION_REQUESTS
from agevlm.evaluation.scores import (
    Prediction,
    Question,
    auroc,
    bootstrap_interval,
    interval_of_mean,
    judge,
    summarise,
)

GOLDEN = ["Yes.", "yes, there is", "There is no dog", "", "unsure", "No", "not sure, yes"]
TRUTH = ["yes", "no", "no", "yes", "no", "no", "yes"]


def _questions(kind: str, references: list[str], images: list[str] | None = None) -> list[Question]:
    names = images or [f"image-{number}" for number in range(len(references))]
    return [
        Question(f"{kind}-{n}", image, kind, "?", ref)
        for n, (ref, image) in enumerate(zip(references, names, strict=True))
    ]


def _judge(kind: str, references: list[str], answers: list[str], **options: object) -> list[Prediction]:
    questions = _questions(kind, references)
    by_id = {question.id: answer for question, answer in zip(questions, answers, strict=True)}
    return judge(questions, by_id, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("parser", "accuracy", "precision", "recall", "yes_ratio", "false_yes", "unparsed"),
    [
        # original reads yes yes no yes yes no no, first_word yes yes - - - no -, strict - - - - - no -
        ("original", 4 / 7, 2 / 4, 2 / 3, 4 / 7, 2 / 4, 0.0),
        ("first_word", 2 / 7, 1 / 2, 1 / 3, 2 / 7, 1 / 4, 4 / 7),
        ("strict", 1 / 7, 0.0, 0.0, 0.0, 0.0, 6 / 7),
    ],
)
def test_golden_pope(
    parser: str, accuracy: float, precision: float, recall: float, yes_ratio: float, false_yes: float, unparsed: float
) -> None:
    scores = summarise(_judge("pope.random", TRUTH, GOLDEN, parser=parser))["pope"]["random"]
    assert scores["accuracy"] == pytest.approx(accuracy)
    assert scores["precision"] == pytest.approx(precision)
    assert scores["recall"] == pytest.approx(recall)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    assert scores["f1"] == pytest.approx(f1)
    assert scores["yes_ratio"] == pytest.approx(yes_ratio)
    assert scores["false_yes_ratio"] == pytest.approx(false_yes)
    assert scores["unparsed_ratio"] == pytest.approx(unparsed)
    assert scores["reference_yes_ratio"] == pytest.approx(3 / 7)


def test_all_no_divides_by_nothing() -> None:
    scores = summarise(_judge("pope.random", ["no", "no"], ["no", "no"]))["pope"]["random"]
    assert (scores["accuracy"], scores["precision"], scores["recall"], scores["f1"]) == (1.0, 0.0, 0.0, 0.0)
    assert "auroc" not in scores


def test_pope_mean_and_auroc() -> None:
    predictions = []
    for split, answers in (("random", ["yes", "no"]), ("popular", ["yes", "yes"]), ("adversarial", ["no", "yes"])):
        chances = {f"pope.{split}-0": 0.9, f"pope.{split}-1": 0.2 if split == "random" else 0.9}
        predictions += _judge(f"pope.{split}", ["yes", "no"], answers, p_yes=chances)
    pope = summarise(predictions)["pope"]
    assert [pope[s]["accuracy"] for s in ("random", "popular", "adversarial")] == [1.0, 0.5, 0.0]
    assert pope["mean"]["accuracy"] == pytest.approx(0.5)
    assert pope["mean"]["yes_ratio"] == pytest.approx(2 / 3)
    assert (pope["random"]["auroc"], pope["popular"]["auroc"]) == (1.0, 0.5)


def test_joined_on_id() -> None:
    questions = _questions("colour", ["red", "blue"])
    right = judge(questions, {"colour-1": "blue", "colour-0": "red"})
    assert all(prediction.correct for prediction in right)
    with pytest.raises(ValueError, match=r"1 questions without an answer.*colour-1.*1 answers without a question.*x"):
        judge(questions, {"colour-0": "red", "x": "blue"})
    with pytest.raises(ValueError, match="unique"):
        judge([questions[0], questions[0]], {"colour-0": "red"})


def test_counting() -> None:
    scores = summarise(_judge("counting", ["two", "three", "two", "zero"], ["2", "five", "many", "none"]))["counting"]
    assert scores["accuracy"] == 0.25
    assert scores["unparsed_ratio"] == 0.5
    assert scores["mean_absolute_error"] == 1.0  # 0 and 2
    assert scores["by_number"]["2"] == {"accuracy": 0.5, "num_questions": 2}
    assert list(scores["by_number"]) == ["0", "2", "3"]


def test_colour_takes_the_first_colour_and_knows_the_benchmark_s_own() -> None:
    predictions = _judge("colour", ["red", "teal", "blue"], ["it is red", "Teal.", "big"])
    assert [prediction.parsed for prediction in predictions] == ["red", "teal", None]
    assert summarise(predictions)["colour"]["accuracy"] == pytest.approx(2 / 3)


def test_relation_pools_both_forms() -> None:
    predictions = _judge("relation.yes_no", ["yes", "no", "no"], ["yes", "no", "yes"])
    predictions += _judge("relation.choice", ["left", "above", "right"], ["to the left", "left", "right"])
    relation = summarise(predictions)["relation"]
    assert relation["accuracy"] == pytest.approx(4 / 6)
    assert relation["yes_no"]["accuracy"] == pytest.approx(2 / 3)
    assert relation["choice"]["accuracy"] == pytest.approx(2 / 3)
    assert relation["choice"]["unparsed_ratio"] == pytest.approx(1 / 3)  # "left" says nothing about above or below


def test_location_caption_and_unknown_kinds() -> None:
    predictions = _judge("location", ["top left", "bottom right"], ["left, at the top", "bottom"])
    predictions += _judge("caption", ["a red cup."], ["anything"])
    predictions += _judge("conversation", ["yes", "two"], ["Yes.", "Two!"])
    summary = summarise(predictions)
    assert (summary["location"]["accuracy"], summary["location"]["unparsed_ratio"]) == (0.5, 0.5)
    assert summary["caption"] == {"num_questions": 1, "scored": False}
    assert summary["conversation"]["accuracy"] == 1.0


def test_what_a_conversation_ends_with_is_read_by_its_reference() -> None:
    references = ["no", "three", "red", "top left", "a boat", "a red cup and a blue fish below it."]
    answers = ["No, it is not.", "there are 3", "it is red", "left, at the top", "A boat.", "anything"]
    predictions = _judge("conversation", references, answers)
    assert [prediction.correct for prediction in predictions] == [True, True, True, True, True, None]
    summary = summarise(predictions)["conversation"]
    assert (summary["accuracy"], summary["num_questions"], summary["num_not_scored"]) == (1.0, 5, 1)
    request = Question("x", "i", "conversation", CAPTION_REQUESTS[0], "a fish.")
    assert judge([request], {"x": "a fish."})[0].correct is None


def test_reference_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"pope\.random-0.*'maybe'"):
        _judge("pope.random", ["maybe"], ["yes"])


def test_interval_draws_whole_images() -> None:
    answers = ["yes"] * 20 + ["no"] * 20
    alone = _questions("pope.random", ["yes"] * 40)
    together = _questions("pope.random", ["yes"] * 40, [f"image-{n // 10}" for n in range(40)])
    by_id = {question.id: answer for question, answer in zip(alone, answers, strict=True)}
    narrow, wide = bootstrap_interval(judge(alone, by_id)), bootstrap_interval(judge(together, by_id))
    assert wide[0] < narrow[0] < 0.5 < narrow[1] < wide[1]
    assert bootstrap_interval(judge(alone, by_id)) == narrow
    assert interval_of_mean([[1.0, 0.0]]) == (0.5, 0.5)


def test_auroc_equals_the_count_of_pairs() -> None:
    rng = np.random.default_rng(3)
    high, low = rng.integers(0, 6, 40) + 1.0, rng.integers(0, 6, 30) * 1.0
    pairs = np.mean([(h > n) + 0.5 * (h == n) for h in high for n in low])
    assert auroc(high, low) == pytest.approx(float(pairs))
    with pytest.raises(ValueError, match="0 positive"):
        auroc([], low)
