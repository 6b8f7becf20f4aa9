"""Masks as a worse teacher would give them, for asking how good one must be: as boxes, of something else, or none.

What is spoiled is a function of the sample and the phrase alone: a teacher is wrong about the same thing every time.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from pydantic import Field

from agevlm.data.masks import decode_mask, encode_mask
from agevlm.data.schema import RLE, Conversation, Grounding, Sample
from agevlm.documents import Strict

Row = tuple[Sample, Conversation]


class MaskNoise(Strict):
    """How masks are spoiled. Settings add up: with 10 % swapped and boxes, a tenth are boxes of something else."""

    boxes: bool = False
    """The box around each mask in its place."""
    swapped_ratio: float = Field(0.0, ge=0, le=1)
    """Share of the phrases that are there which get the masks of another one."""
    known_ratio: float = Field(1.0, ge=0, le=1)
    """Share of the samples whose phrases are supervised."""


def spoil_masks(rows: Sequence[Row], noise: MaskNoise) -> list[Row]:
    """Rows of a batch with their groundings spoiled.

    A swapped phrase gets the masks of the next phrase of another sample in the batch, its own where there is none.
    """
    donors = [(sample.id, g) for sample, conversation in rows for g in conversation.groundings if g.present]
    place = 0
    spoiled = []
    for sample, conversation in rows:
        groundings = []
        for grounding in conversation.groundings:
            place += bool(grounding.present)
            groundings.append(_spoil(grounding, sample.id, noise, donors[place:] + donors[:place]))
        spoiled.append((sample, replace(conversation, groundings=tuple(groundings))))
    return spoiled


def _spoil(grounding: Grounding, sample: str, noise: MaskNoise, donors: Sequence[tuple[str, Grounding]]) -> Grounding:
    if _draw("known", sample) >= noise.known_ratio:
        return replace(grounding, present=None, masks=())
    if not grounding.present:
        return grounding
    masks = grounding.masks
    if _draw("swapped", f"{sample}/{grounding.phrase}") < noise.swapped_ratio:
        masks = next((donor.masks for owner, donor in donors if owner != sample), masks)
    return replace(grounding, masks=tuple(map(_box, masks)) if noise.boxes else masks)


def _draw(purpose: str, name: str) -> float:
    """A number in [0, 1) that is the same for the same name on every machine."""
    seed = [zlib.crc32(purpose.encode()), zlib.crc32(name.encode())]
    return float(np.random.SeedSequence(seed).generate_state(1)[0] / 2**32)


def _box(rle: RLE) -> RLE:
    mask = decode_mask(rle)
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if rows.size:
        mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    return encode_mask(mask)
