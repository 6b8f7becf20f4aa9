"""Teachers by name."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import torch

from agevlm.teachers.annotations import Annotations
from agevlm.teachers.base import Teacher, Thresholds
from agevlm.teachers.detectors import Detector, GroundingDino, Owlv2
from agevlm.teachers.grounded_sam import GroundedSam
from agevlm.teachers.sam3 import Sam3
from agevlm.teachers.segmenters import Sam, Sam2, Segmenter
from agevlm.teachers.stopwatch import Stopwatch

DETECTORS: dict[str, type[GroundingDino] | type[Owlv2]] = {"grounding-dino": GroundingDino, "owlv2": Owlv2}
TEACHERS = {
    "grounded-sam": "a detector finds boxes, SAM their masks",
    "sam2": "a detector finds boxes, SAM 2 their masks",
    "sam3": "SAM 3 finds the masks of a phrase",
    "annotations": "the instances that the dataset has",
    "annotations+sam": "the boxes of its instances, sharpened by SAM",
    "scenes": "the exact masks of the embedded world",
}


@dataclass(frozen=True)
class TeacherOptions:
    """Where a teacher's weights are (directories or hub ids) and how it runs. What is None is the teacher's default."""

    detector: str = "grounding-dino"
    detector_weights: str | None = None
    segmenter_weights: str | None = None
    dtype: str = "float32"
    device: str = "cpu"
    present: float | None = None  # thresholds, see `Thresholds`
    absent: float | None = None
    max_area_ratio: float | None = None


_HUB = {
    "grounding-dino": "IDEA-Research/grounding-dino-base",
    "owlv2": "google/owlv2-base-patch16-ensemble",
    "sam": "facebook/sam-vit-huge",
    "sam2": "facebook/sam2.1-hiera-large",
    "sam3": "facebook/sam3",
}


def load_teacher(
    name: str, options: TeacherOptions, vocabulary: Collection[str] = (), stopwatch: Stopwatch | None = None
) -> Teacher:
    """The teacher called `name`, one of `TEACHERS`; `vocabulary` is what was annotated in all pictures of the data.

    Weights that are not given come from the hub. `stopwatch` is told how long its
    steps take. An unknown name, dtype or detector is a ValueError.
    """
    stopwatch = stopwatch or Stopwatch()
    if name not in TEACHERS:
        raise ValueError(f"no teacher {name!r}; there are {', '.join(TEACHERS)}")
    if name in ("annotations", "scenes"):
        return Annotations(vocabulary)
    if name == "annotations+sam":
        return Annotations(vocabulary, _segmenter(Sam, "sam", options))
    if name == "sam3":
        weights = options.segmenter_weights or _HUB["sam3"]
        return Sam3(weights, _thresholds(Sam3.THRESHOLDS, options), _dtype(options), options.device, stopwatch)
    detector = _detector(options)
    segmenter = _segmenter(Sam2, "sam2", options) if name == "sam2" else _segmenter(Sam, "sam", options)
    return GroundedSam(detector, segmenter, _thresholds(detector.thresholds, options), stopwatch)


def _detector(options: TeacherOptions) -> Detector:
    if options.detector not in DETECTORS:
        raise ValueError(f"no detector {options.detector!r}; there are {', '.join(DETECTORS)}")
    weights = options.detector_weights or _HUB[options.detector]
    return DETECTORS[options.detector](weights, _dtype(options), options.device)


def _segmenter(kind: type[Sam] | type[Sam2], name: str, options: TeacherOptions) -> Segmenter:
    return kind(options.segmenter_weights or _HUB[name], _dtype(options), options.device)


def _thresholds(defaults: Thresholds, options: TeacherOptions) -> Thresholds:
    given = {name: getattr(options, name) for name in ("present", "absent", "max_area_ratio")}
    return replace(defaults, **{name: value for name, value in given.items() if value is not None})


def _dtype(options: TeacherOptions) -> torch.dtype:
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if options.dtype not in known:
        raise ValueError(f"no dtype {options.dtype!r}; there are {', '.join(known)}")
    return known[options.dtype]
