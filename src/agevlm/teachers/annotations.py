"""A teacher that is told: the instances that a dataset has, as they are or with their boxes sharpened by SAM."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from agevlm.data.masks import encode_mask
from agevlm.data.schema import RLE, Instance
from agevlm.teachers.base import Request, Verdict, is_thin
from agevlm.teachers.segmenters import Segmenter


class Annotations:
    """A phrase is a category: its instances are the masks.

    A category of `vocabulary` without instances is surely absent, for all of the vocabulary was annotated; of any other
    phrase, and of pictures without annotations, nothing is known. With a `segmenter` each instance's box is segmented
    anew, which makes masks of datasets that have boxes alone; crowds and pictures too thin for it keep what they have.
    """

    def __init__(self, vocabulary: Collection[str], segmenter: Segmenter | None = None) -> None:
        self.vocabulary, self.segmenter = frozenset(vocabulary), segmenter

    def ground(self, requests: Sequence[Request]) -> list[list[Verdict]]:
        """As `Teacher` says."""
        meant = [self._meant(request) for request in requests]
        masks = self._sharpened(requests, meant) if self.segmenter else [_own(instances) for instances in meant]
        return [self._judge(*pair) for pair in zip(requests, masks, strict=True)]

    def _meant(self, request: Request) -> list[Instance]:
        known = request.annotated.instances if request.annotated else ()
        return [instance for instance in known if instance.category in request.phrases]

    def _judge(self, request: Request, masks: Sequence[tuple[str, RLE]]) -> list[Verdict]:
        verdicts = []
        for phrase in request.phrases:
            own = tuple(mask for category, mask in masks if category == phrase)
            if own:
                verdicts.append(Verdict(True, "found", own, (1.0,) * len(own)))
            elif request.annotated is not None and phrase in self.vocabulary:
                verdicts.append(Verdict(False, "absent"))
            else:
                verdicts.append(Verdict(None, "not annotated"))
        return verdicts

    def _sharpened(
        self, requests: Sequence[Request], meant: Sequence[Sequence[Instance]]
    ) -> list[list[tuple[str, RLE]]]:
        assert self.segmenter is not None
        pairs = list(zip(requests, meant, strict=True))
        single = [[one for one in instances if not _stays(one, request)] for request, instances in pairs]
        asked = [number for number, instances in enumerate(single) if instances]
        boxes = [np.array([_corners(i.box) for i in single[number]], dtype=np.float32) for number in asked]
        found = self.segmenter.segment([requests[n].image for n in asked], boxes) if asked else []
        masks = [_own([one for one in instances if _stays(one, request)]) for request, instances in pairs]
        for number, (sharp, _) in zip(asked, found, strict=True):
            for instance, mask in zip(single[number], sharp, strict=True):  # where SAM finds nothing, what was known
                masks[number].append((instance.category, encode_mask(mask) if mask.any() else instance.mask))
        return masks


def _stays(instance: Instance, request: Request) -> bool:
    """Whether an instance keeps the mask that it has."""
    return instance.crowd or is_thin(request.image)


def _own(instances: Sequence[Instance]) -> list[tuple[str, RLE]]:
    return [(instance.category, instance.mask) for instance in instances]


def _corners(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x, y, width, height = box
    return x, y, x + width, y + height
