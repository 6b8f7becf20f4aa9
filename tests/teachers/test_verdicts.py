"""What counts as found, absent and unknown; and the teacher that reads a dataset's own annotations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from agevlm.data.masks import decode_mask, encode_mask
from agevlm.data.schema import AnnotatedImage, ImageSource, Instance
from agevlm.teachers.annotations import Annotations
from agevlm.teachers.base import Request, Thresholds, judge

THRESHOLDS = Thresholds(present=0.5, absent=0.2, max_area_ratio=0.9)


def make_masks(*areas: int) -> np.ndarray:
    """Masks of so many of a hundred pixels."""
    return (
        np.stack([(np.arange(100) < area).reshape(10, 10) for area in areas]) if areas else np.zeros((0, 10, 10), bool)
    )


@pytest.mark.parametrize(
    ("areas", "scores", "best", "present", "reason"),
    [
        ((10, 20), (0.6, 0.9), 0.9, True, "found"),
        ((10, 95), (0.6, 0.9), 0.9, True, "found"),
        ((95,), (0.9,), 0.9, None, "too large"),
        ((0,), (0.9,), 0.9, None, "empty mask"),
        ((), (), 0.1, False, "absent"),
        ((), (), 0.2, None, "uncertain"),
        ((10,), (0.4,), 0.4, None, "uncertain"),
    ],
)
def test_a_verdict_is_sure_or_says_that_it_is_not(
    areas: tuple[int, ...], scores: tuple[float, ...], best: float, present: bool | None, reason: str
) -> None:
    verdict = judge(make_masks(*areas), np.array(scores, np.float32), best, THRESHOLDS)
    assert (verdict.present, verdict.reason) == (present, reason)
    assert bool(verdict.masks) == bool(present)


def test_masks_come_best_first() -> None:
    verdict = judge(make_masks(10, 20, 95), np.array([0.6, 0.9, 0.95], np.float32), 0.95, THRESHOLDS)
    assert [int(decode_mask(mask).sum()) for mask in verdict.masks] == [20, 10]
    assert verdict.scores == pytest.approx((0.9, 0.6))


def test_thresholds_that_make_no_sense_are_refused() -> None:
    for wrong in ({"present": 0.1, "absent": 0.2}, {"present": 2, "absent": 0}, {"present": 1, "absent": -1}):
        with pytest.raises(ValueError, match="0 <= absent <= present <= 1"):
            Thresholds(**wrong)
    with pytest.raises(ValueError, match=r"max_area_ratio must lie in \(0, 1\]"):
        Thresholds(0.5, 0.1, 0.0)


# ------------------------------------------------------------------------------------------------------- annotations


class Filling:
    """A segmenter that fills the boxes, and finds nothing in boxes at the top."""

    def segment(self, images: Any, boxes: Any) -> Any:
        found = []
        for image, own in zip(images, boxes, strict=True):
            masks = np.zeros((len(own), image.height, image.width), dtype=bool)
            for mask, (left, top, right, bottom) in zip(masks, own.astype(int), strict=True):
                mask[top:bottom, left:right] = top > 0
            found.append((masks, np.ones(len(own), np.float32)))
        return found


def make_request(*phrases: str) -> Request:
    def instance(category: str, box: tuple[int, int, int, int], crowd: bool = False) -> Instance:
        x, y, _, _ = box
        mask = np.zeros((10, 10), dtype=bool)
        mask[y, x] = True
        return Instance(category, encode_mask(mask), box, 1.0, crowd=crowd)

    known = (instance("dog", (1, 2, 3, 4)), instance("cat", (5, 0, 2, 2)), instance("dog", (0, 1, 9, 9), crowd=True))
    annotated = AnnotatedImage(ImageSource("a", 10, 10), known)
    return Request(Image.new("RGB", (10, 10)), phrases, annotated)


def areas_of(verdicts: Any) -> list[list[int]]:
    return [[int(decode_mask(mask).sum()) for mask in verdict.masks] for verdict in verdicts]


def test_annotations_know_their_vocabulary_and_nothing_beyond() -> None:
    teacher = Annotations(["dog", "cat", "bird"])
    (verdicts,) = teacher.ground([make_request("dog", "bird", "kite", "cat")])
    assert [verdict.present for verdict in verdicts] == [True, False, None, True]
    assert areas_of(verdicts) == [[1, 1], [], [], [1]]
    (unknown,) = teacher.ground([Request(Image.new("RGB", (10, 10)), ("dog",))])
    assert unknown[0].present is None and unknown[0].reason == "not annotated"


def test_sharpened_boxes_take_the_place_of_masks_but_of_crowds() -> None:
    (verdicts, none) = Annotations(["dog", "cat"], Filling()).ground([make_request("dog", "cat"), make_request("bird")])
    assert areas_of(verdicts) == [[1, 12], [1]]  # a crowd as it was, a box filled; a box without a mask as it was
    assert none[0].present is None
