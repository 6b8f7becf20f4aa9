"""Figures of one run: what they need, what becomes of them in draws, and those of records written by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from agevlm.evaluation.run_figures import Ranks, Share, figure_of
from agevlm.evaluation.scores import auroc


def test_a_figure_needs_questions_with_ids_of_their_own() -> None:
    with pytest.raises(ValueError, match="2 ids, 1 of them distinct"):
        Share(["a", "a"], ["x", "x"], [1, 1], [1, 1])
    with pytest.raises(ValueError, match="0 ids"):
        Share([], [], [], [])


def test_auroc_of_draws_is_that_of_the_drawn_questions() -> None:
    rng = np.random.default_rng(9)
    scores, positive = rng.integers(0, 6, 60) / 5, rng.random(60) < 0.5  # with ties
    images = [f"i{number % 13:02}" for number in range(60)]
    ranks = Ranks([str(number) for number in range(60)], images, scores, positive)
    assert ranks.value == pytest.approx(auroc(scores[positive], scores[~positive]))
    assert ranks.drawn(np.ones((1, 13)))[0] == pytest.approx(ranks.value)
    counts = rng.integers(0, 3, (4, 13)).astype(float)
    for row, drawn in zip(counts, ranks.drawn(counts), strict=True):
        times = np.array([int(row[int(image[1:])]) for image in images])
        picked = np.repeat(np.arange(60), times)
        high, low = scores[picked][positive[picked]], scores[picked][~positive[picked]]
        assert drawn == pytest.approx(auroc(high, low))
    assert math.isnan(Ranks(["a"], ["x"], [0.5], [True]).value)


def _record(number: int, kind: str, reference: str, parsed: str | None, p_yes: float | None = None, **word: Any) -> Any:
    return {
        "id": f"{kind}-{number}",
        "image": f"image-{number // 2}",
        "kind": kind,
        "question": f"question {number}",
        "reference": reference,
        "parsed": parsed,
        "correct": parsed == reference,
        "p_yes": p_yes,
        "words": [word] if word else [],
    }


def _pope(split: str, *parsed: str | None) -> list[Any]:
    """Questions whose right answers are yes, no, yes, no."""
    chances = {"yes": 0.9, "no": 0.2, None: 0.4}
    return [
        _record(number, f"pope.{split}", "yes" if number % 2 == 0 else "no", said, chances[said])
        for number, said in enumerate(parsed)
    ]


def test_figures_of_records() -> None:
    records = [
        *_pope("random", "yes", "no", None, "yes"),
        *_pope("adversarial", "yes", "yes", "yes", "yes"),
        _record(0, "counting", "2", "3"),
        _record(0, "relation.yes_no", "yes", "yes", 0.8),
        _record(0, "relation.choice", "left", "right"),
    ]
    values = {
        "pope.random.accuracy": 0.5,
        "pope.random.error": 0.5,
        "pope.random.unparsed_ratio": 0.25,
        "pope.random.precision": 0.5,
        "pope.random.recall": 0.5,
        "pope.random.f1": 0.5,
        "pope.random.yes_ratio": 0.5,
        "pope.random.false_yes_ratio": 0.5,
        "pope.random.auroc": (1 + 0.5 + 1 + 0) / 4,
        "pope.adversarial.recall": 1.0,
        "pope.mean.recall": 0.75,
        "pope.mean.f1": (0.5 + 2 / 3) / 2,
        "counting.accuracy": 0.0,
        "relation.accuracy": 0.5,
    }
    assert {name: figure_of(records, name).value for name in values} == pytest.approx(values)
    for name in ("counting.f1", "pope.popular.accuracy", "accuracy", "null_token.auroc", "pope.mean.auroc", "nonsense"):
        with pytest.raises(ValueError, match="figure"):
            figure_of(records, name)


def test_precision_without_a_yes_is_0_as_in_the_scores() -> None:
    records = [*_pope("random", "no", "no"), *_pope("popular", "yes", "no")]
    assert figure_of(records, "pope.random.precision").value == 0.0
    assert figure_of(records, "pope.mean.precision").value == 0.5


def test_figures_of_words_count_a_shared_question_once() -> None:
    hit = {"present": True, "pointing": True, "mass": 0.8, "iou": 0.5, "null_mass": 0.1}
    miss = {"present": True, "pointing": False, "mass": 0.2, "iou": 0.1, "null_mass": 0.6}
    gone = {"present": False, "pointing": None, "mass": None, "iou": None, "null_mass": 0.4}
    records = [
        _record(0, "pope.random", "yes", "yes", 0.9, **hit),
        _record(0, "pope.popular", "yes", "yes", 0.9, **hit),
        _record(1, "pope.random", "yes", "yes", 0.9, **miss),
        _record(2, "pope.random", "no", "no", 0.1, **gone),
    ]
    names = (
        "pointing.accuracy",
        "attention.mass",
        "attention.iou",
        "null_token.mass_present",
        "null_token.mass_absent",
    )
    values = [figure_of(records, name).value for name in (*names, "null_token.auroc")]
    assert values == pytest.approx([0.5, 0.5, 0.3, 0.35, 0.4, 0.5])
    assert figure_of(records, "pointing.accuracy").ids == ("pope.random-0#0", "pope.random-1#0")
