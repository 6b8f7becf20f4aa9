"""Answers less the prior, for a model that looks at the picture and for one that does not."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from agevlm.data.images import png_bytes
from agevlm.data.schema import ImageSource, Sample
from agevlm.evaluation.prior import _less
from agevlm.evaluation.runner import evaluate

from .conftest import tiny_model


def blank_of(sample: Sample) -> Sample:
    sides = [(image.height, image.width) for image in sample.images]
    grey = [png_bytes(np.full((*side, 3), 127, dtype=np.uint8)) for side in sides]
    pairs = enumerate(zip(sides, grey, strict=True))
    images = tuple(ImageSource(f"blank-{number}", *side, data=data) for number, (side, data) in pairs)
    return replace(sample, images=images)


def test_what_a_blank_picture_says_is_taken_off(model: Any, processor: Any, samples: list[Sample]) -> None:
    found = evaluate(model, processor, samples, correct_prior=True)
    blank = evaluate(model, processor, [blank_of(sample) for sample in samples])
    plain = evaluate(model, processor, samples)
    priors = {p.question.id: p.p_yes for p in blank.predictions}
    right = []
    for prediction in plain.predictions:
        if prediction.question.kind == "pope.random" and prediction.p_yes is not None:
            prior = priors[prediction.question.id]
            right.append(("yes" if prediction.p_yes > prior else "no") == prediction.expected)
    corrected = found.metrics["prior_corrected"]
    assert corrected["pope"]["random"]["accuracy"] == pytest.approx(sum(right) / len(right))
    assert 0 <= corrected["blank_yes_ratio"] <= 1
    assert {name: value for name, value in found.metrics.items() if name != "prior_corrected"} == plain.metrics
    assert "prior_corrected" not in plain.metrics


def test_a_model_that_does_not_look_is_left_with_a_coin(processor: Any, samples: list[Sample]) -> None:
    blind = tiny_model(processor)
    for name, weight in blind.named_parameters():
        if name.endswith("_gate"):
            weight.data.zero_()
    found = evaluate(blind, processor, samples, correct_prior=True)
    scores = found.metrics["prior_corrected"]["pope"]["adversarial"]
    assert scores["auroc"] == pytest.approx(0.5, abs=1e-6)
    assert scores["accuracy"] == pytest.approx(0.5)


@pytest.mark.parametrize(("chance", "prior", "expected"), [(0.8, 0.8, 0.5), (0.8, 0.5, 0.8), (1.0, 0.0, 1.0)])
def test_log_odds_are_taken_off(chance: float, prior: float, expected: float) -> None:
    assert _less(chance, prior) == pytest.approx(expected, abs=1e-4)
    assert math.isfinite(_less(prior, chance))
