"""Detectors whose quality is known."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agevlm.evaluation.detection import calibration_error, cross_fitted, detect, evidence, reliability
from agevlm.evaluation.scores import auroc
from agevlm.evaluation.statistics import difference


def _records(
    absent: NDArray[np.bool_], p_absent: NDArray[Any], entropy: NDArray[Any] | None = None, *, null_token: bool = True
) -> list[dict[str, Any]]:
    """Both splits on 20 pictures; the null mass and P(no) are `p_absent`."""
    records: list[dict[str, Any]] = []
    for split in ("random", "adversarial"):
        for number, is_absent in enumerate(absent.tolist()):
            word = {"phrase": "cup", "present": not is_absent, "null_mass": None}
            if null_token:
                word["null_mass"] = float(p_absent[number])
            if entropy is not None:
                word["entropy"] = float(entropy[number])
            records.append(
                {
                    "id": f"{split}-{number}",
                    "image": f"image-{number % 20:03}",
                    "kind": f"pope.{split}",
                    "question": f"question {number}",
                    "reference": "no" if is_absent else "yes",
                    "p_yes": 1 - float(p_absent[number]),
                    "words": [word],
                }
            )
    return records


def _calibrated(num: int, seed: int = 0) -> tuple[NDArray[np.bool_], NDArray[Any]]:
    rng = np.random.default_rng(seed)
    p_absent = rng.random(num)
    return rng.random(num) < p_absent, p_absent


def test_a_perfect_detector() -> None:
    absent = np.arange(80) % 4 < 2
    found = detect({seed: _records(absent, absent.astype(float), absent * 0.5 + 0.25) for seed in range(3)})
    assert set(found) == {"random", "adversarial"}
    for detectors in found.values():
        assert list(detectors) == ["null_mass", "p_no", "entropy"]
        for name, detection in detectors.items():
            assert (detection.auroc.mean, detection.auroc.high, detection.num_questions) == (1.0, 1.0, 240), name
            assert 0.9 < detection.auroc.low < 1, name
            assert detection.fitted.error.mean < 0.01
        assert detectors["null_mass"].as_is is not None
        assert detectors["null_mass"].as_is.error.mean == 0.0
        assert detectors["entropy"].as_is is None
    json.dumps(found["random"]["entropy"].record(), allow_nan=False)


def test_a_calibrated_detector_has_no_error_and_a_shy_one_has() -> None:
    absent, p_absent = _calibrated(8000)
    good = detect({0: _records(absent, p_absent)})["random"]["null_mass"]
    shy = detect({0: _records(absent, 0.4 + 0.2 * p_absent)})["random"]["null_mass"]
    assert good.as_is is not None and shy.as_is is not None
    assert good.as_is.error.mean < 0.02
    assert shy.as_is.error.mean == pytest.approx(0.2, abs=0.02)  # mean of |p - 0.5| * 0.8
    assert shy.auroc.mean == pytest.approx(good.auroc.mean)
    assert shy.fitted.error.mean < 0.05  # the curve takes most of it away
    assert sum(one.num_questions for one in good.as_is.bins) == 8000


def test_the_curve_turns_any_scale_into_probabilities() -> None:
    rng = np.random.default_rng(1)
    score = rng.normal(0, 1, 6000)
    absent = rng.random(6000) < 1 / (1 + np.exp(-(2 * score - 0.5)))
    images = [f"image-{number // 3:04}" for number in range(6000)]
    for scale in (5.0, -0.01):
        probability = cross_fitted(scale * score + 3, absent, images)
        assert calibration_error(reliability(probability, absent)) < 0.03
        assert probability == pytest.approx(1 / (1 + np.exp(-(2 * score - 0.5))), abs=0.05)


def test_the_curve_is_fitted_on_other_pictures() -> None:
    rng = np.random.default_rng(2)
    score, absent = rng.random(400), rng.random(400) < 0.5
    images = [f"image-{number // 4:03}" for number in range(400)]
    odd = np.array([int(image[-3:]) % 2 == 1 for image in images])
    one = cross_fitted(score, absent, images)
    two = cross_fitted(score, np.where(odd, ~absent, absent), images)
    assert (one[odd] == two[odd]).all()
    assert (one[~odd] != two[~odd]).any()


def test_the_curve_stays_finite() -> None:
    absent = np.arange(40) % 2 == 0
    images = [f"image-{number // 4:03}" for number in range(40)]
    assert np.isfinite(cross_fitted(absent.astype(float), absent, images)).all()
    assert cross_fitted(np.full(40, 0.3), absent, images) == pytest.approx(0.5)  # a number that tells nothing
    one_picture = cross_fitted([0.1, 0.9], [0, 1], ["same", "same"])
    halves_of_one_class = cross_fitted([0.1, 0.9], [0, 1], ["even", "odd"])
    assert one_picture[1] > 0.9 > 0.1 > one_picture[0]
    assert halves_of_one_class == pytest.approx(one_picture)


def test_reliability_bins() -> None:
    bins = reliability([0.0, 0.04, 0.55, 1.0, 1.0 + 1e-6], [0, 1, 1, 1, 0])
    assert [one.num_questions for one in bins] == [2, 0, 0, 0, 0, 1, 0, 0, 0, 2]
    assert (bins[0].absent, bins[0].probability, bins[1].absent) == (0.5, pytest.approx(0.02), None)
    assert calibration_error(bins) == pytest.approx((2 * 0.48 + 0.45 + 2 * 0.5) / 5, abs=1e-5)
    with pytest.raises(ValueError, match="from 0 to 1"):
        reliability([1.5], [1])


def test_what_a_model_lacks_is_left_out() -> None:
    absent, p_absent = _calibrated(200)
    plain = detect({0: _records(absent, p_absent, null_token=False)})
    assert list(plain["adversarial"]) == ["p_no"]
    wordless = [{**record, "words": []} for record in _records(absent, p_absent)]
    assert list(detect({0: wordless})["random"]) == ["p_no"]
    mixed = detect({0: _records(absent, p_absent, p_absent), 1: _records(absent, p_absent)})
    assert mixed["random"]["entropy"].auroc.seeds == (0,)
    assert evidence([r for r in _records(absent, p_absent) if r["reference"] == "no"], "random", "p_no") is None
    assert detect({0: []}) == {}


def test_detectors_are_compared_on_the_same_questions() -> None:
    absent, p_absent = _calibrated(400)
    noise = np.random.default_rng(3).random(400)
    records = _records(absent, p_absent, noise)
    mass, entropy = (evidence(records, "random", name) for name in ("null_mass", "entropy"))
    assert mass is not None and entropy is not None
    assert mass.value == pytest.approx(auroc(p_absent[absent], p_absent[~absent]))
    assert difference({0: mass}, {0: entropy}).low > 0.2
    found = detect({0: records})["random"]
    assert found["p_no"].minus_answer is None
    assert found["null_mass"].minus_answer is not None and found["entropy"].minus_answer is not None
    assert found["null_mass"].minus_answer.mean == 0.0  # the same numbers
    assert found["entropy"].minus_answer == difference({0: entropy}, {0: mass})
