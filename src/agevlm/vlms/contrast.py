"""Contrastive decoding: what a model says of its picture, less what it would say of something else.

Of the same picture in noise it is visual contrastive decoding: Leng et al., 2024 (arXiv 2311.16922), with the settings
of their published code: (1 + α) · logits − α · logits of the noised picture, α = 1, among tokens at least β = 0.1 times
as likely as the likeliest; noise of step 500 of a diffusion of 1000. They noise the tensor behind the image processor,
here it is the picture before it, so that it works for any family: a pixel ends at black or white where they let it run
on. Answers are greedy here.
"""

# Shapes: R rows of text, V vocabulary.

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from agevlm.vlms.attention import unsteered
from agevlm.vlms.inputs import Inputs

if TYPE_CHECKING:
    from agevlm.vlms.vlm import Vlm

NOISE_STEP, NUM_STEPS = 500, 1000


@dataclass(frozen=True)
class Contrast:
    """Changes the logits of a generation from `own`: `against` are the same rows with other pictures, or none.

    Called by transformers' `generate` with the tokens so far and the logits of the next. Where attention is steered,
    that of the other rows is not.
    """

    vlm: Vlm
    own: Inputs
    against: Inputs
    alpha: float = 1.0
    beta: float = 0.1

    def __call__(self, input_ids: Tensor, logits_RV: Tensor) -> Tensor:
        """The logits (R, V) to choose from, minus infinity for tokens that are too unlikely beside the likeliest."""
        said = input_ids[:, self.own.text_len :].tolist()
        told = self.against.answered(said, self.vlm.family) if said[0] else self.against
        with unsteered():
            other_RV = self.vlm.read(told).logits[:, -1].to(logits_RV)
        least_R1 = logits_RV.amax(-1, keepdim=True) + math.log(self.beta)
        contrasted_RV = (1 + self.alpha) * logits_RV - self.alpha * other_RV
        return contrasted_RV.masked_fill(logits_RV < least_R1, -math.inf)


def noised(picture: Any, step: int = NOISE_STEP) -> Image.Image:
    """The picture after `step` of 1000 steps of noise, of the same size; the same noise for the same picture."""
    rates = 1 / (1 + np.exp(-np.linspace(-6, 6, NUM_STEPS))) * (0.5e-2 - 1e-5) + 1e-5
    kept = float(np.prod(1 - rates[: step + 1]))
    pixels = np.asarray(picture.convert("RGB"), dtype=np.float32) / 127.5 - 1
    noise = np.random.default_rng(zlib.crc32(pixels.tobytes())).standard_normal(pixels.shape, dtype=np.float32)
    mixed = math.sqrt(kept) * pixels + math.sqrt(1 - kept) * noise
    return Image.fromarray(((mixed.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8))
