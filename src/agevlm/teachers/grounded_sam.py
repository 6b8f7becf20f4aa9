"""Grounded SAM (Ren et al. 2024, arXiv 2401.14159): phrases become boxes by a detector, boxes masks by a segmenter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from agevlm.teachers.base import Request, Thresholds, Verdict, ground_readable, judge
from agevlm.teachers.detectors import Detection, Detector
from agevlm.teachers.segmenters import Segmenter
from agevlm.teachers.stopwatch import Stopwatch


@dataclass(frozen=True)
class GroundedSam:
    """A teacher of two networks; a mask's score is that of its box."""

    detector: Detector
    segmenter: Segmenter
    thresholds: Thresholds
    stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def ground(self, requests: Sequence[Request]) -> list[list[Verdict]]:
        """As `Teacher` says. Pictures without any box are not segmented."""
        return ground_readable(requests, self.detector.reads, self._ground)

    def _ground(self, requests: Sequence[Request]) -> list[list[Verdict]]:
        images = [request.image for request in requests]
        phrases = [request.phrases for request in requests]
        with self.stopwatch("detect", sum(map(len, phrases))):
            found = self.detector.detect(images, phrases, self.thresholds.present)
        boxed = [number for number, detections in enumerate(found) if any(len(d.boxes) for d in detections)]
        boxes = [np.concatenate([detection.boxes for detection in found[number]]) for number in boxed]
        with self.stopwatch("segment", sum(map(len, boxes))):
            masks = self.segmenter.segment([images[number] for number in boxed], boxes) if boxed else []
        by_picture = dict(zip(boxed, (own for own, _ in masks), strict=True))
        with self.stopwatch("encode", sum(map(len, boxes))):
            return [self._judge(detections, by_picture.get(number)) for number, detections in enumerate(found)]

    def _judge(self, detections: Sequence[Detection], masks: np.ndarray | None) -> list[Verdict]:
        verdicts, start = [], 0
        for detection in detections:
            end = start + len(detection.boxes)
            own = np.zeros((0, 1, 1), dtype=bool) if masks is None else masks[start:end]
            verdicts.append(judge(own, detection.scores, detection.best, self.thresholds))
            start = end
        return verdicts
